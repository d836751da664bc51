// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/rms_norm/rms_norm.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"  // detail::StreamRow
#include "diffmamba/ops/row_kernels.hpp"                // for_blocks, ColumnSums

// One row of n channels, s = 1 / sqrt(mean(r^2) + eps), h = s r its normalised values, out = scale (h w + b). With
//
//   g = scale (w dout + w1 dout1) = dL/dh,         ds/dr_j = -s^3 r_j / n,         dh_i/dr_j = s (i == j) - s h_i h_j /
//   n,
//
//   dL/dr = s (g - h mean(g h)) + dresidual_out                                    (mean over the row's channels)
//
// layer_norm has h = s (r - m), which also takes the mean out of the gradient: dL/dr = s (g - mean(g) - h mean(g h)) +
// ... From r = rowscale x + x1 + residual: dx = rowscale dr, dx1 = dresidual = dr, drowscale = <dr, x> of the row. And
// over all rows dweight = scale sum(dout h), dbias = scale sum(dout), the same with dout1.
//
// Two passes over a row, the second from the cache: the two means and the sums of the parameters, then dr.

namespace diffmamba::rms_norm {

namespace detail {

template <class T>
Index gradient_tiles(const Inputs<T>& in) {
  const Index rows = in.x.extent(0) * in.x.extent(1);
  return tiles_of(rows, rows_per_tile(rows));
}

/// Both norms. `mean` is absent in rms_norm.
template <bool Centred, class T>
void add_norm_backward(const Inputs<T>& in, const Options& options, const View<const accumulate_t<T>, 2>& mean_in,
                       const View<const accumulate_t<T>, 2>& rstd_in, const OutputGradients<T>& upstream,
                       const GradientViews<T>& gradients, Workspace<cpu>& workspace, GradientMode mode) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  const Index tile_rows = rows_per_tile(rows), tiles = gradient_tiles(in);
  const A per_channel = channels > 0 ? A(1) / static_cast<A>(channels) : A(0);
  const A scale = static_cast<A>(options.scale);
  const bool to_stream = gradients.dx || gradients.dx1 || gradients.dresidual || gradients.drowscale || gradients.out;
  require(in.x || upstream.residual_out || in.x.size() == 0, "norm: x has no memory and residual_out is not given");
  require(in.x || !gradients.drowscale, "norm: drowscale needs the values of x");

  const auto mark = workspace.mark();
  const auto sums_for = [&](const View<A, 1>& gradient) {
    return gradient ? ColumnSums<A>(workspace, tiles, channels) : ColumnSums<A>();
  };
  const ColumnSums<A> dweight = sums_for(gradients.dweight), dbias = sums_for(gradients.dbias);
  const ColumnSums<A> dweight1 = sums_for(gradients.dweight1), dbias1 = sums_for(gradients.dbias1);

