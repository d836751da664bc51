// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/differential_combine/differential_combine.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"  // detail::DifferenceRow
#include "diffmamba/ops/row_kernels.hpp"                                        // for_blocks, ColumnSums

// One row of n channels. With h_i = s_i y_i (s_i = 1 without a norm before), n_i = w h_i, u = n_1 - l n_2 (l is lambda)
// and, with a norm after, H = s u, out = scale W H. From the end to the beginning, means over the row's channels:
//
//   after:    g = scale W dout,  du = s (g - H mean(g H)),  dW = scale dout H        none:  du = scale dout
//   lambda:   dl = -sum(du n_2),  dn_1 = du,  dn_2 = -l du
//   before:   dw = dn_1 h_1 + dn_2 h_2,  g_i = w dn_i,  dy_i = s_i (g_i - h_i mean(g_i h_i))   none:  dy_i = dn_i
//
// Passes over a row: one for mean(g H) with a norm after, one for du, the two means of the paths and the sums of the
// parameters, one for dy_1 and dy_2. H, then du, wait in a line of the workspace.

namespace diffmamba::differential_combine {
namespace detail {

template <class T>
Index gradient_tiles(const Inputs<T>& in) {
  const Index rows = in.y1.extent(0) * in.y1.extent(1);
  return tiles_of(rows, rows_per_tile(rows));
}

template <bool Before, bool After, class T>
void backward_rows(const Inputs<T>& in, const Saved<T>& saved, const OutputGradients<T>& upstream,
                   const GradientViews<T>& gradients, Workspace<cpu>& workspace, GradientMode mode) {
  using A = accumulate_t<T>;
  const Index channels = in.y1.extent(2), rows = in.y1.extent(0) * in.y1.extent(1);
  const Index tile_rows = rows_per_tile(rows), tiles = gradient_tiles(in);
  const A per_channel = channels > 0 ? A(1) / static_cast<A>(channels) : A(0);
  const A scale = static_cast<A>(saved.options.scale);

  const auto sums_for = [&](const View<A, 1>& gradient) {
    return gradient ? ColumnSums<A>(workspace, tiles, channels) : ColumnSums<A>();
  };
  const ColumnSums<A> dlambda = sums_for(gradients.dlambda), dnorm_weight = sums_for(gradients.dnorm_weight),
                      dsubln_weight = sums_for(gradients.dsubln_weight);
  const ColumnSums<A> lines(workspace, tiles, channels);  // a row of H, then of du, for each tile

  parallel_for(tiles, [&](Index tile) {
    A* const dl = dlambda ? dlambda.start(tile) : nullptr;
    A* const dw = dnorm_weight ? dnorm_weight.start(tile) : nullptr;
    A* const dW = dsubln_weight ? dsubln_weight.start(tile) : nullptr;
    A* const line = lines.start(tile);
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row) {
      DifferenceRow<Before, T> paths(in, row);
      const A* const kept = saved.rstd.data() + 3 * row;
      paths.rstd1 = kept[0];
      paths.rstd2 = kept[1];
      const A rstd = kept[2];
      const T* const dout = row_pointer<const T>(upstream.dout, row);

      A gH_mean = 0;
      if constexpr (After) {
        ChannelLanes<A> sums = ChannelLanes<A>::Zero();
        for_blocks<A>(channels, [&](Index c, auto block) {
          const ChannelLanes<A> H = paths.difference(c, block) * rstd, d = block.load(dout + c) * scale;
          block.store(line + c, H);
          sums += block.load(in.subln_weight.data() + c) * d * H;
          if (dW) add_to<A>(dW, c, d * H);
        });
        gH_mean = sums.sum() * per_channel;
      }

      A mean1 = 0, mean2 = 0;
      ChannelLanes<A> sums1 = ChannelLanes<A>::Zero(), sums2 = ChannelLanes<A>::Zero();
      for_blocks<A>(channels, [&](Index c, auto block) {
        ChannelLanes<A> du = block.load(dout + c) * scale;
        if constexpr (After) du = rstd * (du * block.load(in.subln_weight.data() + c) - block.load(line + c) * gH_mean);
        block.store(line + c, du);
        if constexpr (Before) {
          const ChannelLanes<A> h1 = paths.normalised1(c, block), h2 = paths.normalised2(c, block);
          const ChannelLanes<A> w = paths.weight_at(c, block), dn2 = -paths.lambda_at(c, block) * du;
          sums1 += w * du * h1;
          sums2 += w * dn2 * h2;
          if (dl) add_to<A>(dl, c, -du * w * h2);
          if (dw) add_to<A>(dw, c, du * h1 + dn2 * h2);
        } else {
          if (dl) add_to<A>(dl, c, -du * paths.normalised2(c, block));
        }
      });
      if constexpr (Before) {
        mean1 = sums1.sum() * per_channel;
        mean2 = sums2.sum() * per_channel;
      }

      T* const dy1 = gradients.dy1 ? row_pointer(gradients.dy1, row) : nullptr;
      T* const dy2 = gradients.dy2 ? row_pointer(gradients.dy2, row) : nullptr;
      if (!dy1 && !dy2) continue;
      for_blocks<A>(channels, [&](Index c, auto block) {
        ChannelLanes<A> g1 = block.load(line + c);
        if constexpr (Before) g1 *= paths.weight_at(c, block);
        ChannelLanes<A> g2 = -paths.lambda_at(c, block) * g1;
        if constexpr (Before) {
          g1 = paths.rstd1 * (g1 - paths.normalised1(c, block) * mean1);
          g2 = paths.rstd2 * (g2 - paths.normalised2(c, block) * mean2);
        }
        if (dy1) block.store(dy1 + c, g1);
        if (dy2) block.store(dy2 + c, g2);
      });
    }
  });
  if (gradients.dlambda && gradients.dlambda.extent(0) == channels) {
    dlambda.write(gradients.dlambda, mode);
  } else if (gradients.dlambda) {
    const A sum = dlambda.total();
    gradients.dlambda(0) = mode == GradientMode::add ? gradients.dlambda(0) + sum : sum;
  }
  dnorm_weight.write(gradients.dnorm_weight, mode);
  dsubln_weight.write(gradients.dsubln_weight, mode);
}

}  // namespace detail

