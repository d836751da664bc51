// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/differential_combine/differential_combine.hpp"
#include "diffmamba/ops/row_kernels.cuh"

/// The forward pass of the differential combination on an NVIDIA GPU. A row of both paths is read once and waits in
/// registers.
namespace diffmamba::differential_combine {
namespace detail {

using namespace diffmamba::detail;

/// What the rows of the two paths are multiplied by, and the numbers of the present one.
template <class Shape, class T, bool Kept>
struct GpuDifferenceRow {
  using A = accumulate_t<T>;
  static constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  RowParameter<Shape, A, Kept> lambdas, norm_weights;
  A rstd1 = 1, rstd2 = 1;
  StoredUnit<T, Unit> stored1[Vectors], stored2[Vectors];

  __device__ GpuDifferenceRow(const Inputs<T, cuda>& in, int channels)
      : lambdas(in.lambda && in.lambda.extent(0) != 1 ? in.lambda.data() : nullptr, channels,
                in.lambda && in.lambda.extent(0) == 1 ? *in.lambda.data() : A(1)),
        norm_weights(in.norm_weight.data(), channels, A(1)) {}

  /// y_1 and y_2, normalised where there is a norm before.
  __device__ A h1(int v, int i) const { return stored1[v][i] * rstd1; }
  __device__ A h2(int v, int i) const { return stored2[v][i] * rstd2; }
  /// n_1 - lambda n_2 of a unit; zeros past the row.
  __device__ void difference(bool there, int v, int c, A (&u)[Unit]) const {
    A l[Unit], w[Unit];
    lambdas.unit(there, v, c, l);
    norm_weights.unit(there, v, c, w);
#pragma unroll
    for (int i = 0; i < Unit; ++i) u[i] = w[i] * (h1(v, i) - l[i] * h2(v, i));
  }
};

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, sum_blocks_each<Shape>)
    combine_forward_kernel(const __grid_constant__ Inputs<T, cuda> in, const __grid_constant__ OutputViews<T, cuda> to,
                           accumulate_t<T>* saved_rstd, double eps_given, double scale_given) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = in.y1.extent(1), rows = in.y1.extent(0) * length;
  const int channels = static_cast<int>(in.y1.extent(2));
  const bool several = Shape::cut(channels), before = bool(in.norm_weight), after = bool(in.subln_weight);
  const A per_channel = A(1) / static_cast<A>(channels);
  const A eps = static_cast<A>(eps_given), scale = static_cast<A>(scale_given);
  RowSums<Shape, A, 2> over_row;
  RowSums<Shape, A, 1> over_row_of_u;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  GpuDifferenceRow<Shape, T, false> paths(in, channels);

  for (Index first = Index{blockIdx.x} * Shape::rows; first < rows; first += Index{gridDim.x} * Shape::rows) {
    const Index row = first + Shape::group();
    const bool there = row < rows;
    const int count = there ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(there ? row : 0, length);
    const T* const y1 = at.of(in.y1);
    const T* const y2 = at.of(in.y2);
    const auto load = [&](int tile) {
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        paths.stored1[v].load_if(c < count, y1 + c);
        paths.stored2[v].load_if(c < count, y2 + c);
      }
    };
    load(0);
    if (before) {
      A sums[2] = {};
      for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
        if (several) load(tile);
#pragma unroll
        for (int v = 0; v < Vectors; ++v)
#pragma unroll
          for (int i = 0; i < Unit; ++i) {
            sums[0] += paths.stored1[v][i] * paths.stored1[v][i];
            sums[1] += paths.stored2[v][i] * paths.stored2[v][i];
          }
      }
      over_row(sums);
      paths.rstd1 = A(1) / sqrt(sums[0] * per_channel + eps);
      paths.rstd2 = A(1) / sqrt(sums[1] * per_channel + eps);
    }
    A u[Vectors][Unit];
    const auto difference = [&](int tile) {
      if (several) load(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        paths.difference(c < count, v, c, u[v]);
      }
    };
    A rstd = 1;
    if (after) {
      A sum[1] = {0};
      for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
        difference(tile);
#pragma unroll
        for (int v = 0; v < Vectors; ++v)
#pragma unroll
          for (int i = 0; i < Unit; ++i) sum[0] += u[v][i] * u[v][i];
      }
      over_row_of_u(sum);
      rstd = A(1) / sqrt(sum[0] * per_channel + eps);
    }
    T* const out = at.of(to.out);
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      if (several || !after) difference(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (c >= count) continue;
        A w[Unit];
#pragma unroll
        for (int i = 0; i < Unit; ++i) w[i] = 1;
        if (after) load_unit(in.subln_weight.data() + c, w);
#pragma unroll
        for (int i = 0; i < Unit; ++i) u[v][i] *= rstd * scale * w[i];
        store_unit(out + c, u[v]);
      }
    }
    if (saved_rstd != nullptr && there && Shape::lane() == 0) {
      saved_rstd[3 * row] = paths.rstd1;
      saved_rstd[3 * row + 1] = paths.rstd2;
      saved_rstd[3 * row + 2] = rstd;
    }
  }
}

}  // namespace detail

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved) {
  check(in, options, outputs);
  if (saved) {
    saved->options = options;
    reuse_or_allocate(saved->rstd, Extents{in.y1.extent(0), in.y1.extent(1), Index{3}});
  }
  if (in.y1.size() == 0) return;
  const Index rows = in.y1.extent(0) * in.y1.extent(1);
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const bool lambdas_aligned = !in.lambda || in.lambda.extent(0) == 1 || detail::rows_aligned(in.lambda);
  const bool aligned =
      lambdas_aligned && detail::all_rows_aligned(in.y1, in.y2, in.norm_weight, in.subln_weight, outputs.out);
  detail::with_row_shape<detail::pack_size<T>, 4>(in.y1.extent(2), aligned, [&](auto shape) {
    using Shape = decltype(shape);
    detail::launch_rows("combine_forward_kernel", detail::combine_forward_kernel<Shape, T>,
                        cuda_runtime::blocks_for(rows, Shape::rows), Shape::threads, 0, in, outputs,
                        saved ? saved->rstd.data() : nullptr, options.eps, options.scale);
  });
}

}  // namespace diffmamba::differential_combine
