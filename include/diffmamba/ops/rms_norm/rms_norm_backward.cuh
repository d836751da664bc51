// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::max

#include "diffmamba/ops/rms_norm/rms_norm_forward.cuh"  // detail::GpuStreamRow

/// The backward pass of both norms on an NVIDIA GPU; rms_norm_backward.hpp derives the formulas. One launch reads every
/// row once, writes the gradients of the stream and keeps the sums of the parameters per block; a second adds those up.
namespace diffmamba::rms_norm {
namespace detail {

/// dL/d(dweight), dbias, dweight1 and dbias1, in this order.
inline constexpr int all_sums = 4;
/// Rows of a group of threads in shared memory: the present one and the next.
inline constexpr int stages = 2;

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// x alone, without a residual stream.
template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, sum_blocks_each<Shape>)
    norm_backward_kernel(const __grid_constant__ View<const T, 3, cuda> x_rows,
                         const __grid_constant__ View<const T, 3, cuda> dout_rows,
                         const __grid_constant__ View<T, 3, cuda> dx_rows, const accumulate_t<T>* weights,
                         const accumulate_t<T>* mean_in, const accumulate_t<T>* rstd_in,
                         const __grid_constant__ LineSums<accumulate_t<T>, (Centred ? 2 : 1)> sums,
                         double scale_given) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors, Sums = Centred ? 2 : 1;
  const Index length = x_rows.extent(1), rows = x_rows.extent(0) * length;
  const int channels = static_cast<int>(x_rows.extent(2));
  const bool several = Shape::cut(channels);
  const A per_channel = A(1) / static_cast<A>(channels), scale = static_cast<A>(scale_given);
  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue_x(free, true), queue_dout(free, true);
  RowSums<Shape, A, Sums> over_row;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  ColumnLines<Shape, A, Sums> columns(sums, Index{blockIdx.x} * channels, channels);
  const RowParameter<Shape, A> weights_of(weights, channels);
  RowNumber<Shape, A> rstds(rstd_in, 1, blockIdx.x, gridDim.x, rows), means(mean_in, 1, blockIdx.x, gridDim.x, rows);

  const auto fetch = [&](Index row, int stage) {
    const RowPosition at(row, length);
    queue_x.fetch(stage, at.of(x_rows), channels);
    queue_dout.fetch(stage, at.of(dout_rows), channels);
  };
  for_rows<Shape, stages>(blockIdx.x, gridDim.x, rows, fetch, [&](Index row, bool there, int stage) {
    const int count = there ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(there ? row : 0, length);
    const T* const x = at.of(x_rows);
    const T* const dout = at.of(dout_rows);
    const A rstd = rstds.next(row), mean = Centred ? means.next(row) : A(0);
    StoredUnit<T, Unit> xs[Vectors], ds[Vectors];
    const auto load = [&](int tile) {
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        queue_x.unit(c < count, stage, v, x, c, xs[v]);
        queue_dout.unit(c < count, stage, v, dout, c, ds[v]);
      }
    };
    // Without the scale, which all that follows is proportional to: means of g h and of g.
    A sum[Sums] = {};
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      load(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        A weight[Unit], dh[Unit], d[Unit];
        weights_of.unit(c < count, v, c, weight);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          d[i] = ds[v][i];
          dh[i] = d[i] * ((xs[v][i] - mean) * rstd);
          sum[0] += weight[i] * dh[i];
          if constexpr (Centred) sum[1] += weight[i] * d[i];
        }
        columns.add(0, v, c, c < count, dh);
        if constexpr (Centred) columns.add(1, v, c, c < count, d);
      }
    }
    if (!dx_rows) return;
    over_row(sum);
    const A gh_mean = sum[0] * per_channel, g_mean = Centred ? sum[Sums - 1] * per_channel : A(0);
    const A factor = scale * rstd;
    T* const dx = at.of(dx_rows);
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      if (several) load(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (c >= count) continue;
        A weight[Unit], dr[Unit];
        weights_of.unit(true, v, c, weight);
#pragma unroll
        for (int i = 0; i < Unit; ++i)
          dr[i] = factor * (weight[i] * ds[v][i] - g_mean - (xs[v][i] - mean) * rstd * gh_mean);
        store_unit(dx + c, dr);
      }
    }
  });
  columns.finish(shared, scale);
}