  parallel_for(tiles, [&](Index tile) {
    A* const dw = dweight ? dweight.start(tile) : nullptr;
    A* const db = dbias ? dbias.start(tile) : nullptr;
    A* const dw1 = dweight1 ? dweight1.start(tile) : nullptr;
    A* const db1 = dbias1 ? dbias1.start(tile) : nullptr;
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row) {
      const StreamRow<T> stream(in, row);
      const A* const kept = upstream.residual_out ? row_pointer(upstream.residual_out, row) : nullptr;
      const T* const dout = upstream.dout ? row_pointer(upstream.dout, row) : nullptr;
      const T* const dout1 = upstream.dout1 ? row_pointer(upstream.dout1, row) : nullptr;
      const A* const dr_out = upstream.dresidual_out ? row_pointer(upstream.dresidual_out, row) : nullptr;
      const A rstd = *row_pointer(rstd_in, row);
      A mean = 0;
      if constexpr (Centred) mean = *row_pointer(mean_in, row);
      const auto normalised = [&](Index c, auto block) -> ChannelLanes<A> {
        const ChannelLanes<A> r = kept ? block.load(kept + c) : stream.sum(c, block);
        if constexpr (Centred)
          return (r - mean) * rstd;
        else
          return r * rstd;
      };
      const auto upstream_of_normalised = [&](Index c, auto block) -> ChannelLanes<A> {
        ChannelLanes<A> g = ChannelLanes<A>::Zero();
        if (dout) g = block.load(in.weight.data() + c) * block.load(dout + c);
        if (dout1) g += block.load(in.weight1.data() + c) * block.load(dout1 + c);
        return g * scale;
      };

      ChannelLanes<A> g_sums = ChannelLanes<A>::Zero(), gh_sums = ChannelLanes<A>::Zero();
      for_blocks<A>(channels, [&](Index c, auto block) {
        const ChannelLanes<A> h = normalised(c, block), g = upstream_of_normalised(c, block);
        g_sums += g;
        gh_sums += g * h;
        if (dout) {
          const ChannelLanes<A> d = block.load(dout + c) * scale;
          if (dw) add_to<A>(dw, c, d * h);
          if (db) add_to<A>(db, c, d);
        }
        if (dout1) {
          const ChannelLanes<A> d = block.load(dout1 + c) * scale;
          if (dw1) add_to<A>(dw1, c, d * h);
          if (db1) add_to<A>(db1, c, d);
        }
      });
      if (!to_stream) continue;
      const A g_mean = Centred ? g_sums.sum() * per_channel : A(0), gh_mean = gh_sums.sum() * per_channel;

      T* const dx = gradients.dx ? row_pointer(gradients.dx, row) : nullptr;
      T* const dx1 = gradients.dx1 ? row_pointer(gradients.dx1, row) : nullptr;
      A* const dresidual = gradients.dresidual ? row_pointer(gradients.dresidual, row) : nullptr;
      T* const out = gradients.out ? row_pointer(gradients.out, row) : nullptr;
      ChannelLanes<A> x_sums = ChannelLanes<A>::Zero();
      for_blocks<A>(channels, [&](Index c, auto block) {
        const ChannelLanes<A> h = normalised(c, block), g = upstream_of_normalised(c, block);
        if (out) block.store(out + c, ChannelLanes<A>(scale * affine<A>(c, block, h, in.weight, in.bias)));
        ChannelLanes<A> dr = rstd * (g - g_mean - h * gh_mean);
        if (dr_out) dr += block.load(dr_out + c);
        if (gradients.drowscale) x_sums += dr * block.load(stream.x + c);
        if (dx) block.store(dx + c, ChannelLanes<A>(dr * stream.rowscale));
        if (dx1) block.store(dx1 + c, dr);
        if (dresidual) block.store(dresidual + c, dr);
      });
      if (gradients.drowscale) *row_pointer(gradients.drowscale, row) = x_sums.sum();
    }
  });
  dweight.write(gradients.dweight, mode);
  dbias.write(gradients.dbias, mode);
  dweight1.write(gradients.dweight1, mode);
  dbias1.write(gradients.dbias1, mode);
  workspace.reset(mark);
}

/// The memory of the returning forms, of both norms.
template <class T, Device D>
Gradients<T, D> allocate_gradients(const Inputs<T, D>& in) {
  using A = accumulate_t<T>;
  const Extents<3> shape = in.x.extents();
  const Extents<1> channels{shape[2]};
  Gradients<T, D> d;
  d.dx = Tensor<T, 3, D>::uninitialized(shape);
  if (in.x1) d.dx1 = Tensor<T, 3, D>::uninitialized(shape);
  if (in.residual) d.dresidual = Tensor<A, 3, D>::uninitialized(shape);
  d.dweight = Tensor<A, 1, D>::uninitialized(channels);
  if (in.bias) d.dbias = Tensor<A, 1, D>::uninitialized(channels);
  if (in.weight1) d.dweight1 = Tensor<A, 1, D>::uninitialized(channels);
  if (in.bias1) d.dbias1 = Tensor<A, 1, D>::uninitialized(channels);
  if (in.rowscale) d.drowscale = Tensor<A, 2, D>::uninitialized({shape[0], shape[1]});
  return d;
}
template <class T, Device D>
GradientViews<T, D> views_of(Gradients<T, D>& d) {
  return {.dx = d.dx,
          .dx1 = d.dx1,
          .dresidual = d.dresidual,
          .dweight = d.dweight,
          .dbias = d.dbias,
          .dweight1 = d.dweight1,
          .dbias1 = d.dbias1,
          .drowscale = d.drowscale};
}

}  // namespace detail

/// Bytes of workspace that backward takes at most.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in) {
  return 4 * diffmamba::detail::ColumnSums<accumulate_t<T>>::bytes(detail::gradient_tiles(in), in.x.extent(2));
}

/// Writes into the caller's memory and allocates nothing.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  check(in, saved.options, upstream, gradients);
  require_shape("rms_norm", "saved.rstd", saved.rstd.view(), Extents{in.x.extent(0), in.x.extent(1)});
  detail::add_norm_backward<false, T>(in, saved.options, {}, saved.rstd, upstream, gradients, workspace, mode);
}

template <class T, Device DeviceType = cpu>
Gradients<T, DeviceType> backward(const Inputs<T, DeviceType>& in, const Saved<T, DeviceType>& saved,
                                  const std::type_identity_t<OutputGradients<T, DeviceType>>& upstream) {
  check(in, saved.options, upstream, GradientViews<T, DeviceType>{});
  auto result = detail::allocate_gradients(in);
  Workspace<DeviceType> workspace(workspace_bytes(in));
  backward<T>(in, saved, upstream, detail::views_of(result), workspace);
  return result;
}

}  // namespace diffmamba::rms_norm
