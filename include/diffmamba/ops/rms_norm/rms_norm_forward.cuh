// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/rms_norm/rms_norm.hpp"
#include "diffmamba/ops/row_kernels.cuh"

/// The forward pass of both norms on an NVIDIA GPU. A row is read once and waits in registers for its mean.
namespace diffmamba::rms_norm {
namespace detail {

using namespace diffmamba::detail;

/// Rows of a block in shared memory: the present one and the next two.
inline constexpr int stages = 3;

/// The addends of the residual stream in one row.
template <class Shape, class T>
struct GpuStreamRow {
  using A = accumulate_t<T>;
  const T *x, *x1;
  const A* residual;
  A rowscale;

  __device__ GpuStreamRow(const Inputs<T, cuda>& in, const RowPosition& at)
      : x(at.of(in.x)), x1(at.of(in.x1)), residual(at.of(in.residual)), rowscale(1) {
    if (in.rowscale) rowscale = *at.of(in.rowscale);
  }
  /// Their sum from channel c on; zeros past `count` channels.
  __device__ void load(int c, int count, A (&r)[Shape::Unit]) const {
#pragma unroll
    for (int i = 0; i < Shape::Unit; ++i) r[i] = 0;
    if (c >= count) return;
    StoredUnit<T, Shape::Unit> stored_x, stored_x1;
    StoredUnit<A, Shape::Unit> stored_residual;
    stored_x.load(x + c);
    if (x1 != nullptr) stored_x1.load(x1 + c);
    if (residual != nullptr) stored_residual.load(residual + c);
#pragma unroll
    for (int i = 0; i < Shape::Unit; ++i) r[i] = stored_x[i] * rowscale;
    if (x1 != nullptr)
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) r[i] += stored_x1[i];
    if (residual != nullptr)
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) r[i] += stored_residual[i];
  }
};

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// x alone, without a residual stream: rows pass through shared memory.
template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads)
    norm_forward_kernel(const __grid_constant__ View<const T, 3, cuda> x_rows,
                        const __grid_constant__ View<T, 3, cuda> out_rows, const accumulate_t<T>* weights,
                        const accumulate_t<T>* biases, accumulate_t<T>* mean_out, accumulate_t<T>* rstd_out,
                        double eps_given, double scale_given) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = x_rows.extent(1), rows = x_rows.extent(0) * length;
  const int channels = static_cast<int>(x_rows.extent(2));
  const A per_channel = A(1) / static_cast<A>(channels), eps = static_cast<A>(eps_given);
  const A scale = static_cast<A>(scale_given);
  RowSums<Shape, A, 1> over_row;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue(free, true);
  const Index stride = Index{gridDim.x} * Shape::rows;
  const auto fetch = [&](Index row, int stage) {
    if (row < rows) queue.fetch(stage, RowPosition(row, length).of(x_rows), channels);
    mma::commit_copies();
  };
  Index row = Index{blockIdx.x} * Shape::rows + Shape::group();
  for (int stage = 0; stage + 1 < stages; ++stage) fetch(row + stage * stride, stage);

  int stage = 0;
  for (Index first = Index{blockIdx.x} * Shape::rows; first < rows; first += stride, row += stride) {
    const int count = row < rows ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(row < rows ? row : 0, length);
    const T* const x = at.of(x_rows);
    mma::wait_for_copies<stages - 2>();
    fetch(row + (stages - 1) * stride, stage == 0 ? stages - 1 : stage - 1);
    const auto for_units = [&](auto&& work) {
      for (int tile = 0; tile < Shape::tiles(channels); ++tile)
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
          const int c = Shape::channel(tile, v);
          if (c < count) work(c, queue.unit(stage, v, x, c));
        }
    };
    A sum[1] = {0};
    for_units([&](int, const auto& unit) {
#pragma unroll
      for (int i = 0; i < Unit; ++i) sum[0] += Centred ? unit[i] : unit[i] * unit[i];
    });
    over_row(sum);
    A mean = 0;
    if constexpr (Centred) {
      mean = sum[0] * per_channel;
      sum[0] = 0;
      for_units([&](int, const auto& unit) {
#pragma unroll
        for (int i = 0; i < Unit; ++i) sum[0] += (unit[i] - mean) * (unit[i] - mean);
      });
      over_row(sum);
    }
    const A rstd = rsqrt(sum[0] * per_channel + eps), factor = scale * rstd;
    T* const out = at.of(out_rows);
    for_units([&](int c, const auto& unit) {
      A y[Unit], weight[Unit];
      load_unit(weights + c, weight);
#pragma unroll
      for (int i = 0; i < Unit; ++i) y[i] = (unit[i] - mean) * factor * weight[i];
      if (biases != nullptr) {
        load_unit(biases + c, weight);
#pragma unroll
        for (int i = 0; i < Unit; ++i) y[i] += scale * weight[i];
      }
      store_unit(out + c, y);
    });
    if (count > 0 && Shape::lane() == 0) {
      if (mean_out != nullptr) mean_out[row] = mean;
      if (rstd_out != nullptr) rstd_out[row] = rstd;
    }
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
}

