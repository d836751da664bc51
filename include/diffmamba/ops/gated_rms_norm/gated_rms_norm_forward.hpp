// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::sqrt

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm.hpp"
#include "diffmamba/ops/row_kernels.hpp"  // for_blocks, row_pointer

// One group of one row at a time. Where the gate comes before the norm, the gated values are needed twice, for the mean
// of their squares and for the output; they wait in a buffer on the stack, so that the exponential of a gate is
// computed once.

namespace diffmamba::gated_rms_norm {
namespace detail {

using namespace diffmamba::detail;

/// Channels of a group whose values wait on the stack; those past it are computed again.
inline constexpr Index kept_channels = 2048;

/// Both gated norms. `mean` and `rstd` are written where they are given.
template <bool Centred, class T>
void gated_norm_forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
                        const View<accumulate_t<T>, 3>& mean_out, const View<accumulate_t<T>, 3>& rstd_out) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  if (channels == 0) return;
  const Index size = group_size(channels, options), groups = channels / size;
  const A per_channel = A(1) / static_cast<A>(size), eps = static_cast<A>(options.eps);
  const bool gate_first = in.z && !options.norm_before_gate, gate_last = in.z && options.norm_before_gate;
  const Index tile_rows = std::max<Index>(1, (Index{1} << 14) / channels);

  parallel_for(tiles_of(rows, tile_rows), [&](Index tile) {
    alignas(64) A buffer[kept_channels];
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row)
      for (Index g = 0; g < groups; ++g) {
        const Index first = g * size;
        const T* const x = row_pointer<const T>(in.x, row) + first;
        const T* const z = in.z ? row_pointer(in.z, row) + first : nullptr;
        T* const out = row_pointer<T>(outputs.out, row) + first;
        const A* const weight = in.weight.data() + first;
        const A* const bias = in.bias ? in.bias.data() + first : nullptr;

        // What is normalised: x, or x silu(z).
        const auto gated = [&](Index c, auto block) -> ChannelLanes<A> {
          ChannelLanes<A> u = block.load(x + c);
          if (gate_first) {
            const ChannelLanes<A> gate = block.load(z + c);
            u *= gate * sigmoid(gate);
          }
          return u;
        };
        const auto kept = [&](Index c, auto block) -> ChannelLanes<A> {
          return gate_first && c < kept_channels ? FullBlock::load(buffer + c) : gated(c, block);
        };
        ChannelLanes<A> sums = ChannelLanes<A>::Zero();
        for_blocks<A>(size, [&](Index c, auto block) {
          const ChannelLanes<A> u = gated(c, block);
          if (gate_first && c < kept_channels) FullBlock::store(buffer + c, u);
          if constexpr (Centred)
            sums += u;
          else
            sums += u * u;
        });
        A mean = 0;
        if constexpr (Centred) {
          mean = sums.sum() * per_channel;
          sums.setZero();
          for_blocks<A>(size, [&](Index c, auto block) {
            const ChannelLanes<A> centred = block.keep(ChannelLanes<A>(kept(c, block) - mean));
            sums += centred * centred;
          });
        }
        const A rstd = A(1) / std::sqrt(sums.sum() * per_channel + eps);

        for_blocks<A>(size, [&](Index c, auto block) {
          ChannelLanes<A> u = kept(c, block);
          if constexpr (Centred) u -= mean;
          ChannelLanes<A> y = u * rstd * block.load(weight + c);
          if (bias) y += block.load(bias + c);
          if (gate_last) {
            const ChannelLanes<A> gate = block.load(z + c);
            y *= gate * sigmoid(gate);
          }
          block.store(out + c, y);
        });
        const Index batch = row / in.x.extent(1), t = row % in.x.extent(1);
        if (mean_out) mean_out(batch, t, g) = mean;
        if (rstd_out) rstd_out(batch, t, g) = rstd;
      }
  });
}

}  // namespace detail

/// Writes into the caller's memory; with `saved` null (inference) it allocates nothing, otherwise only when saved has
/// another shape than before.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
             std::type_identity_t<Saved<T>>* saved) {
  check(in, options, outputs);
  View<accumulate_t<T>, 3> rstd;
  if (saved) {
    saved->options = options;
    reuse_or_allocate(saved->rstd, Extents{in.x.extent(0), in.x.extent(1), group_count(in.x.extent(2), options)});
    rstd = saved->rstd;
  }
  detail::gated_norm_forward<false, T>(in, options, outputs, {}, rstd);
}

template <class T, Device DeviceType = cpu>
Outputs<T, DeviceType> forward(const Inputs<T, DeviceType>& in, const Options& options = {}) {
  Outputs<T, DeviceType> result;
  result.out = Tensor<T, 3, DeviceType>::uninitialized(in.x.extents());
  forward<T>(in, options, OutputViews<T, DeviceType>{.out = result.out}, &result.saved);
  return result;
}

}  // namespace diffmamba::gated_rms_norm