/// `Sums` is how many of the four sums of parameters there may be; without dout1 they are the first one or two. What is
/// read of every row in a model, dout, the kept sum and dresidual_out, comes ahead of its use.
template <bool Centred, int Sums, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, sum_blocks_each<Shape>)
    add_norm_backward_kernel(const __grid_constant__ Inputs<T, cuda> in, const accumulate_t<T>* mean_in,
                             const accumulate_t<T>* rstd_in, const __grid_constant__ OutputGradients<T, cuda> upstream,
                             const __grid_constant__ GradientViews<T, cuda> gradients,
                             const __grid_constant__ LineSums<accumulate_t<T>, Sums> sums, double scale_given,
                             bool to_stream) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors, Means = Centred ? 2 : 1;
  const Index length = in.x.extent(1), rows = in.x.extent(0) * length;
  const int channels = static_cast<int>(in.x.extent(2));
  const bool several = Shape::cut(channels);
  const A per_channel = A(1) / static_cast<A>(channels), scale = static_cast<A>(scale_given);
  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue_dout(free, bool(upstream.dout));
  const RowQueue<Shape, A, stages> queue_kept(free, bool(upstream.residual_out)),
      queue_dr(free, bool(upstream.dresidual_out));
  RowSums<Shape, A, Means> over_row;
  RowSums<Shape, A, 1, 1> over_row_x;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  ColumnLines<Shape, A, Sums> columns(sums, Index{blockIdx.x} * channels, channels);
  const RowParameter<Shape, A> weights_of(in.weight.data(), channels);
  RowNumber<Shape, A> rstds(rstd_in, 1, blockIdx.x, gridDim.x, rows), means(mean_in, 1, blockIdx.x, gridDim.x, rows);

  const auto fetch = [&](Index row, int stage) {
    const RowPosition at(row, length);
    if (upstream.dout) queue_dout.fetch(stage, at.of(upstream.dout), channels);
    if (upstream.residual_out) queue_kept.fetch(stage, at.of(upstream.residual_out), channels);
    if (upstream.dresidual_out) queue_dr.fetch(stage, at.of(upstream.dresidual_out), channels);
  };
  for_rows<Shape, stages>(blockIdx.x, gridDim.x, rows, fetch, [&](Index row, bool there, int stage) {
    const int count = there ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(there ? row : 0, length);
    const GpuStreamRow<Shape, T> stream(in, at);
    const A* const kept = at.of(upstream.residual_out);
    const T* const dout = at.of(upstream.dout);
    const T* const dout1 = Sums == all_sums ? at.of(upstream.dout1) : nullptr;
    const A rstd = rstds.next(row), mean = Centred ? means.next(row) : A(0);
    A h[Vectors][Unit], g[Vectors][Unit];  // normalised, and dL/d(normalised)
    const auto load = [&](int tile, bool add_columns) {
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (kept != nullptr) {
          StoredUnit<A, Unit> stored;
          queue_kept.unit(c < count, stage, v, kept, c, stored);
#pragma unroll
          for (int i = 0; i < Unit; ++i) h[v][i] = stored[i];
        } else {
          stream.load(c, count, h[v]);
        }
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          h[v][i] = (h[v][i] - mean) * rstd;
          g[v][i] = 0;
        }
        const auto add = [&](const StoredUnit<T, Unit>& from, const A(&weight)[Unit], int sum) {
          A d[Unit], dh[Unit];
#pragma unroll
          for (int i = 0; i < Unit; ++i) {
            d[i] = from[i] * scale;
            g[v][i] += d[i] * weight[i];
            dh[i] = d[i] * h[v][i];
          }
          if (!add_columns) return;
          columns.add(sum, v, c, c < count, dh);
          if (sum + 1 < Sums) columns.add(sum + 1, v, c, c < count, d);
        };
        StoredUnit<T, Unit> from;
        A weight[Unit];
        if (dout != nullptr) {
          queue_dout.unit(c < count, stage, v, dout, c, from);
          weights_of.unit(c < count, v, c, weight);
          add(from, weight, 0);
        }
        if (dout1 != nullptr) {
          from.load_if(c < count, dout1 + c);
          load_unit_if(c < count, in.weight1.data() + c, weight);
          add(from, weight, 2);
        }
      }
    };

    A sum[Means] = {};  // of g h, and of g
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      load(tile, true);
#pragma unroll
      for (int v = 0; v < Vectors; ++v)
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          sum[0] += g[v][i] * h[v][i];
          if constexpr (Centred) sum[1] += g[v][i];
        }
    }
    if (!to_stream) return;
    over_row(sum);
    const A gh_mean = sum[0] * per_channel, g_mean = Centred ? sum[Means - 1] * per_channel : A(0);

    T* const dx = at.of(gradients.dx);
    T* const dx1 = at.of(gradients.dx1);
    A* const dresidual = at.of(gradients.dresidual);
    T* const out = at.of(gradients.out);
    const A* const dr_out = at.of(upstream.dresidual_out);
    A x_sum[1] = {0};
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      if (several) load(tile, false);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (c >= count) continue;
        if (out != nullptr) store_normalised(h[v], scale, in.weight.data(), in.bias.data(), c, out);
        A dr[Unit];
