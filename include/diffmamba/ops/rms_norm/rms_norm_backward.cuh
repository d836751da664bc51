// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/rms_norm/rms_norm_forward.cuh"  // detail::GpuStreamRow

/// The backward pass of both norms on an NVIDIA GPU; rms_norm_backward.hpp derives the formulas. One launch reads every
/// row once, writes the gradients of the stream and keeps the sums of the parameters per block; a second adds those up.
namespace diffmamba::rms_norm {
namespace detail {

/// dL/d(dweight), dbias, dweight1 and dbias1, in this order.
inline constexpr int all_sums = 4;

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// x alone, without a residual stream: rows pass through shared memory.
template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, 2)
    norm_backward_kernel(const __grid_constant__ View<const T, 3, cuda> x_rows,
                         const __grid_constant__ View<const T, 3, cuda> dout_rows,
                         const __grid_constant__ View<T, 3, cuda> dx_rows, const accumulate_t<T>* weights,
                         const accumulate_t<T>* mean_in, const accumulate_t<T>* rstd_in,
                         const __grid_constant__ LineSums<accumulate_t<T>, (Centred ? 2 : 1)> sums,
                         double scale_given) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = x_rows.extent(1), rows = x_rows.extent(0) * length;
  const int channels = static_cast<int>(x_rows.extent(2));
  const A per_channel = A(1) / static_cast<A>(channels), scale = static_cast<A>(scale_given);
  RowSums<Shape, A, Centred ? 2 : 1> over_row;
  ColumnLines<Shape, A, (Centred ? 2 : 1)> columns(sums, Index{blockIdx.x} * channels, channels);
  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue_x(free, true), queue_dout(free, true);
  const Index stride = Index{gridDim.x} * Shape::rows;
  const auto fetch = [&](Index row, int stage) {
    if (row < rows) {
      const RowPosition at(row, length);
      queue_x.fetch(stage, at.of(x_rows), channels);
      queue_dout.fetch(stage, at.of(dout_rows), channels);
    }
    mma::commit_copies();
  };
  Index row = Index{blockIdx.x} * Shape::rows + Shape::group();
  for (int stage = 0; stage + 1 < stages; ++stage) fetch(row + stage * stride, stage);

  int stage = 0;
  for (Index first = Index{blockIdx.x} * Shape::rows; first < rows; first += stride, row += stride) {
    const int count = row < rows ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(row < rows ? row : 0, length);
    const T* const x = at.of(x_rows);
    const T* const dout = at.of(dout_rows);
    const A rstd = count > 0 ? rstd_in[row] : A(0), mean = Centred && count > 0 ? mean_in[row] : A(0);
    mma::wait_for_copies<stages - 2>();
    fetch(row + (stages - 1) * stride, stage == 0 ? stages - 1 : stage - 1);
    const auto for_units = [&](auto&& work) {
      for (int tile = 0; tile < Shape::tiles(channels); ++tile)
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
          const int c = Shape::channel(tile, v);
          if (c >= count) continue;
          A weight[Unit];
          load_unit(weights + c, weight);
          work(v, c, queue_x.unit(stage, v, x, c), queue_dout.unit(stage, v, dout, c), weight);
        }
    };
    // Without the scale, which all that follows is proportional to: means of g h and of g.
    A means[Centred ? 2 : 1] = {};
    for_units([&](int v, int c, const auto& xs, const auto& ds, const auto& weight) {
      A dh[Unit], d[Unit];
#pragma unroll
      for (int i = 0; i < Unit; ++i) {
        d[i] = ds[i];
        dh[i] = d[i] * ((xs[i] - mean) * rstd);
        means[0] += weight[i] * dh[i];
        if constexpr (Centred) means[1] += weight[i] * d[i];
      }
      columns.add(0, v, c, dh);
      if constexpr (Centred) columns.add(1, v, c, d);
    });
    over_row(means);
    const A gh_mean = means[0] * per_channel, g_mean = Centred ? means[Centred ? 1 : 0] * per_channel : A(0);
    const A factor = scale * rstd;
    if (dx_rows) {
      T* const dx = at.of(dx_rows);
      for_units([&](int, int c, const auto& xs, const auto& ds, const auto& weight) {
        A dr[Unit];
#pragma unroll
        for (int i = 0; i < Unit; ++i) dr[i] = factor * (weight[i] * ds[i] - g_mean - (xs[i] - mean) * rstd * gh_mean);
        store_unit(dx + c, dr);
      });
    }
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
  cuda_runtime::let_next_kernel_begin();
  columns.finish(scale);
}

