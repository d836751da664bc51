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

template <int Width, class T>
class RunBackward {
 public:
  using A = accumulate_t<T>;

  RunBackward(const Sequence<Width, T>& from, bool silu, Index length, const T* dout, Index dout_stride,
              const TileLines<A>& lines)
      : from_(from), silu_(silu), length_(length), dout_(dout), dout_stride_(dout_stride), lines_(lines) {}

  /// g_t into the ring; `sums`: the tokens of this run also add to the parameters' gradients.
  template <class Block>
  void compute(Index t, Index c, Block block, bool sums) const {
    A* const ring = lines_.ring + t % from_.width() * lines_.stride + c;
    if (t >= length_ || !dout_) {
      block.store(ring, ChannelLanes<A>(ChannelLanes<A>::Zero()));
      return;
    }
    ChannelLanes<A> g = block.load(dout_ + t * dout_stride_ + c);
    if (silu_) {
      const ChannelLanes<A> p = from_.sum(t, c, block);
      g *= silu_derivative(p, ChannelLanes<A>(sigmoid(p)));
    }
    block.store(ring, g);
    if (!sums) return;
    if (lines_.dbias) block.store(lines_.dbias + c, ChannelLanes<A>(block.load(lines_.dbias + c) + g));
    if (lines_.dweight)
      for (Index w = 0; w < from_.width(); ++w) {
        A* const line = lines_.dweight + w * lines_.stride + c;
        block.store(line, ChannelLanes<A>(block.load(line) + g * from_.input(t - (from_.width() - 1) + w, c, block)));
      }
  }

  /// dx_s from g_s, ..., g_{s + W - 1} in the ring; those before 0 are 0.
  template <class Block>
  ChannelLanes<A> input_gradient(Index s, Index c, Block block) const {
    ChannelLanes<A> result = ChannelLanes<A>::Zero();
    for (Index w = 0; w < from_.width(); ++w) {
      const Index t = s + from_.width() - 1 - w;
      if (t < 0) break;
      result += block.load(from_.weight + w * from_.weight_stride + c) *
                block.load(lines_.ring + t % from_.width() * lines_.stride + c);
    }
    return result;
  }

 private:
  Sequence<Width, T> from_;
  bool silu_;
  Index length_;
  const T* dout_;
  Index dout_stride_;
  TileLines<A> lines_;
};

template <int Width, class T>
void convolve_backward(const Inputs<T>& in, const Options& options, const OutputGradients<T>& upstream,
                       const GradientViews<T>& gradients, const accumulate_t<T>* weight, Workspace<cpu>& workspace,
                       GradientMode mode) {
  using A = accumulate_t<T>;
  const Index batch = in.x.extent(0), length = in.x.extent(1), all_channels = in.x.extent(2);
  const Index width = in.weight.extent(1), state = width - 1;
  const Index paths = most_paths(in.x, upstream.dout, gradients.dx);
  const View<const T, 4> x = in.x.pieces(paths);
  const View<const T, 4> dout = upstream.dout ? upstream.dout.pieces(paths) : View<const T, 4>{};
  const View<T, 4> dx = gradients.dx ? gradients.dx.pieces(paths) : View<T, 4>{};
  const Index channels = x.extent(3);
  const bool silu = options.activation == Activation::silu;
  const Runs runs(batch, length);

  // One line of sums for each weight of a filter, then the bias; every tile's ring has `width` lines as well.
  const ColumnSums<A> dweight =
      gradients.dweight ? ColumnSums<A>(workspace, runs.tiles, width * all_channels) : ColumnSums<A>();
  const ColumnSums<A> dbias = gradients.dbias ? ColumnSums<A>(workspace, runs.tiles, all_channels) : ColumnSums<A>();
  const ColumnSums<A> rings(workspace, runs.tiles, width * all_channels);

  parallel_for(runs.tiles, [&](Index tile) {
    A* const dweight_line = dweight ? dweight.start(tile) : nullptr;
    A* const dbias_line = dbias ? dbias.start(tile) : nullptr;
    A* const ring_line = rings.start(tile);
    for (Index run = tile * runs.per_tile; run < std::min(runs.total, (tile + 1) * runs.per_tile); ++run) {
      const Index b = run / runs.per_sequence, begin = run % runs.per_sequence * tile_tokens;
      const Index end = std::min(length, begin + tile_tokens);
      const Index first_s = begin == 0 ? -state : begin;
      for (Index piece = 0; piece < paths; ++piece)
        for (Index c0 = 0; c0 < channels; c0 += tile_channels) {
          const Index strip = std::min(channels - c0, tile_channels), offset = piece * channels;
          const RunBackward<Width, T> backward(sequence<Width>(in, x, weight, b, piece), silu, length,
                                               dout ? dout.pointer(b, Index{0}, piece) : nullptr, dout.stride(1),
                                               {.ring = ring_line + offset,
                                                .dweight = dweight_line ? dweight_line + offset : nullptr,
                                                .dbias = dbias_line ? dbias_line + offset : nullptr,
                                                .stride = all_channels});
          for (Index t = begin; t < end + state; ++t) {
            const Index s = t - state;
            for_blocks<A>(strip, [&](Index i, auto block) {
              const Index c = c0 + i;
              backward.compute(t, c, block, t < end);
              if (s < first_s || (s >= 0 ? !dx : !gradients.dinitial_state)) return;
              ChannelLanes<A> d = backward.input_gradient(s, c, block);
              if (upstream.dfinal_state && s >= length - state)
                d += block.gather(upstream.dfinal_state.pointer(b, offset + c, s - (length - state)),
                                  upstream.dfinal_state.stride(1));
              if (s >= 0)
                block.store(dx.pointer(b, s, piece, c), d);
              else
                block.scatter(gradients.dinitial_state.pointer(b, offset + c, s + state),
                              gradients.dinitial_state.stride(1), d);
            });
          }
        }
    }
  });

  dbias.write(gradients.dbias, mode);
  if (gradients.dweight)
    for (Index w = 0; w < width; ++w)
      for_blocks<A>(all_channels, [&](Index c, auto block) {
        ChannelLanes<A> sum = dweight.total(w * all_channels + c, block);
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

template <class T>
Gradients<T> backward(const Inputs<T>& in, const Saved<T>& saved,
                      const std::type_identity_t<OutputGradients<T>>& upstream) {
  using A = accumulate_t<T>;
  check(in);
  Gradients<T> d;
  d.dx = Tensor<T, 3>::uninitialized(in.x.extents());
  d.dweight = Tensor<A, 2>::uninitialized(in.weight.extents());
  if (in.bias) d.dbias = Tensor<A, 1>::uninitialized(in.bias.extents());
  if (in.initial_state) d.dinitial_state = Tensor<A, 3>::uninitialized(in.initial_state.extents());
  Workspace<cpu> workspace(workspace_bytes(in));
  backward<T>(in, saved, upstream,
              GradientViews<T>{.dx = d.dx, .dweight = d.dweight, .dbias = d.dbias, .dinitial_state = d.dinitial_state},
              workspace);
  return d;
}

}  // namespace diffmamba::causal_conv1d
