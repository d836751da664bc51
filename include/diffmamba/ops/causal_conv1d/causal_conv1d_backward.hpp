// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/causal_conv1d/causal_conv1d.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"  // detail::Sequence
#include "diffmamba/ops/row_kernels.hpp"                          // for_blocks, ColumnSums

// With p_t the sum before the activation and W the width, out_t = act(p_t),
//
//   g_t = dout_t act'(p_t)                                       p_t is computed again from x
//   dbias = sum_t g_t,     dweight_w = sum_t g_t x_{t - (W - 1) + w}
//   dx_s  = sum_w weight_w g_{s + (W - 1) - w}                   g = 0 past the end
//
// and dx_s for s < 0 is the gradient of the initial state. The last W - 1 inputs (which reach into the initial state
// when the sequence is shorter) are the final state and receive its gradient too.
//
// A run of tokens walks forward and keeps the last W rows of g in a ring; row g_t completes dx_{t - (W - 1)}. A run
// looks W - 1 tokens past its end, whose g the next run computes again. The sums of the parameters are kept per tile of
// runs.

namespace diffmamba::causal_conv1d {
namespace detail {

/// Where a tile keeps what it adds up: lines of all channels.
template <class A>
struct TileLines {
  A *ring, *dweight, *dbias;  // (width, stride), (width, stride), (stride)
  Index stride;
};

/// One run of tokens.
template <int Width, class T>
struct RunBackward {
  using A = accumulate_t<T>;
  Sequence<Width, T> from;
  TileLines<A> lines;
  bool silu;

  A* ring_row(Index t) const { return lines.ring + t % from.width() * lines.stride; }