/// `Sums` is how many of the four sums of parameters there may be; without dout1 they are the first one or two.
template <bool Centred, int Sums, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, 1024 / Shape::threads)
    add_norm_backward_kernel(const __grid_constant__ Inputs<T, cuda> in,
                             const __grid_constant__ View<const accumulate_t<T>, 2, cuda> mean_in,
                             const __grid_constant__ View<const accumulate_t<T>, 2, cuda> rstd_in,
                             const __grid_constant__ OutputGradients<T, cuda> upstream,
                             const __grid_constant__ GradientViews<T, cuda> gradients,
                             const __grid_constant__ LineSums<accumulate_t<T>, Sums> sums, double scale_given,
                             bool to_stream) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit;
  const Index length = in.x.extent(1), rows = in.x.extent(0) * length;
  const int channels = static_cast<int>(in.x.extent(2));
  const bool several = Shape::cut(channels);
  const A per_channel = A(1) / static_cast<A>(channels), scale = static_cast<A>(scale_given);
  RowSums<Shape, A, Centred ? 2 : 1> over_row;
  RowSums<Shape, A, 1, 1> over_row_x;
  ColumnLines<Shape, A, Sums> columns(sums, Index{blockIdx.x} * channels, channels);

  for (Index first = Index{blockIdx.x} * Shape::rows; first < rows; first += Index{gridDim.x} * Shape::rows) {
    const Index row = first + Shape::group();
    const int count = row < rows ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(row < rows ? row : 0, length);
    const GpuStreamRow<Shape, T> stream(in, at);
    const A* const kept = at.of(upstream.residual_out);
    const T* const dout = at.of(upstream.dout);
    const T* const dout1 = Sums == all_sums ? at.of(upstream.dout1) : nullptr;
    const A rstd = *at.of(rstd_in), mean = Centred ? *at.of(mean_in) : A(0);
    A h[Unit], g[Unit], other[Unit];  // normalised, and dL/d(normalised)
    const auto load = [&](int c, bool add_columns) {
      const bool there = c < count;
      if (kept != nullptr)
        load_unit_if(there, kept + c, h);
      else
        stream.load(c, count, h);
#pragma unroll
      for (int i = 0; i < Unit; ++i) {
        h[i] = (h[i] - mean) * rstd;
        g[i] = 0;
      }
      const auto add = [&](const T* from, const A* weights, int sum) {
        A d[Unit];
        load_unit_if(there, from + c, d);
        load_unit_if(there, weights + c, other);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          d[i] *= scale;
          g[i] += d[i] * other[i];
          other[i] = d[i] * h[i];
        }
        if (!add_columns || !there) return;
        columns.add(sum, 0, c, other);
        if (sum + 1 < Sums) columns.add(sum + 1, 0, c, d);
      };
      if (dout != nullptr) add(dout, in.weight.data(), 0);
      if (dout1 != nullptr) add(dout1, in.weight1.data(), 2);
    };

    A means[Centred ? 2 : 1] = {};  // of g h, and of g
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      load(Shape::channel(tile, 0), true);
#pragma unroll
      for (int i = 0; i < Unit; ++i) {
        means[0] += g[i] * h[i];
        if constexpr (Centred) means[1] += g[i];
      }
    }
    if (!to_stream) continue;
    over_row(means);
    const A gh_mean = means[0] * per_channel, g_mean = Centred ? means[Centred ? 1 : 0] * per_channel : A(0);

    T* const dx = at.of(gradients.dx);
    T* const dx1 = at.of(gradients.dx1);
    A* const dresidual = at.of(gradients.dresidual);
    const A* const dr_out = at.of(upstream.dresidual_out);
    A x_sum[1] = {0};
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      const int c = Shape::channel(tile, 0);
      if (several) load(c, false);
      if (c >= count) continue;
