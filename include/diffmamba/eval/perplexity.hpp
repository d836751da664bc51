// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min
#include <cmath>      // std::exp, std::log
#include <cstdint>    // std::int32_t

#include "diffmamba/data/text_tokenizer.hpp"  // TokenSpan
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// How well a model predicts a text.
struct Perplexity {
  double loss = 0;  // mean of -ln p(token), in nats
  Index tokens = 0;

  double perplexity() const { return std::exp(loss); }
  /// Bits per byte or per character, whatever a token is.
  double bits() const { return loss / std::log(2.0); }
};

struct PerplexityOptions {
  Index batch = 8;
  Index length = 256;
  Index max_tokens = -1;  // -1: the whole text
};

/// Cuts a text into windows of `length` tokens, one after another, each from an empty state, and predicts every token
/// but the first of the text once, from those before it in its window and the one before the window. Throws Error for a
/// text of less than two tokens.
template <class Model>
Perplexity perplexity(const Model& model, TokenSpan text, const PerplexityOptions& options = {}) {
  require(text.size() >= 2, "perplexity: a text of ", text.size(), " tokens has nothing to predict");
  require(options.batch > 0 && options.length > 0, "perplexity: batch ", options.batch, " and length ", options.length,
          " must be at least 1");
  require(options.max_tokens != 0, "perplexity: max_tokens is 0");
  Index left = static_cast<Index>(text.size()) - 1;
  if (options.max_tokens > 0) left = std::min(left, options.max_tokens);
  double sum = 0;
  Index begin = 0;
  const Index total = left;
  while (left > 0) {
    const Index length = std::min(options.length, left), rows = std::min(options.batch, left / length);
    Tensor<std::int32_t, 2> inputs({rows, length}), targets({rows, length});
    for (Index row = 0; row < rows; ++row)
      for (Index t = 0; t < length; ++t) {
        const auto at = static_cast<std::size_t>(begin + row * length + t);
        inputs(row, t) = text[at];
        targets(row, t) = text[at + 1];
      }
    sum += model.loss(inputs, targets) * static_cast<double>(rows * length);
    begin += rows * length;
    left -= rows * length;
  }
  return {.loss = sum / static_cast<double>(total), .tokens = total};
}

}  // namespace diffmamba
