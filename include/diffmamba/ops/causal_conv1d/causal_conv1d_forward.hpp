// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/causal_conv1d/causal_conv1d.hpp"
#include "diffmamba/ops/row_kernels.hpp"  // for_blocks, ColumnSums

// A tile is a run of tokens of one sequence and up to 512 channels: the rows of the window stay in the L1 cache, so x
// is read from memory once. The weights lie (width, channels) in the workspace, channels side by side as in x.

namespace diffmamba::causal_conv1d {
namespace detail {

using namespace diffmamba::detail;

inline constexpr Index tile_tokens = 128, tile_channels = 2048;

/// Backward sums parameter gradients over runs of tokens; at most 64 tiles take equal shares of the runs.
struct Runs {
  Index per_sequence, total, per_tile, tiles;
  Runs(Index batch, Index length)
      : per_sequence(std::max<Index>(1, tiles_of(length, tile_tokens))),
        total(batch * per_sequence),
        per_tile(std::max<Index>(1, tiles_of(total, 64))),
        tiles(tiles_of(total, per_tile)) {}
};

/// The weights with channels side by side: (width, channels).
template <class A>
A* transposed(const View<const A, 2>& weight, Workspace<cpu>& workspace) {
  const Index channels = weight.extent(0), width = weight.extent(1);
  A* const result = workspace.take<A>(width * channels);
  for (Index c = 0; c < channels; ++c)
    for (Index w = 0; w < width; ++w) result[w * channels + c] = weight(c, w);
  return result;
}

/// One sequence: inputs at any time from -(width - 1) on, and the sum before the activation. Width is the filter's, 0
/// where only known at run time.
template <int Width, class T>
struct Sequence {
  using A = accumulate_t<T>;
  const T* x;           // (length, channels)
  Index x_stride;       // from token to token
  const A* state;       // (channels, width - 1) or null
  Index state_stride;   // from channel to channel
  const A* weight;      // (width, weight_stride)
  Index weight_stride;  // all channels
  const A* bias;        // or null
  Index run_time_width;

  Index width() const { return Width > 0 ? Width : run_time_width; }

  /// x_t; before the beginning from the initial state.
  template <class Block>
  ChannelLanes<A> input(Index t, Index c, Block block) const {
    if (t >= 0) return block.load(x + t * x_stride + c);
    if (state) return block.gather(state + c * state_stride + t + width() - 1, state_stride);
    return ChannelLanes<A>::Zero();
  }
  /// bias + sum_w weight_w x_{t - (width - 1) + w}
  template <class Block>
  ChannelLanes<A> sum(Index t, Index c, Block block) const {
    ChannelLanes<A> result = ChannelLanes<A>::Zero();
    if (bias) result = block.load(bias + c);
    const Index first = t - (width() - 1);
    if (first >= 0) {
      const T* from = x + first * x_stride + c;
      for (Index w = 0; w < width(); ++w, from += x_stride)
        result += block.load(weight + w * weight_stride + c) * block.load(from);
    } else {
      for (Index w = 0; w < width(); ++w)
        result += block.load(weight + w * weight_stride + c) * input(first + w, c, block);
    }
    return result;
  }
};

template <int Width, class T>
Sequence<Width, T> sequence(const Inputs<T>& in, const accumulate_t<T>* weight, Index batch) {
  return {.x = in.x.pointer(batch),
          .x_stride = in.x.stride(1),
          .state = in.initial_state && in.initial_state.size() > 0 ? in.initial_state.pointer(batch) : nullptr,
          .state_stride = in.initial_state.stride(1),
          .weight = weight,
          .weight_stride = in.weight.extent(0),
          .bias = in.bias.data(),
          .run_time_width = in.weight.extent(1)};
}

template <int Width, class T>
void convolve(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
              const accumulate_t<T>* weight) {
  using A = accumulate_t<T>;
  const Index batch = in.x.extent(0), length = in.x.extent(1), channels = in.x.extent(2);
  const Index runs = tiles_of(length, tile_tokens), strips = tiles_of(channels, tile_channels);
  const bool silu = options.activation == Activation::silu;

  parallel_for(batch * runs * strips, [&](Index tile) {
    const Index strip = tile % strips, run = tile / strips % runs, b = tile / strips / runs;
    const Index c0 = strip * tile_channels;
    const Sequence<Width, T> from = sequence<Width>(in, weight, b);
    for (Index t = run * tile_tokens; t < std::min(length, (run + 1) * tile_tokens); ++t) {
      T* const to = outputs.out.pointer(b, t);
      for_blocks<A>(std::min(channels - c0, tile_channels), [&](Index i, auto block) {
        ChannelLanes<A> y = from.sum(t, c0 + i, block);
        if (silu) y *= sigmoid(y);
        block.store(to + c0 + i, y);
      });
    }
  });
}

}  // namespace detail

/// Bytes of workspace that forward or backward takes at most.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), width = in.weight.extent(1);
  const detail::Runs runs(in.x.extent(0), in.x.extent(1));
  return Workspace<cpu>::bytes_of<A>(width * channels) +
         static_cast<std::size_t>(2 * width + 1) * diffmamba::detail::ColumnSums<A>::bytes(runs.tiles, channels);
}

/// Writes into the caller's memory and allocates nothing; `saved` null is inference.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
             std::type_identity_t<Saved<T>>* saved, Workspace<cpu>& workspace) {
  using A = accumulate_t<T>;
  check(in, outputs);
  ++forward_count().causal_conv1d;
  if (saved) saved->options = options;
  const auto mark = workspace.mark();
  const A* const weight = detail::transposed<A>(in.weight, workspace);
  if (in.weight.extent(1) == 4)
    detail::convolve<4>(in, options, outputs, weight);
  else
    detail::convolve<0>(in, options, outputs, weight);
  workspace.reset(mark);

  if (!outputs.final_state) return;
  const Index length = in.x.extent(1), channels = in.x.extent(2), state = in.weight.extent(1) - 1;
  parallel_for(in.x.extent(0), [&](Index b) {
    for (Index c = 0; c < channels; ++c)
      for (Index j = 0; j < state; ++j) {
        const Index t = length - state + j;
        A value = 0;
        if (t >= 0)
          value = static_cast<A>(in.x(b, t, c));
        else if (in.initial_state)
          value = in.initial_state(b, c, t + state);
        outputs.final_state(b, c, j) = value;
      }
  });
}

/// The same into new memory, on either device.
template <class T, Device D>
Outputs<T, D> forward(const Inputs<T, D>& in, const Options& options = {}) {
  check(in);
  Outputs<T, D> result;
  result.out = Tensor<T, 3, D>::uninitialized(in.x.extents());
  result.final_state =
      Tensor<accumulate_t<T>, 3, D>::uninitialized(Extents{in.x.extent(0), in.x.extent(2), in.weight.extent(1) - 1});
  Workspace<D> workspace(workspace_bytes(in));
  forward<T>(in, options, OutputViews<T, D>{.out = result.out, .final_state = result.final_state}, &result.saved,
             workspace);
  return result;
}

}  // namespace diffmamba::causal_conv1d