#pragma unroll
      for (int i = 0; i < Unit; ++i) g[i] = rstd * (g[i] - g_mean - h[i] * gh_mean);
      if (dr_out != nullptr) {
        load_unit(dr_out + c, other);
#pragma unroll
        for (int i = 0; i < Unit; ++i) g[i] += other[i];
      }
      if (gradients.drowscale) {
        load_unit(stream.x + c, other);
#pragma unroll
        for (int i = 0; i < Unit; ++i) x_sum[0] += g[i] * other[i];
      }
      if (dx1 != nullptr) store_unit(dx1 + c, g);
      if (dresidual != nullptr) store_unit(dresidual + c, g);
      if (dx != nullptr) {
#pragma unroll
        for (int i = 0; i < Unit; ++i) g[i] *= stream.rowscale;
        store_unit(dx + c, g);
      }
    }
    if (gradients.drowscale) {
      over_row_x(x_sum);
      if (row < rows && Shape::lane() == 0) *at.of(gradients.drowscale) = x_sum[0];
    }
  }
  cuda_runtime::let_next_kernel_begin();
  columns.finish();
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Both norms. `mean` is absent in rms_norm.
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
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const bool to_stream = gradients.dx || gradients.dx1 || gradients.dresidual || gradients.drowscale;
  const bool aligned =
      all_rows_aligned(in.x, in.weight, in.residual, in.x1, in.weight1, upstream.dout, upstream.dout1,
                       upstream.dresidual_out, upstream.residual_out, gradients.dx, gradients.dx1, gradients.dresidual);
  const auto mark = workspace.mark();
  LineSums<A, all_sums> sums{
      {}, {gradients.dweight.data(), gradients.dbias.data(), gradients.dweight1.data(), gradients.dbias1.data()}};
  for (int k = 0; k < all_sums; ++k)
    if (sums.to[k] != nullptr) sums.lines[k] = workspace.take<A>(most_lines(rows) * channels);
  auto from = in;
  auto up = upstream;
  auto target = gradients;
  auto mean_rows = mean, rstd_rows = rstd;
  flatten_rows(rows, from.x, from.residual, from.x1, from.rowscale, up.dout, up.dout1, up.dresidual_out,
               up.residual_out, target.dx, target.dx1, target.dresidual, target.drowscale, mean_rows, rstd_rows);
  constexpr int few = Centred ? 2 : 1;  // what a model needs: dweight, and in layer_norm dbias
  const bool all = bool(up.dout1) || (!Centred && gradients.dbias);
  const bool plain = !all && up.dout && !up.dresidual_out && !up.residual_out && !in.residual && !in.x1 &&
                     !in.rowscale && !gradients.dx1 && !gradients.dresidual;
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
    add_norm_backward_kernel<Centred, Sums, Shape, T>
        <<<static_cast<unsigned>(blocks), Shape::threads, 0, stream.handle>>>(from, mean_rows, rstd_rows, up, target,
                                                                              wanted(count), options.scale, to_stream);
    cuda_runtime::check_launch("add_norm_backward_kernel");
  };
  if (plain) {
    with_row_shape<T, 4>(channels, aligned, [&](auto shape) {
      using Shape = decltype(shape);
      blocks = sum_blocks<Shape>(rows, resident_sum_blocks);
      if (blocks == 0) return;
      constexpr int bytes = 2 * RowQueue<Shape, T, stages>::bytes;
      const auto kernel = norm_backward_kernel<Centred, Shape, T>;
      cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                          "cudaFuncSetAttribute");
      kernel<<<static_cast<unsigned>(blocks), Shape::threads, bytes, stream.handle>>>(
          from.x, up.dout, target.dx, in.weight.data(), mean.data(), rstd.data(),
          wanted(std::integral_constant<int, few>{}), options.scale);
      cuda_runtime::check_launch("norm_backward_kernel");
    });
  } else if (all) {  // a second norm, or a bias of rms_norm: not through vectors of 16 bytes
    launch(std::integral_constant<int, all_sums>{}, RowShape<1, 256, 1, true>{});
  } else {
    with_row_shape<T, 1>(channels, aligned, [&](auto shape) { launch(std::integral_constant<int, few>{}, shape); });
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
