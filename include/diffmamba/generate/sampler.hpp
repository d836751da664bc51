// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>   // std::max_element, std::nth_element, std::sort
#include <cmath>       // std::exp, std::log
#include <cstdint>     // std::int32_t, std::uint64_t
#include <functional>  // std::greater
#include <limits>      // std::numeric_limits
#include <span>        // std::span
#include <vector>      // std::vector

#include "diffmamba/core/error.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/view.hpp"

namespace diffmamba {

/// Filters of the logits of one position, (vocab_size), in place: what is filtered out becomes -infinity. The largest
/// logit always stays.
namespace logits_filter {

/// Makes tokens less likely that have been seen: l < 0 ? l * penalty : l / penalty, once per token, however often it
/// occurs (Keskar et al. 2019, arXiv 1909.05858). Throws Error for a token outside the vocabulary.
template <class T, class Token>
void repetition_penalty(const View<T, 1>& logits, std::span<const Token> previous, double penalty) {
  require(penalty > 0, "sampler: repetition_penalty is ", penalty, ", expected more than 0");
  if (penalty == 1) return;
  std::vector<Token> tokens(previous.begin(), previous.end());
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  for (const Token token : tokens) {
    require(0 <= token && token < logits.extent(0), "sampler: token ", token, " is outside the vocabulary of ",
            logits.extent(0));
    T& logit = logits(token);
    logit = logit < T(0) ? logit * static_cast<T>(penalty) : logit / static_cast<T>(penalty);
  }
}

/// Divides by the temperature, more than 0.
template <class T>
void temperature(const View<T, 1>& logits, double temperature) {
  require(temperature > 0, "sampler: temperature is ", temperature, ", expected more than 0");
  if (temperature == 1) return;
  for (Index v = 0; v < logits.extent(0); ++v) logits(v) /= static_cast<T>(temperature);
}

/// Keeps what is at least the k-th largest: k of them, more where several are equal. k = 0 keeps all.
template <class T>
void top_k(const View<T, 1>& logits, Index k) {
  require(k >= 0, "sampler: top_k is ", k, ", expected 0 or more");
  const Index size = logits.extent(0);
  if (k == 0 || k >= size) return;
  std::vector<T> sorted(static_cast<std::size_t>(size));
  for (Index v = 0; v < size; ++v) sorted[static_cast<std::size_t>(v)] = logits(v);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  const T least = sorted[static_cast<std::size_t>(k - 1)];
  for (Index v = 0; v < size; ++v)
    if (logits(v) < least) logits(v) = -std::numeric_limits<T>::infinity();
}

/// Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): drops the least likely tokens as long as the
/// probability dropped so far is at most 1 - p. p = 1 keeps all.
template <class T>
void top_p(const View<T, 1>& logits, double p) {
  require(p >= 0 && p <= 1, "sampler: top_p is ", p, ", expected 0 to 1");
  const Index size = logits.extent(0);
  if (p == 1 || size == 0) return;
  std::vector<Index> order(static_cast<std::size_t>(size));
  for (Index v = 0; v < size; ++v) order[static_cast<std::size_t>(v)] = v;
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return logits(a) < logits(b); });
  const double largest = static_cast<double>(logits(order.back()));
  double total = 0;
  for (const Index v : order) total += std::exp(static_cast<double>(logits(v)) - largest);
  double dropped = 0;
  for (std::size_t i = 0; i + 1 < order.size(); ++i) {
    T& logit = logits(order[i]);
    dropped += std::exp(static_cast<double>(logit) - largest) / total;
    if (dropped > 1 - p) break;
    logit = -std::numeric_limits<T>::infinity();
  }
}

/// Keeps tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082). 0 keeps all.
template <class T>
void min_p(const View<T, 1>& logits, double min_p) {
  require(min_p >= 0 && min_p <= 1, "sampler: min_p is ", min_p, ", expected 0 to 1");
  if (min_p == 0 || logits.extent(0) == 0) return;
  T largest = logits(0);
  for (Index v = 1; v < logits.extent(0); ++v) largest = std::max(largest, logits(v));
  const double least = static_cast<double>(largest) + std::log(min_p);
  for (Index v = 0; v < logits.extent(0); ++v)
    if (static_cast<double>(logits(v)) < least) logits(v) = -std::numeric_limits<T>::infinity();
}

}  // namespace logits_filter

