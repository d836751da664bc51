// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min
#include <cstdint>    // std::int32_t, std::uint64_t
#include <span>       // std::span
#include <vector>     // std::vector

#include "diffmamba/device/event.hpp"
#include "diffmamba/device/graph.hpp"
#include "diffmamba/device/pinned.hpp"
#include "diffmamba/generate/device_sampler.hpp"
#include "diffmamba/ops/matmul/matmul.hpp"  // WeightsAtRest

namespace diffmamba {

struct DeviceDecoderOptions {
  SamplerOptions sampler = {};  // row r of the batch draws from stream r
  Index repetition_window = 256;
  Index log = 16;  // how many draws the host may leave unread
};

/// Decoding on a GPU, for a batch of sequences: one graph per token, in which the state sees the tokens drawn last and
/// the next ones are drawn. The host only starts it; tokens lie in pinned memory, where it finds them when it looks.
///
///   DeviceDecoder decoder(model, state, {.sampler = {.temperature = 0.8}});
///   decoder.draw();                                  // from the logits that the prompt left
///   for (Index i = 0; i < 100; ++i) { use(decoder.tokens(i)); decoder.advance(); }
///
/// Model and state must stay where they are. Nothing else may use the state before finish().
template <class Model>
class DeviceDecoder {
 public:
  using State = typename Model::State;
  using R = accumulate_t<typename Model::value_type>;

  DeviceDecoder(const Model& model, State& state, const DeviceDecoderOptions& options)
      : model_(&model),
        state_(&state),
        options_(options),
        stream_(cuda_runtime::current_stream().device),
        tokens_(Extents<1>(state.batch())),
        position_(Tensor<std::uint64_t, 1, cuda>::uninitialized({state.batch()})),
        remembered_(Tensor<std::uint64_t, 1, cuda>::uninitialized({state.batch()})),
        history_({state.batch(), options.sampler.repetition_penalty == 1 ? Index{0} : options.repetition_window}),
        log_(options.log * state.batch()),
        workspace_(device_sample_workspace_bytes<R>(state.batch(), model.config().vocab_size)) {
    check(options.sampler);
    require(options.repetition_window >= 0, "generate: repetition_window is ", options.repetition_window,
            ", expected 0 or more");
    require(options.log >= 1, "generate: log is ", options.log, ", expected 1 or more");
    const std::vector<std::uint64_t> zeros(static_cast<std::size_t>(state.batch()), 0);
    copy_elements(cuda{}, zeros.data(), position_.data(), state.batch());
    copy_elements(cuda{}, zeros.data(), remembered_.data(), state.batch());
    for (Index i = 0; i < options.log; ++i) marks_.emplace_back();
  }
  DeviceDecoder(const DeviceDecoder&) = delete;
  DeviceDecoder& operator=(const DeviceDecoder&) = delete;
  ~DeviceDecoder() {
    try {
      finish();
    } catch (const Error&) {  // a fault on the GPU shows in the next call as well
    }
  }

  /// What a sequence ended with, for the repetition penalty; before the first draw.
  void remember(Index row, std::span<const std::int32_t> before) {
    const Index window = history_.extent(1), count = std::min(window, static_cast<Index>(before.size()));
    if (count == 0) return;
    const auto last = before.last(static_cast<std::size_t>(count));
    for (const std::int32_t token : last)
      require(0 <= token && token < model_->config().vocab_size, "sampler: token ", token,
              " is outside the vocabulary of ", model_->config().vocab_size.get());
    const auto seen = static_cast<std::uint64_t>(count);
    copy_elements(cuda{}, last.data(), history_.data() + row * window, count);
    copy_elements(cuda{}, &seen, remembered_.data() + row, 1);
  }

  /// Draws from the state's logits, as they are when this is launched.
  void draw() {
    cuda_runtime::order(cuda_runtime::current_stream(), stream_);
    const cuda_runtime::StreamScope on(stream_);
    sample();
    mark();
  }
  /// The state sees what was drawn last, and the next tokens are drawn.
  void advance() {
    require(draws_ > 0, "generate: nothing was drawn that the state could see");
    const cuda_runtime::StreamScope on(stream_);
    const cuda_runtime::WeightsAtRest at_rest;  // the model is const, and the state's own weights were made long ago
    const auto work = [this] {
      model_->step_on_device(tokens_, *state_);
      sample();
    };
    if (graph_) {
      graph_.replay();
      ++state_->position;
    } else {  // the first time as it is, then recorded
      work();
      graph_ = cuda_runtime::Graph<>(work, cuda_runtime::WarmUp::no);
      --state_->position;
    }
    mark();
  }
  /// How many times was drawn.
  Index draws() const { return draws_; }

  /// The tokens of a draw, counted from 0, one of the last options.log; waits until they are there. Throws Error where
  /// the logits were no distribution.
  std::span<const std::int32_t> tokens(Index draw) {
    require(0 <= draw && draw < draws_ && draw >= draws_ - options_.log, "generate: draw ", draw, " of ", draws_,
            " is not there any more or not yet");
    const auto place = static_cast<std::size_t>(draw % options_.log);
    marks_[place].wait();
    const auto batch = static_cast<std::size_t>(state_->batch());
    const std::span<const std::int32_t> drawn(log_.data() + place * batch, batch);
    for (const std::int32_t token : drawn) {
      require(token != sample_not_a_number, "sampler: a logit is not a number");
      require(token != sample_nothing_likely, "sampler: every logit is -infinity");
    }
    return drawn;
  }
  /// Waits for everything launched.
  void finish() { cuda_runtime::synchronize<>(stream_); }

 private:
  void sample() {
    const Index batch = state_->batch();
    const bool penalty = history_.extent(1) > 0;
    device_sample(SampleArrays<R>{.logits = View<const R, 2, cuda>(
                                      state_->logits.template slice<1>(0, model_->config().vocab_size)),
                                  .tokens = tokens_,
                                  .position = position_,
                                  .history = penalty ? history_.view() : View<std::int32_t, 2, cuda>{},
                                  .remembered = penalty ? remembered_.view() : View<std::uint64_t, 1, cuda>{},
                                  .log = View<std::int32_t, 2, cuda>(log_.data(), Extents{options_.log, batch})},
                  options_.sampler, workspace_);
  }
  void mark() { marks_[static_cast<std::size_t>(draws_++ % options_.log)].record(); }

  const Model* model_;
  State* state_;
  DeviceDecoderOptions options_;
  cuda_runtime::OwnedStream<> stream_;  // its memory is the graph's
  Tensor<std::int32_t, 1, cuda> tokens_;
  Tensor<std::uint64_t, 1, cuda> position_, remembered_;
  Tensor<std::int32_t, 2, cuda> history_;
  cuda_runtime::PinnedBuffer<std::int32_t> log_;
  Workspace<cuda> workspace_;
  std::vector<cuda_runtime::Event<>> marks_;
  cuda_runtime::Graph<> graph_;
  Index draws_ = 0;
};

}  // namespace diffmamba