/// Bytes of workspace that backward takes at most.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in) {
  return 4 * diffmamba::detail::ColumnSums<accumulate_t<T>>::bytes(detail::gradient_tiles(in), in.y1.extent(2));
}

/// Writes into the caller's memory and allocates nothing.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  const Options& options = saved.options;
  check(in, options, upstream, gradients);
  require_shape("differential_combine", "saved.rstd", saved.rstd.view(),
                Extents{in.y1.extent(0), in.y1.extent(1), Index{3}});
  const auto mark = workspace.mark();
  detail::with_norms(options, [&](auto before, auto after) {
    detail::backward_rows<before.value, after.value, T>(in, saved, upstream, gradients, workspace, mode);
  });
  workspace.reset(mark);
}

template <class T, Device D = cpu>
Gradients<T, D> backward(const Inputs<T, D>& in, const Saved<T, D>& saved,
                         const std::type_identity_t<OutputGradients<T, D>>& upstream) {
  using A = accumulate_t<T>;
  Gradients<T, D> d;
  d.dy1 = Tensor<T, 3, D>::uninitialized(in.y1.extents());
  d.dy2 = Tensor<T, 3, D>::uninitialized(in.y1.extents());
  if (in.lambda) d.dlambda = Tensor<A, 1, D>::uninitialized(in.lambda.extents());
  if (in.norm_weight) d.dnorm_weight = Tensor<A, 1, D>::uninitialized(in.norm_weight.extents());
  if (in.subln_weight) d.dsubln_weight = Tensor<A, 1, D>::uninitialized(in.subln_weight.extents());
  Workspace<D> workspace(workspace_bytes(in));
  backward<T>(in, saved, upstream,
              GradientViews<T, D>{.dy1 = d.dy1,
                                  .dy2 = d.dy2,
                                  .dlambda = d.dlambda,
                                  .dnorm_weight = d.dnorm_weight,
                                  .dsubln_weight = d.dsubln_weight},
              workspace);
  return d;
}

}  // namespace diffmamba::differential_combine
