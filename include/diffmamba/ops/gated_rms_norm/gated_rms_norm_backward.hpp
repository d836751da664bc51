// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"  // detail::kept_channels
#include "diffmamba/ops/row_kernels.hpp"                            // for_blocks, ColumnSums

// One group of n channels of one row. u is what is normalised, s = 1 / sqrt(mean(u^2) + eps), h = s u, y = h w + b, and
// S = silu(z) with derivative S'. As for rms_norm, from g = dL/dh:  du = s (g - h mean(g h)), and with a mean in h
// (gated_layer_norm) du = s (g - mean(g) - h mean(g h)).
//
//   norm_before_gate: u = x, out = y S      dy = dout S, g = w dy, dx = du, dz = dout y S'
//   else:             u = x S, out = y      dy = dout,   g = w dy, dx = du S, dz = du x S'
//
// and over all rows dweight = sum(dy h), dbias = sum(dy). Two passes over a group; sigmoid(z) of the first waits on the
// stack for the second.

namespace diffmamba::gated_rms_norm {
namespace detail {

template <class T>
Index gradient_tiles(const Inputs<T>& in) {
  const Index rows = in.x.extent(0) * in.x.extent(1);
  return tiles_of(rows, rows_per_tile(rows));
}

/// Both gated norms. `mean` is absent in gated_rms_norm.
template <bool Centred, class T>
void gated_norm_backward(const Inputs<T>& in, const Options& options, const View<const accumulate_t<T>, 3>& mean_in,
                         const View<const accumulate_t<T>, 3>& rstd_in, const OutputGradients<T>& upstream,
                         const GradientViews<T>& gradients, Workspace<cpu>& workspace, GradientMode mode) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  if (channels == 0) return;
  const Index tile_rows = rows_per_tile(rows), tiles = gradient_tiles(in);
  const Index size = group_size(channels, options), groups = channels / size;
  const A per_channel = A(1) / static_cast<A>(size);
  const bool has_z = bool(in.z), norm_first = options.norm_before_gate;

  const auto mark = workspace.mark();
  const ColumnSums<A> dweight = gradients.dweight ? ColumnSums<A>(workspace, tiles, channels) : ColumnSums<A>();
  const ColumnSums<A> dbias = gradients.dbias ? ColumnSums<A>(workspace, tiles, channels) : ColumnSums<A>();

