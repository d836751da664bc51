// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min
#include <cstddef>    // std::ptrdiff_t
#include <cstdint>    // std::int32_t, std::uint64_t
#include <iterator>   // std::default_sentinel_t
#include <span>       // std::span
#include <vector>     // std::vector

#include "diffmamba/generate/device_decoder.hpp"
#include "diffmamba/generate/sampler.hpp"

namespace diffmamba {

/// How tokens are drawn (the sampler's options, in the order in which they apply), and when to stop.
struct GenerateOptions {
  double repetition_penalty = 1;  // 1: off
  double temperature = 1;         // 0: always the likeliest token
  Index top_k = 0;                // 0: off
  double top_p = 1;               // 1: off
  double min_p = 0;               // 0: off
  std::uint64_t seed = 0;
  Index max_tokens = -1;          // -1: without end
  std::int32_t stop_token = -1;   // drawn, it ends the text and is not given out; -1: none
  Index repetition_window = 256;  // how many of the last tokens the penalty looks at
  Index ahead = 0;                // on a GPU: tokens that are begun before the last one was looked at
};

namespace detail {
/// Walks over what a generation draws, token by token.
template <class Generation>
struct TokenIterator {
  using value_type = std::int32_t;
  using difference_type = std::ptrdiff_t;
  Generation* generation;
  std::int32_t operator*() const { return generation->token_; }
  TokenIterator& operator++() {
    generation->next();
    return *this;
  }
  void operator++(int) { ++*this; }
  bool operator==(std::default_sentinel_t) const { return generation->done_; }
};
}  // namespace detail

/// A range of tokens that a model writes, one recurrent step each: time and memory per token do not depend on how many
/// there were. The state is the caller's and is advanced: when the loop has run to its end it has seen every token that
/// came out; after a `break` all but the last.
///
/// On a GPU each token is one graph, drawing included. With `ahead` the GPU never waits for the host; the state may
/// then have seen as many tokens more than came out.
template <class Model, Device D = typename Model::device_type>
class Generation;

template <class Model>
class Generation<Model, cpu> {
 public:
  using State = typename Model::State;

  Generation(const Model& model, State& state, const GenerateOptions& options, std::span<const std::int32_t> before)
      : model_(&model),
        state_(&state),
        options_(options),
        sampler_({.temperature = options.temperature,
                  .top_k = options.top_k,
                  .top_p = options.top_p,
                  .min_p = options.min_p,
                  .repetition_penalty = options.repetition_penalty,
                  .seed = options.seed}) {
    require(state.batch() == 1, "generate: a state of ", state.batch(), " sequences, expected 1");
    require(state.position > 0, "generate: the state has seen no token; prefill it with a prompt");
    require(options.repetition_window >= 0, "generate: repetition_window is ", options.repetition_window,
            ", expected 0 or more");
    for (const std::int32_t token : before) remember(token);
  }

  detail::TokenIterator<Generation> begin() {
    next();
    return {this};
  }
  std::default_sentinel_t end() const { return {}; }

 private:
  friend detail::TokenIterator<Generation>;

  void next() {
    if (count_ > 0 && !done_) {  // the state sees the last token that came out
      model_->step(token_, *state_);
      remember(token_);
    }
    done_ = options_.max_tokens >= 0 && count_ >= options_.max_tokens;
    if (done_) return;
    const auto& logits = state_->logits;
    token_ = sampler_(logits.template select<0>(0).template slice<0>(0, model_->config().vocab_size),
                      std::span<const std::int32_t>(last_tokens()));
    done_ = token_ == options_.stop_token;
    ++count_;
  }
  // The last tokens, in a vector that is cut back now and then: constant memory, and a span for the sampler.
  void remember(std::int32_t token) {
    if (options_.repetition_penalty == 1) return;
    const auto window = static_cast<std::size_t>(options_.repetition_window);
    if (history_.size() >= 2 * window + 16)
      history_.erase(history_.begin(), history_.end() - static_cast<std::ptrdiff_t>(window));
    history_.push_back(token);
  }
  std::span<const std::int32_t> last_tokens() const {
    const std::span<const std::int32_t> all(history_);
    const auto window = static_cast<std::size_t>(options_.repetition_window);
    return all.size() > window ? all.last(window) : all;
  }

  const Model* model_;
  State* state_;
  GenerateOptions options_;
  Sampler sampler_;
  std::vector<std::int32_t> history_;
  Index count_ = 0;
  std::int32_t token_ = -1;
  bool done_ = false;
};

template <class Model>
class Generation<Model, cuda> {
 public:
  using State = typename Model::State;

  Generation(const Model& model, State& state, const GenerateOptions& options, std::span<const std::int32_t> before)
      : options_(options),
        decoder_(model, state,
                 {.sampler = {.temperature = options.temperature,
                              .top_k = options.top_k,
                              .top_p = options.top_p,
                              .min_p = options.min_p,
                              .repetition_penalty = options.repetition_penalty,
                              .seed = options.seed},
                  .repetition_window = options.repetition_window,
                  .log = options.ahead + 2}) {
    require(state.batch() == 1, "generate: a state of ", state.batch(), " sequences, expected 1");
    require(state.position > 0, "generate: the state has seen no token; prefill it with a prompt");
    require(options.ahead >= 0, "generate: ahead is ", options.ahead, ", expected 0 or more");
    decoder_.remember(0, before);
  }

  detail::TokenIterator<Generation> begin() {
    next();
    return {this};
  }
  std::default_sentinel_t end() const { return {}; }

 private:
  friend detail::TokenIterator<Generation>;

  void next() {
    const bool full = options_.max_tokens >= 0 && count_ >= options_.max_tokens;
    if (decoder_.draws() == 0 && !full) decoder_.draw();
    // At the end, too, the state sees the last token that came out; what is drawn after it is not looked at.
    Index wanted = count_ + 1 + options_.ahead;
    if (options_.max_tokens >= 0) wanted = std::min(wanted, options_.max_tokens + (full ? 1 : 0));
    while (decoder_.draws() > 0 && decoder_.draws() < wanted) decoder_.advance();
    done_ = full;
    if (!done_) {
      token_ = decoder_.tokens(count_)[0];
      done_ = token_ == options_.stop_token;
      ++count_;
    }
    if (done_) decoder_.finish();
  }

  GenerateOptions options_;
  DeviceDecoder<Model> decoder_;
  Index count_ = 0;
  std::int32_t token_ = -1;
  bool done_ = false;
};

/// The tokens that follow what `state` has seen; `before` are its last ones, for the repetition penalty.
///
///   for (int token : dm::generate(model, state, {.temperature = 0.8, .top_p = 0.9, .max_tokens = 200})) ...
template <class Model>
Generation<Model> generate(const Model& model, typename Model::State& state, const GenerateOptions& options = {},
                           std::span<const std::int32_t> before = {}) {
  return Generation<Model>(model, state, options, before);
}

}  // namespace diffmamba