template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, 1024 / Shape::threads)
    add_norm_forward_kernel(const __grid_constant__ Inputs<T, cuda> in, const __grid_constant__ OutputViews<T, cuda> to,
                            const __grid_constant__ View<accumulate_t<T>, 2, cuda> mean_out,
                            const __grid_constant__ View<accumulate_t<T>, 2, cuda> rstd_out, double eps_given,
                            double scale_given) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit;
  const Index length = in.x.extent(1), rows = in.x.extent(0) * length;
  const int channels = static_cast<int>(in.x.extent(2));
  const bool several = Shape::cut(channels);
  const A per_channel = A(1) / static_cast<A>(channels), scale = static_cast<A>(scale_given);
  RowSums<Shape, A, 1> over_row;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();

  for (Index first = Index{blockIdx.x} * Shape::rows; first < rows; first += Index{gridDim.x} * Shape::rows) {
    const Index row = first + Shape::group();
    const int count = row < rows ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(row < rows ? row : 0, length);
    const GpuStreamRow<Shape, T> stream(in, at);
    A* const kept = at.of(to.residual_out);
    A r[Unit];
    // Later passes read the sum where it was stored: residual_out may lie over residual.
    const auto load_again = [&](int c) {
      if (kept != nullptr)
        load_unit_if(c < count, kept + c, r);
      else
        stream.load(c, count, r);
    };

    A sum[1] = {0};
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      const int c = Shape::channel(tile, 0);
      stream.load(c, count, r);
      if (kept != nullptr && c < count) store_unit(kept + c, r);
#pragma unroll
      for (int i = 0; i < Unit; ++i) sum[0] += Centred ? r[i] : r[i] * r[i];
    }
    over_row(sum);
    A mean = 0;
    if constexpr (Centred) {
      mean = sum[0] * per_channel;
      sum[0] = 0;
      for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
        const int c = Shape::channel(tile, 0);
        if (several) load_again(c);
        if (c < count)
#pragma unroll
          for (int i = 0; i < Unit; ++i) sum[0] += (r[i] - mean) * (r[i] - mean);
      }
      over_row(sum);
    }
    const A rstd = rsqrt(sum[0] * per_channel + static_cast<A>(eps_given));

    T* const out = at.of(to.out);
    T* const out1 = at.of(to.out1);
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      const int c = Shape::channel(tile, 0);
      if (several) load_again(c);
      if (c >= count) continue;
      const auto write = [&](const A* weights, const A* biases, T* target) {
        A y[Unit], parameter[Unit];
        load_unit(weights + c, parameter);
#pragma unroll
        for (int i = 0; i < Unit; ++i) y[i] = (r[i] - mean) * rstd * parameter[i];
        if (biases != nullptr) {
          load_unit(biases + c, parameter);
#pragma unroll
          for (int i = 0; i < Unit; ++i) y[i] += parameter[i];
        }
#pragma unroll
        for (int i = 0; i < Unit; ++i) y[i] *= scale;
        store_unit(target + c, y);
      };
      write(in.weight.data(), in.bias.data(), out);
      if (out1 != nullptr) write(in.weight1.data(), in.bias1.data(), out1);
    }
    if (row < rows && Shape::lane() == 0) {
      if (mean_out) *at.of(mean_out) = mean;
      if (rstd_out) *at.of(rstd_out) = rstd;
    }
  }
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Both norms. `mean` and `rstd` are written where they are given.
template <bool Centred, class T>
void launch_forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& to,
                    const View<accumulate_t<T>, 2, cuda>& mean, const View<accumulate_t<T>, 2, cuda>& rstd) {
  const Index rows = in.x.extent(0) * in.x.extent(1);
  if (in.x.size() == 0) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  auto from = in;
  auto target = to;
  auto mean_rows = mean, rstd_rows = rstd;
  flatten_rows(rows, from.x, from.residual, from.x1, from.rowscale, target.out, target.out1, target.residual_out,
               mean_rows, rstd_rows);
  const bool aligned = all_rows_aligned(in.x, in.weight, in.bias, in.residual, in.x1, in.weight1, in.bias1, to.out,
                                        to.out1, to.residual_out);
  if (!in.residual && !in.x1 && !in.weight1 && !in.rowscale && !to.residual_out) {
    with_row_shape<T, 4>(in.x.extent(2), aligned, [&](auto shape) {
      using Shape = decltype(shape);
      launch_resident(norm_forward_kernel<Centred, Shape, T>, "norm_forward_kernel",
                      (rows + Shape::rows - 1) / Shape::rows, Shape::threads, RowQueue<Shape, T, stages>::bytes,
                      View<const T, 3, cuda>(from.x), View<T, 3, cuda>(target.out), in.weight.data(), in.bias.data(),
                      mean.data(), rstd.data(), options.eps, options.scale);
    });
  } else {
    with_row_shape<T, 1>(in.x.extent(2), aligned, [&](auto shape) {
      using Shape = decltype(shape);
      launch_rows(add_norm_forward_kernel<Centred, Shape, T>, "add_norm_forward_kernel",
                  cuda_runtime::blocks_for(rows, Shape::rows), Shape::threads, 0, from, target, mean_rows, rstd_rows,
                  options.eps, options.scale);
    });
  }
}

}  // namespace detail

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved) {
  check(in, options, outputs);
  View<accumulate_t<T>, 2, cuda> rstd;
  if (saved) {
    saved->options = options;
    reuse_or_allocate(saved->rstd, Extents{in.x.extent(0), in.x.extent(1)});
    rstd = saved->rstd;
  }
  detail::launch_forward<false>(in, options, outputs, {}, rstd);
}

}  // namespace diffmamba::rms_norm