  parallel_for(tiles, [&](Index tile) {
    alignas(64) A buffer[kept_channels];
    A* const dw_line = dweight ? dweight.start(tile) : nullptr;
    A* const db_line = dbias ? dbias.start(tile) : nullptr;
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row)
      for (Index g = 0; g < groups; ++g) {
        const Index first = g * size, batch = row / in.x.extent(1), t = row % in.x.extent(1);
        const T* const x = row_pointer<const T>(in.x, row) + first;
        const T* const z = has_z ? row_pointer(in.z, row) + first : nullptr;
        const T* const dout = row_pointer<const T>(upstream.dout, row) + first;
        T* const dx = gradients.dx ? row_pointer(gradients.dx, row) + first : nullptr;
        T* const dz = gradients.dz ? row_pointer(gradients.dz, row) + first : nullptr;
        T* const out = gradients.out ? row_pointer(gradients.out, row) + first : nullptr;
        const A* const weight = in.weight.data() + first;
        const A* const bias = in.bias ? in.bias.data() + first : nullptr;
        const A rstd = rstd_in(batch, t, g);
        A mean = 0;
        if constexpr (Centred) mean = mean_in(batch, t, g);

        // Everything about one block of channels that both passes need; s is sigmoid(z).
        struct Values {
          ChannelLanes<A> x, z, s, h, dy, g;
        };
        const auto values = [&](Index c, auto block, const ChannelLanes<A>& s) {
          Values v;
          v.x = block.load(x + c);
          v.dy = block.load(dout + c);
          v.h = v.x;
          if (has_z) {
            v.z = block.load(z + c);
            v.s = s;
            (norm_first ? v.dy : v.h) *= v.z * s;
          }
          if constexpr (Centred) v.h -= mean;
          v.h *= rstd;
          v.g = v.dy * block.load(weight + c);
          return v;
        };
        const auto sigmoid_of_z = [&](Index c, auto block) -> ChannelLanes<A> {
          return has_z ? sigmoid(ChannelLanes<A>(block.load(z + c))) : ChannelLanes<A>::Zero();
        };

        ChannelLanes<A> g_sums = ChannelLanes<A>::Zero(), gh_sums = ChannelLanes<A>::Zero();
        for_blocks<A>(size, [&](Index c, auto block) {
          const ChannelLanes<A> s = sigmoid_of_z(c, block);
          if (c < kept_channels) FullBlock::store(buffer + c, s);
          const Values v = values(c, block, s);
          g_sums += v.g;
          gh_sums += v.g * v.h;
          // Lines are padded only behind the last channel: a tail inside them is added by its own lanes.
          const Index line = first + c;
          if (dw_line) block.store(dw_line + line, ChannelLanes<A>(block.load(dw_line + line) + v.dy * v.h));
          if (db_line) block.store(db_line + line, ChannelLanes<A>(block.load(db_line + line) + v.dy));
        });
        if (!dx && !dz && !out) continue;
        const A g_mean = Centred ? g_sums.sum() * per_channel : A(0), gh_mean = gh_sums.sum() * per_channel;

        for_blocks<A>(size, [&](Index c, auto block) {
          const Values v = values(c, block, c < kept_channels ? FullBlock::load(buffer + c) : sigmoid_of_z(c, block));
          const ChannelLanes<A> du = rstd * (v.g - g_mean - v.h * gh_mean);
          ChannelLanes<A> y = v.h * block.load(weight + c);
          if (bias) y += block.load(bias + c);
          if (out) block.store(out + c, has_z && norm_first ? ChannelLanes<A>(y * (v.z * v.s)) : y);
          if (!has_z || norm_first) {
            if (dz) {
              const ChannelLanes<A> d = block.load(dout + c);
              block.store(dz + c, ChannelLanes<A>(d * y * silu_derivative(v.z, v.s)));
            }
            if (dx) block.store(dx + c, du);
          } else {
            if (dz) block.store(dz + c, ChannelLanes<A>(du * v.x * silu_derivative(v.z, v.s)));
            if (dx) block.store(dx + c, ChannelLanes<A>(du * v.z * v.s));
          }
        });
      }
  });
  dweight.write(gradients.dweight, mode);
  dbias.write(gradients.dbias, mode);
  workspace.reset(mark);
}

/// The memory of the returning forms, of both gated norms.
template <class T, Device D>
Gradients<T, D> allocate_gradients(const Inputs<T, D>& in) {
  using A = accumulate_t<T>;
  Gradients<T, D> d;
  d.dx = Tensor<T, 3, D>::uninitialized(in.x.extents());
  if (in.z) d.dz = Tensor<T, 3, D>::uninitialized(in.x.extents());
  d.dweight = Tensor<A, 1, D>::uninitialized(Extents{in.x.extent(2)});
  if (in.bias) d.dbias = Tensor<A, 1, D>::uninitialized(Extents{in.x.extent(2)});
  return d;
}
template <class T, Device D>
GradientViews<T, D> views_of(Gradients<T, D>& d) {
  return {.dx = d.dx, .dz = d.dz, .dweight = d.dweight, .dbias = d.dbias, .out = {}};
}

}  // namespace detail

/// Bytes of workspace that backward takes at most.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in) {
  return 2 * diffmamba::detail::ColumnSums<accumulate_t<T>>::bytes(detail::gradient_tiles(in), in.x.extent(2));
}

/// Writes into the caller's memory and allocates nothing.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  check(in, saved.options, upstream, gradients);
  require_shape("gated_rms_norm", "saved.rstd", saved.rstd.view(),
                Extents{in.x.extent(0), in.x.extent(1), group_count(in.x.extent(2), saved.options)});
  detail::gated_norm_backward<false, T>(in, saved.options, {}, saved.rstd, upstream, gradients, workspace, mode);
}

template <class T, Device DeviceType = cpu>
Gradients<T, DeviceType> backward(const Inputs<T, DeviceType>& in, const Saved<T, DeviceType>& saved,
                                  const std::type_identity_t<OutputGradients<T, DeviceType>>& upstream) {
  auto result = detail::allocate_gradients(in);
  Workspace<DeviceType> workspace(workspace_bytes(in));
  backward<T>(in, saved, upstream, detail::views_of(result), workspace);
  return result;
}

}  // namespace diffmamba::gated_rms_norm