#pragma unroll
        for (int i = 0; i < Unit; ++i) dr[i] = rstd * (g[v][i] - g_mean - h[v][i] * gh_mean);
        if (dr_out != nullptr) {
          StoredUnit<A, Unit> stored;
          queue_dr.unit(true, stage, v, dr_out, c, stored);
#pragma unroll
          for (int i = 0; i < Unit; ++i) dr[i] += stored[i];
        }
        if (gradients.drowscale) {
          A other[Unit];
          load_unit(stream.x + c, other);
#pragma unroll
          for (int i = 0; i < Unit; ++i) x_sum[0] += dr[i] * other[i];
        }
        if (dx1 != nullptr) store_unit(dx1 + c, dr);
        if (dresidual != nullptr) store_unit(dresidual + c, dr);
        if (dx != nullptr) {
#pragma unroll
          for (int i = 0; i < Unit; ++i) dr[i] *= stream.rowscale;
          store_unit(dx + c, dr);
        }
      }
    }
    if (gradients.drowscale) {
      over_row_x(x_sum);
      if (there && Shape::lane() == 0) *at.of(gradients.drowscale) = x_sum[0];
    }
  });
  columns.finish(shared);
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Both norms. `mean` is absent in rms_norm; it and `rstd` are dense.
template <bool Centred, class T>
void launch_backward(const Inputs<T, cuda>& in, const Options& options,
                     const View<const accumulate_t<T>, 2, cuda>& mean, const View<const accumulate_t<T>, 2, cuda>& rstd,
                     const OutputGradients<T, cuda>& upstream, const GradientViews<T, cuda>& gradients,
                     Workspace<cuda>& workspace, GradientMode mode) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  require(in.x || upstream.residual_out || in.x.size() == 0, "norm: x has no memory and residual_out is not given");
  require(in.x || !gradients.drowscale, "norm: drowscale needs the values of x");
  if (channels == 0) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const bool to_stream = gradients.dx || gradients.dx1 || gradients.dresidual || gradients.drowscale || gradients.out;
  const bool aligned = all_rows_aligned(in.x, in.weight, in.residual, in.x1, in.weight1, upstream.dout, upstream.dout1,
                                        upstream.dresidual_out, upstream.residual_out, gradients.dx, gradients.dx1,
                                        gradients.dresidual, gradients.out, in.bias);
  const auto mark = workspace.mark();
  LineSums<A, all_sums> sums{
      {}, {gradients.dweight.data(), gradients.dbias.data(), gradients.dweight1.data(), gradients.dbias1.data()}};
  for (int k = 0; k < all_sums; ++k)
    if (sums.to[k] != nullptr) sums.lines[k] = workspace.take<A>(most_lines(rows) * channels);
  auto from = in;
  auto up = upstream;
  auto target = gradients;
  flatten_rows(rows, from.x, from.residual, from.x1, from.rowscale, up.dout, up.dout1, up.dresidual_out,
               up.residual_out, target.dx, target.dx1, target.dresidual, target.drowscale, target.out);
  constexpr int few = Centred ? 2 : 1;  // what a model needs: dweight, and in layer_norm dbias
  const bool all = bool(up.dout1) || (!Centred && gradients.dbias);
  const bool plain = !all && up.dout && !up.dresidual_out && !up.residual_out && !in.residual && !in.x1 &&
                     !in.rowscale && !gradients.dx1 && !gradients.dresidual && !gradients.out;
  Index blocks = 0;
  const auto wanted = [&]<int Sums>(std::integral_constant<int, Sums>) {
    LineSums<A, Sums> result;
    for (int k = 0; k < Sums; ++k) {
      result.lines[k] = sums.lines[k];
      result.to[k] = sums.to[k];
    }
    return result;
  };
  const auto launch = [&]<int Sums>(std::integral_constant<int, Sums> count, auto shape) {
    using Shape = decltype(shape);
    blocks = sum_blocks<Shape>(rows);
    if (blocks == 0) return;
    const int bytes = (up.dout ? RowQueue<Shape, T, stages>::bytes : 0) +
                      (int{bool(up.residual_out)} + int{bool(up.dresidual_out)}) * RowQueue<Shape, A, stages>::bytes;
    launch_rows("add_norm_backward_kernel", add_norm_backward_kernel<Centred, Sums, Shape, T>, blocks, Shape::threads,
                std::max(bytes, ColumnLines<Shape, A, Sums>::bytes), from, mean.data(), rstd.data(), up, target,
                wanted(count), options.scale, to_stream);
  };
  if (plain) {
    with_row_shape<pack_size<T>, 2>(channels, aligned, [&](auto shape) {
      using Shape = decltype(shape);
      blocks = sum_blocks<Shape>(rows);
      if (blocks == 0) return;
      constexpr int bytes = std::max(2 * RowQueue<Shape, T, stages>::bytes, ColumnLines<Shape, A, few>::bytes);
      launch_rows("norm_backward_kernel", norm_backward_kernel<Centred, Shape, T>, blocks, Shape::threads, bytes,
                  View<const T, 3, cuda>(from.x), View<const T, 3, cuda>(up.dout), View<T, 3, cuda>(target.dx),
                  in.weight.data(), mean.data(), rstd.data(), wanted(std::integral_constant<int, few>{}),
                  options.scale);
    });
  } else if (all) {  // a second norm, or a bias of rms_norm: not through vectors of 16 bytes
    launch(std::integral_constant<int, all_sums>{}, RowShape<1, 256, 1, true>{});
  } else {  // units as wide as those of the stream, which is most of what is moved
    with_row_shape<pack_size<A>, 2>(channels, aligned,
                                    [&](auto shape) { launch(std::integral_constant<int, few>{}, shape); });
  }
  if (!all)  // what no gradient reaches is zero
    for (int k = few; k < all_sums; ++k) sums.lines[k] = nullptr;
  launch_line_sums(sums, blocks, channels, mode);
  workspace.reset(mark);
}

}  // namespace detail

template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), lines = detail::most_lines(in.x.extent(0) * in.x.extent(1));
  return (in.weight1 ? 4 : 2) * Workspace<cuda>::bytes_of<A>(lines * channels);
}

template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  check(in, saved.options, upstream, gradients);
  require_shape("rms_norm", "saved.rstd", saved.rstd.view(), Extents{in.x.extent(0), in.x.extent(1)});
  detail::launch_backward<false, T>(in, saved.options, {}, saved.rstd, upstream, gradients, workspace, mode);
}

}  // namespace diffmamba::rms_norm
