// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min, std::max
#include <cstdint>    // std::int32_t, std::uint64_t
#include <iterator>   // std::default_sentinel_t
#include <numeric>    // std::iota
#include <vector>     // std::vector

#include "diffmamba/data/text_tokenizer.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// Rows of text and, for each position, the token that follows: targets(b, t) == inputs(b, t + 1) inside a row.
struct Batch {
  Tensor<std::int32_t, 2> inputs;   // (batch, length)
  Tensor<std::int32_t, 2> targets;  // (batch, length)
  Index tokens() const { return inputs.size(); }
};

struct BatchOptions {
  Index batch = 8;
  Index length = 256;
  std::uint64_t seed = 0;
  Index count = -1;  // how many batches a loop sees; -1: without end
};

/// Shuffled windows of a text. An epoch cuts the text into windows of `length` tokens, beginning at a place that
/// changes with the epoch, and visits each once in random order; order and place follow from (seed, epoch) alone. So
/// one number, `position` (rows given out so far), says where the loop stands: save it, `seek` to it, and the same
/// batches follow.
///
///   for (auto& batch : batches(corpus.train, {.batch = 8, .length = 256})) ...
class Batches {
 public:
  Batches(TokenSpan tokens, const BatchOptions& options) : tokens_(tokens), options_(options) {
    require(options.batch > 0, "batches: the batch size is ", options.batch, ", expected at least 1");
    require(options.length > 0, "batches: the length is ", options.length, ", expected at least 1");
    const auto size = static_cast<Index>(tokens.size());
    require(size > options.length, "batches: a text of ", size, " tokens is too short, windows of length ",
            options.length, " need ", options.length + 1);
    windows_ = std::max(Index{1}, (size - options.length) / options.length);
    phases_ = std::min(options.length, size - windows_ * options.length);
  }

  /// Windows of one epoch.
  Index windows() const { return windows_; }
  /// Rows given out so far.
  Index position() const { return position_; }
  void seek(Index position) {
    require(position >= 0, "batches: position ", position, " is negative");
    position_ = position;
  }

  const Batch& next() {
    if (!batch_.inputs) {
      batch_.inputs = Tensor<std::int32_t, 2>({options_.batch, options_.length});
      batch_.targets = Tensor<std::int32_t, 2>({options_.batch, options_.length});
    }
    for (Index row = 0; row < options_.batch; ++row, ++position_) {
      const std::uint16_t* from = tokens_.data() + begin_of_window(position_);
      for (Index t = 0; t < options_.length; ++t) {
        batch_.inputs(row, t) = from[t];
        batch_.targets(row, t) = from[t + 1];
      }
    }
    return batch_;
  }

  /// A single-pass range: each step calls `next`.
  struct Iterator {
    using value_type = Batch;
    using difference_type = std::ptrdiff_t;
    Batches* batches;
    Index left;
    const Batch& operator*() const { return batches->batch_; }
    Iterator& operator++() {
      if (left > 0) --left;
      if (left != 0) batches->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const Iterator& a, std::default_sentinel_t) { return a.left == 0; }
  };
  Iterator begin() {
    if (options_.count != 0) next();
    return {this, options_.count};
  }
  std::default_sentinel_t end() const { return {}; }

 private:
  Index begin_of_window(Index position) {
    const Index epoch = position / windows_;
    if (epoch != epoch_) {  // Fisher and Yates
      const Philox random = Philox{options_.seed}.child(static_cast<std::uint64_t>(epoch));
      const auto below = [&](std::uint64_t draw, Index bound) {
        const RandomWords words = random(draw);
        return static_cast<Index>((std::uint64_t{words[1]} << 32 | words[0]) % static_cast<std::uint64_t>(bound));
      };
      order_.resize(static_cast<std::size_t>(windows_));
      std::iota(order_.begin(), order_.end(), Index{0});
      for (Index i = windows_ - 1; i > 0; --i)
        std::swap(order_[static_cast<std::size_t>(i)],
                  order_[static_cast<std::size_t>(below(static_cast<std::uint64_t>(i), i + 1))]);
      phase_ = below(0, phases_);
      epoch_ = epoch;
    }
    return phase_ + order_[static_cast<std::size_t>(position % windows_)] * options_.length;
  }

  TokenSpan tokens_;
  BatchOptions options_;
  Batch batch_;
  Index windows_ = 0, phases_ = 0, position_ = 0, epoch_ = -1, phase_ = 0;
  std::vector<Index> order_;
};

inline Batches batches(TokenSpan tokens, const BatchOptions& options) {
  return Batches(tokens, options);
}

}  // namespace diffmamba
