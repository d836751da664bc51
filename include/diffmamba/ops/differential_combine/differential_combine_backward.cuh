// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::max

#include "diffmamba/ops/differential_combine/differential_combine_forward.cuh"  // detail::GpuDifferenceRow

/// The backward pass of the differential combination on an NVIDIA GPU; differential_combine_backward.hpp derives the
/// formulas. One launch reads every row once, writes the gradients of the paths and keeps the sums of the parameters
/// per block; further ones add those up.
namespace diffmamba::differential_combine {
namespace detail {

/// Rows of a group of threads in shared memory: the present one and the next.
inline constexpr int stages = 2;

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// sums: of lambda (one for each channel), norm_weight, subln_weight. one_lambda: a number for each block, or null.
template <class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, sum_blocks_each<Shape>)
    combine_backward_kernel(const __grid_constant__ Inputs<T, cuda> in, const accumulate_t<T>* saved_rstd,
                            const __grid_constant__ OutputGradients<T, cuda> upstream,
                            const __grid_constant__ GradientViews<T, cuda> gradients,
                            const __grid_constant__ LineSums<accumulate_t<T>, 3> sums, accumulate_t<T>* one_lambda,
                            double scale_given) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = in.y1.extent(1), rows = in.y1.extent(0) * length;
  const int channels = static_cast<int>(in.y1.extent(2));
  const bool several = Shape::cut(channels), before = bool(in.norm_weight), after = bool(in.subln_weight);
  const A per_channel = A(1) / static_cast<A>(channels), scale = static_cast<A>(scale_given);
  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue1(free, true), queue2(free, true), queue_d(free, true);
  RowSums<Shape, A, 1> over_row_of_u;
  RowSums<Shape, A, 2> over_row;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  ColumnLines<Shape, A, 3> columns(sums, Index{blockIdx.x} * channels, channels);
  GpuDifferenceRow<Shape, T, !Shape::Long> paths(in, channels);
  const RowParameter<Shape, A> subln_weights(in.subln_weight.data(), channels, A(1));
  RowNumber<Shape, A> rstd1(saved_rstd, 3, blockIdx.x, gridDim.x, rows),
      rstd2(saved_rstd + 1, 3, blockIdx.x, gridDim.x, rows), rstd_of_u(saved_rstd + 2, 3, blockIdx.x, gridDim.x, rows);
  A dlambda[1] = {0};

  const auto fetch = [&](Index row, int stage) {
    const RowPosition at(row, length);
    queue1.fetch(stage, at.of(in.y1), channels);
    queue2.fetch(stage, at.of(in.y2), channels);
    queue_d.fetch(stage, at.of(upstream.dout), channels);
  };
  for_rows<Shape, stages>(blockIdx.x, gridDim.x, rows, fetch, [&](Index row, bool there, int stage) {
    const int count = there ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(there ? row : 0, length);
    const T* const y1 = at.of(in.y1);
    const T* const y2 = at.of(in.y2);
    const T* const dout = at.of(upstream.dout);
    paths.rstd1 = rstd1.next(row);
    paths.rstd2 = rstd2.next(row);
    const A rstd = rstd_of_u.next(row);
    // du, before `through_norm_after` dL/dH; and H, the normalised difference, where there is a norm after.
    A du[Vectors][Unit], H[Vectors][Unit];
    const auto load = [&](int tile, bool add_columns) {
      StoredUnit<T, Unit> d[Vectors];
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        queue1.unit(c < count, stage, v, y1, c, paths.stored1[v]);
        queue2.unit(c < count, stage, v, y2, c, paths.stored2[v]);
        queue_d.unit(c < count, stage, v, dout, c, d[v]);
      }
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
#pragma unroll
        for (int i = 0; i < Unit; ++i) du[v][i] = d[v][i] * scale;
        if (!after) continue;
        const int c = Shape::channel(tile, v);
        paths.difference(c < count, v, c, H[v]);
        A w[Unit], dH[Unit];
        subln_weights.unit(c < count, v, c, w);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          H[v][i] *= rstd;
          dH[i] = du[v][i] * H[v][i];
          du[v][i] *= w[i];
        }
        if (add_columns) columns.add(2, v, c, c < count, dH);
      }
    };
    A gH[1] = {0};
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      load(tile, true);
      if (!after) continue;
#pragma unroll
      for (int v = 0; v < Vectors; ++v)