/// The order in which they apply: repetition penalty, temperature, top_k, top_p, min_p.
struct SamplerOptions {
  double temperature = 1;         // 0: always the likeliest token
  Index top_k = 0;                // 0: off
  double top_p = 1;               // 1: off
  double min_p = 0;               // 0: off
  double repetition_penalty = 1;  // 1: off
  std::uint64_t seed = 0;
};

/// Throws Error for options out of range.
inline void check(const SamplerOptions& options) {
  const auto between = [](const char* name, double value, double low, double high) {
    require(value >= low && value <= high, "sampler: ", name, " is ", value, ", expected ", low, " to ", high);
  };
  constexpr double infinite = std::numeric_limits<double>::infinity();
  between("temperature", options.temperature, 0, infinite);
  between("top_p", options.top_p, 0, 1);
  between("min_p", options.min_p, 0, 1);
  require(options.top_k >= 0, "sampler: top_k is ", options.top_k, ", expected 0 or more");
  require(options.repetition_penalty > 0, "sampler: repetition_penalty is ", options.repetition_penalty,
          ", expected more than 0");
}

/// Draws tokens. A value: a copy draws the same tokens from the same logits, and `position` (how many were drawn) is
/// all that changes; draw n uses block n of Philox{seed, stream}, so that sequences of a batch take streams of their
/// own.
class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options = {}, std::uint64_t stream = 0) : options_(options), stream_(stream) {
    check(options);
  }

  /// A token for these logits, (vocab_size), of any stride; previous: what the repetition penalty looks at. Throws
  /// Error for an empty vocabulary and for logits that are NaN or all -infinity.
  template <class T, class Token = std::int32_t>
  std::int32_t operator()(const View<const T, 1>& logits, std::span<const Token> previous = {}) {
    const Index size = logits.extent(0);
    require(size > 0, "sampler: there are no logits");
    row_.resize(static_cast<std::size_t>(size));
    for (Index v = 0; v < size; ++v) {
      const double logit = static_cast<double>(logits(v));
      require(logit == logit, "sampler: the logit of token ", v, " is not a number");
      row_[static_cast<std::size_t>(v)] = logit;
    }
    const View<double, 1> row(row_.data(), Extents<1>(size));
    logits_filter::repetition_penalty(row, previous, options_.repetition_penalty);
    const auto largest = std::max_element(row_.begin(), row_.end());
    require(*largest > -std::numeric_limits<double>::infinity(), "sampler: every logit is -infinity");
    const auto draw = static_cast<std::uint64_t>(position_++);
    if (options_.temperature == 0) return static_cast<std::int32_t>(largest - row_.begin());
    logits_filter::temperature(row, options_.temperature);
    logits_filter::top_k(row, options_.top_k);
    logits_filter::top_p(row, options_.top_p);
    logits_filter::min_p(row, options_.min_p);

    // Not *largest: of several equal ones top_p may have dropped the first.
    const double shift = *std::max_element(row_.begin(), row_.end());
    double total = 0;
    for (double& value : row_) total += value = std::exp(value - shift);
    const RandomWords words = Philox{options_.seed, stream_}(draw);
    const double uniform =
        (static_cast<double>(words[0] >> 5) * 67108864.0 + static_cast<double>(words[1] >> 6)) * 0x1p-53;
    double rest = uniform * total;
    Index last = 0;
    for (Index v = 0; v < size; ++v) {
      const double weight = row_[static_cast<std::size_t>(v)];
      if (weight == 0) continue;
      last = v;
      rest -= weight;
      if (rest < 0) break;
    }
    return static_cast<std::int32_t>(last);
  }

  const SamplerOptions& options() const { return options_; }
  /// How many tokens have been drawn. Setting it continues a saved run.
  Index position() const { return position_; }
  void set_position(Index position) { position_ = position; }

 private:
  SamplerOptions options_;
  std::uint64_t stream_;
  Index position_ = 0;
  std::vector<double> row_;
};

}  // namespace diffmamba
