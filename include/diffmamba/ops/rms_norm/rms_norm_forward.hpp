// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::sqrt

#include "diffmamba/ops/rms_norm/rms_norm.hpp"
#include "diffmamba/ops/row_kernels.hpp"  // for_blocks, row_pointer

// A row is read from memory once: the first pass over it adds up the stream and its squares (and where asked for stores
// the stream), the last one, from the cache, normalises. Centred is layer_norm, which subtracts the mean first; its
// variance is summed over centred values, so that a large mean costs no digits.

namespace diffmamba::rms_norm {
namespace detail {

using namespace diffmamba::detail;

/// The addends of the residual stream in one row.
template <class T>
struct StreamRow {
  using A = accumulate_t<T>;
  const T *x, *x1;
  const A* residual;
  A rowscale;

  StreamRow(const Inputs<T>& in, Index row)
      : x(in.x ? row_pointer<const T>(in.x, row) : nullptr),
        x1(in.x1 ? row_pointer(in.x1, row) : nullptr),
        residual(in.residual ? row_pointer(in.residual, row) : nullptr),
        rowscale(in.rowscale ? *row_pointer(in.rowscale, row) : A(1)) {}

  template <class Block>
  ChannelLanes<A> sum(Index c, Block block) const {
    ChannelLanes<A> r = block.load(x + c) * rowscale;
    if (x1) r += block.load(x1 + c);
    if (residual) r += block.load(residual + c);
    return r;
  }
};

/// normalised weight + bias, of which the latter may be absent.
template <class A, class Block>
ChannelLanes<A> affine(Index c, Block block, const ChannelLanes<A>& normalised, const View<const A, 1>& weight,
                       const View<const A, 1>& bias) {
  ChannelLanes<A> y = normalised * block.load(weight.data() + c);
  if (bias) y += block.load(bias.data() + c);
  return y;
}

/// Both norms. `mean` and `rstd` are written where they are given.
template <bool Centred, class T>
void add_norm_forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
                      const View<accumulate_t<T>, 2>& mean_out, const View<accumulate_t<T>, 2>& rstd_out) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  const A per_channel = channels > 0 ? A(1) / static_cast<A>(channels) : A(0);
  const A eps = static_cast<A>(options.eps), scale = static_cast<A>(options.scale);
  const Index tile_rows = std::max<Index>(1, (Index{1} << 14) / std::max<Index>(1, channels));

  parallel_for(tiles_of(rows, tile_rows), [&](Index tile) {
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row) {
      const StreamRow<T> stream(in, row);
      A* const kept = outputs.residual_out ? row_pointer(outputs.residual_out, row) : nullptr;
      // Later passes read the sum where it was stored: residual_out may lie over residual.
      const auto r_at = [&](Index c, auto block) { return kept ? block.load(kept + c) : stream.sum(c, block); };

      ChannelLanes<A> sums = ChannelLanes<A>::Zero();
      for_blocks<A>(channels, [&](Index c, auto block) {
        const ChannelLanes<A> r = stream.sum(c, block);
        if (kept) block.store(kept + c, r);
        if constexpr (Centred)
          sums += r;
        else
          sums += r * r;
      });
      A mean = 0;
      if constexpr (Centred) {
        mean = sums.sum() * per_channel;
        sums.setZero();
        for_blocks<A>(channels, [&](Index c, auto block) {
          const ChannelLanes<A> centred = block.keep(ChannelLanes<A>(r_at(c, block) - mean));
          sums += centred * centred;
        });
      }
      const A rstd = A(1) / std::sqrt(sums.sum() * per_channel + eps);

      T* const out = row_pointer<T>(outputs.out, row);
      T* const out1 = outputs.out1 ? row_pointer(outputs.out1, row) : nullptr;
      for_blocks<A>(channels, [&](Index c, auto block) {
        ChannelLanes<A> r = r_at(c, block);
        if constexpr (Centred) r -= mean;
        const ChannelLanes<A> normalised = r * rstd;
        block.store(out + c, ChannelLanes<A>(scale * affine<A>(c, block, normalised, in.weight, in.bias)));
        if (out1) block.store(out1 + c, ChannelLanes<A>(scale * affine<A>(c, block, normalised, in.weight1, in.bias1)));
      });
      if (mean_out) *row_pointer(mean_out, row) = mean;
      if (rstd_out) *row_pointer(rstd_out, row) = rstd;
    }
  });
}

/// The memory of the returning forms, of both norms.
template <class T, Device DeviceType, class Outputs>
void allocate_outputs(const Inputs<T, DeviceType>& in, const Options& options, Outputs& result) {
  const Extents<3> shape = in.x.extents();
  result.out = Tensor<T, 3, DeviceType>::uninitialized(shape);
  if (in.weight1) result.out1 = Tensor<T, 3, DeviceType>::uninitialized(shape);
  if (options.prenorm) result.residual_out = Tensor<accumulate_t<T>, 3, DeviceType>::uninitialized(shape);
}
template <class T, Device DeviceType, class Outputs>
OutputViews<T, DeviceType> views_of(Outputs& result) {
  return {.out = result.out, .out1 = result.out1, .residual_out = result.residual_out};
}

}  // namespace detail

/// Writes into the caller's memory; with `saved` null (inference) it allocates nothing, otherwise only when saved has
/// another shape than before.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
             std::type_identity_t<Saved<T>>* saved) {
  check(in, options, outputs);
  View<accumulate_t<T>, 2> rstd;
  if (saved) {
    saved->options = options;
    reuse_or_allocate(saved->rstd, Extents{in.x.extent(0), in.x.extent(1)});
    rstd = saved->rstd;
  }
  detail::add_norm_forward<false>(in, options, outputs, {}, rstd);
}

template <class T, Device DeviceType = cpu>
Outputs<T, DeviceType> forward(const Inputs<T, DeviceType>& in, const Options& options = {}) {
  check(in, options);
  Outputs<T, DeviceType> result;
  detail::allocate_outputs(in, options, result);
  forward<T>(in, options, detail::views_of<T, DeviceType>(result), &result.saved);
  return result;
}

}  // namespace diffmamba::rms_norm