  /// g_t into the ring.
  template <class Block>
  ChannelLanes<A> gradient(Index t, const T* dout, A* ring, Index c, Block block) const {
    ChannelLanes<A> g = block.load(dout + c);
    if (silu) {
      const ChannelLanes<A> p = from.sum(t, c, block);
      g *= silu_derivative(p, ChannelLanes<A>(sigmoid(p)));
    }
    block.store(ring + c, g);
    return g;
  }
  /// g_t x_{t - (W - 1) + w} to the sums of dweight_w, g_t to that of dbias.
  template <class Block>
  void add_to_parameters(Index t, const ChannelLanes<A>& g, Index c, Block block) const {
    if (lines.dbias) block.store(lines.dbias + c, ChannelLanes<A>(block.load(lines.dbias + c) + g));
    if (!lines.dweight) return;
    const Index first = t - (from.width() - 1);
    A* line = lines.dweight + c;
    if (first >= 0) {
      const T* x = from.x + first * from.x_stride + c;
      for (Index w = 0; w < from.width(); ++w, line += lines.stride, x += from.x_stride)
        block.store(line, ChannelLanes<A>(block.load(line) + g * block.load(x)));
    } else {
      for (Index w = 0; w < from.width(); ++w, line += lines.stride)
        block.store(line, ChannelLanes<A>(block.load(line) + g * from.input(first + w, c, block)));
    }
  }
  /// dx_s from g_s, ..., g_{s + W - 1} in the ring; those before 0 are 0.
  template <class Block>
  ChannelLanes<A> input_gradient(Index s, Index c, Block block) const {
    ChannelLanes<A> result = ChannelLanes<A>::Zero();
    const A* weight = from.weight + c;
    for (Index w = 0; w < from.width(); ++w, weight += from.weight_stride) {
      const Index t = s + from.width() - 1 - w;
      if (t < 0) break;
      result += block.load(weight) * block.load(static_cast<const A*>(ring_row(t) + c));
    }
    return result;
  }
};

template <int Width, class T>
void convolve_backward(const Inputs<T>& in, const Options& options, const OutputGradients<T>& upstream,
                       const GradientViews<T>& gradients, const accumulate_t<T>* weight, Workspace<cpu>& workspace,
                       GradientMode mode) {
  using A = accumulate_t<T>;
  const Index batch = in.x.extent(0), length = in.x.extent(1), channels = in.x.extent(2);
  const Index width = in.weight.extent(1), state = width - 1;
  const View<const T, 3>& dout = upstream.dout;
  const View<T, 3>& dx = gradients.dx;
  const bool silu = options.activation == Activation::silu;
  const Runs runs(batch, length);

  // One line of sums for each weight of a filter, then the bias; every tile's ring has `width` lines as well.
  const ColumnSums<A> dweight =
      gradients.dweight ? ColumnSums<A>(workspace, runs.tiles, width * channels) : ColumnSums<A>();
  const ColumnSums<A> dbias = gradients.dbias ? ColumnSums<A>(workspace, runs.tiles, channels) : ColumnSums<A>();
  const ColumnSums<A> rings(workspace, runs.tiles, width * channels);

  parallel_for(runs.tiles, [&](Index tile) {
    A* const dweight_line = dweight ? dweight.start(tile) : nullptr;
    A* const dbias_line = dbias ? dbias.start(tile) : nullptr;
    A* const ring_line = rings.start(tile);
    for (Index run = tile * runs.per_tile; run < std::min(runs.total, (tile + 1) * runs.per_tile); ++run) {
      const Index b = run / runs.per_sequence, begin = run % runs.per_sequence * tile_tokens;
      const Index end = std::min(length, begin + tile_tokens);
      const Index first_s = begin == 0 ? -state : begin;
      const RunBackward<Width, T> backward{
          .from = sequence<Width>(in, weight, b),
          .lines = {.ring = ring_line, .dweight = dweight_line, .dbias = dbias_line, .stride = channels},
          .silu = silu};
      for (Index t = begin; t < end + state; ++t) {
        // Row t of g, which is 0 past the end, and what it adds to the parameters' gradients.
        A* const ring = backward.ring_row(t);
        if (t < length && dout) {
          const T* const dout_row = dout.pointer(b, t);
          for_blocks<A>(channels, [&](Index c, auto block) {
            const ChannelLanes<A> g = backward.gradient(t, dout_row, ring, c, block);
            if (t < end) backward.add_to_parameters(t, g, c, block);
          });
        } else {
          std::fill_n(ring, channels, A(0));
        }
        // It completes the gradient of x_s, or of a column of the initial state.
        const Index s = t - state;
        if (s < first_s || (s >= 0 ? !dx : !gradients.dinitial_state)) continue;
        const A* const dfinal = upstream.dfinal_state && s >= length - state
                                    ? upstream.dfinal_state.pointer(b, Index{0}, s - (length - state))
                                    : nullptr;
        const Index dfinal_stride = upstream.dfinal_state.stride(1);
        const auto complete = [&](Index c, auto block) {
          ChannelLanes<A> d = backward.input_gradient(s, c, block);
          if (dfinal) d += block.gather(dfinal + c * dfinal_stride, dfinal_stride);
          return d;
        };
        if (s >= 0) {
          T* const dx_row = dx.pointer(b, s);
          for_blocks<A>(channels, [&](Index c, auto block) { block.store(dx_row + c, complete(c, block)); });
        } else {
          A* const column = gradients.dinitial_state.pointer(b, Index{0}, s + state);
          const Index stride = gradients.dinitial_state.stride(1);
          for_blocks<A>(channels,
                        [&](Index c, auto block) { block.scatter(column + c * stride, stride, complete(c, block)); });
        }
      }
    }
  });

  dbias.write(gradients.dbias, mode);
  if (gradients.dweight)
    for (Index w = 0; w < width; ++w)
      for_blocks<A>(channels, [&](Index c, auto block) {
        ChannelLanes<A> sum = dweight.total(w * channels + c, block);
        A* const to = gradients.dweight.pointer(c, w);
        const Index stride = gradients.dweight.stride(0);
        if (mode == GradientMode::add) sum += block.gather(static_cast<const A*>(to), stride);
        block.scatter(to, stride, sum);
      });
}

}  // namespace detail

/// Writes into the caller's memory and allocates nothing.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  using A = accumulate_t<T>;
  check(in, upstream, gradients);
  const auto mark = workspace.mark();
  const A* const weight = detail::transposed<A>(in.weight, workspace);
  if (in.weight.extent(1) == 4)
    detail::convolve_backward<4, T>(in, saved.options, upstream, gradients, weight, workspace, mode);
  else
    detail::convolve_backward<0, T>(in, saved.options, upstream, gradients, weight, workspace, mode);
  workspace.reset(mark);
}

/// The same into new memory, on either device.
template <class T, Device D>
Gradients<T, D> backward(const Inputs<T, D>& in, const Saved<T, D>& saved,
                         const std::type_identity_t<OutputGradients<T, D>>& upstream) {
  using A = accumulate_t<T>;
  check(in);
  Gradients<T, D> d;
  d.dx = Tensor<T, 3, D>::uninitialized(in.x.extents());
  d.dweight = Tensor<A, 2, D>::uninitialized(in.weight.extents());
  if (in.bias) d.dbias = Tensor<A, 1, D>::uninitialized(in.bias.extents());
  if (in.initial_state) d.dinitial_state = Tensor<A, 3, D>::uninitialized(in.initial_state.extents());
  Workspace<D> workspace(workspace_bytes(in));
  backward<T>(
      in, saved, upstream,
      GradientViews<T, D>{.dx = d.dx, .dweight = d.dweight, .dbias = d.dbias, .dinitial_state = d.dinitial_state},
      workspace);
  return d;
}

}  // namespace diffmamba::causal_conv1d