#pragma unroll
        for (int i = 0; i < Unit; ++i) gH[0] += du[v][i] * H[v][i];
    }
    if (after) over_row_of_u(gH);
    const A gH_mean = gH[0] * per_channel;
    const auto through_norm_after = [&] {
      if (!after) return;
#pragma unroll
      for (int v = 0; v < Vectors; ++v)
#pragma unroll
        for (int i = 0; i < Unit; ++i) du[v][i] = rstd * (du[v][i] - H[v][i] * gH_mean);
    };
    if (!several) through_norm_after();

    A means[2] = {};
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      if (several) {
        load(tile, false);
        through_norm_after();
      }
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        A l[Unit], w[Unit], to_weight[Unit], to_lambda[Unit];
        paths.lambdas.unit(c < count, v, c, l);
        paths.norm_weights.unit(c < count, v, c, w);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          const A h1 = paths.h1(v, i), h2 = paths.h2(v, i), dn2 = -l[i] * du[v][i];
          to_lambda[i] = -du[v][i] * w[i] * h2;
          to_weight[i] = du[v][i] * h1 + dn2 * h2;
          dlambda[0] += to_lambda[i];
          means[0] += w[i] * du[v][i] * h1;
          means[1] += w[i] * dn2 * h2;
        }
        columns.add(0, v, c, c < count, to_lambda);
        columns.add(1, v, c, c < count, to_weight);
      }
    }
    if (before) over_row(means);

    T* const dy1 = at.of(gradients.dy1);
    T* const dy2 = at.of(gradients.dy2);
    if (dy1 == nullptr && dy2 == nullptr) return;
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      if (several) {
        load(tile, false);
        through_norm_after();
      }
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (c >= count) continue;
        A l[Unit], w[Unit], g1[Unit], g2[Unit];
        paths.lambdas.unit(true, v, c, l);
        paths.norm_weights.unit(true, v, c, w);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          g1[i] = w[i] * du[v][i];
          g2[i] = -l[i] * g1[i];
          if (before) {
            g1[i] = paths.rstd1 * (g1[i] - paths.h1(v, i) * means[0] * per_channel);
            g2[i] = paths.rstd2 * (g2[i] - paths.h2(v, i) * means[1] * per_channel);
          }
        }
        if (dy1 != nullptr) store_unit(dy1 + c, g1);
        if (dy2 != nullptr) store_unit(dy2 + c, g2);
      }
    }
  });
  columns.finish(shared);
  if (one_lambda != nullptr) {
    // The block's threads as one row: what threads past a row have added is zero.
    RowSums<RowShape<1, Shape::threads, 1, false>, A, 1> over_block;
    __syncthreads();  // no row is at a barrier any more
    over_block(dlambda);
    if (threadIdx.x == 0) one_lambda[blockIdx.x] = dlambda[0];
  }
}

}  // namespace detail

template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in) {
  using A = accumulate_t<T>;
  const Index lines = detail::most_lines(in.y1.extent(0) * in.y1.extent(1));
  return 3 * Workspace<cuda>::bytes_of<A>(lines * in.y1.extent(2)) + Workspace<cuda>::bytes_of<A>(lines);
}

template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  using A = accumulate_t<T>;
  const Options& options = saved.options;
  check(in, options, upstream, gradients);
  require_shape("differential_combine", "saved.rstd", saved.rstd.view(),
                Extents{in.y1.extent(0), in.y1.extent(1), Index{3}});
  const Index channels = in.y1.extent(2), rows = in.y1.extent(0) * in.y1.extent(1);
  if (channels == 0) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const auto mark = workspace.mark();
  const bool one = gradients.dlambda && gradients.dlambda.extent(0) == 1 && channels != 1;
  detail::LineSums<A, 3> sums{
      {}, {one ? nullptr : gradients.dlambda.data(), gradients.dnorm_weight.data(), gradients.dsubln_weight.data()}};
  for (int k = 0; k < 3; ++k)
    if (sums.to[k] != nullptr) sums.lines[k] = workspace.take<A>(detail::most_lines(rows) * channels);
  A* const one_lambda = one ? workspace.take<A>(detail::most_lines(rows)) : nullptr;
  const bool lambdas_aligned = !in.lambda || in.lambda.extent(0) == 1 || detail::rows_aligned(in.lambda);
  const bool aligned = lambdas_aligned && detail::all_rows_aligned(in.y1, in.y2, in.norm_weight, in.subln_weight,
                                                                   upstream.dout, gradients.dy1, gradients.dy2);
  Index blocks = 0;
  detail::with_row_shape<detail::pack_size<T>, 1>(channels, aligned, [&](auto shape) {
    using Shape = decltype(shape);
    blocks = detail::sum_blocks<Shape>(rows);
    if (blocks == 0) return;
    constexpr int bytes =
        std::max(3 * detail::RowQueue<Shape, T, detail::stages>::bytes, detail::ColumnLines<Shape, A, 3>::bytes);
    detail::launch_rows("combine_backward_kernel", detail::combine_backward_kernel<Shape, T>, blocks, Shape::threads,
                        bytes, in, saved.rstd.data(), upstream, gradients, sums, one_lambda, options.scale);
  });
  detail::launch_line_sums(sums, blocks, channels, mode);
  if (one) detail::launch_line_sums(detail::LineSums<A, 1>{{one_lambda}, {gradients.dlambda.data()}}, blocks, 1, mode);
  workspace.reset(mark);
}

}  // namespace diffmamba::differential_combine
