// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/rms_norm/rms_norm.hpp"
#include "diffmamba/ops/row_kernels.cuh"

/// The forward pass of both norms on an NVIDIA GPU. A row is read once and waits in registers for its mean.
namespace diffmamba::rms_norm {
namespace detail {

using namespace diffmamba::detail;

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

/// scale * (normalised weight + bias) from channel c on.
template <int Unit, class A, class T>
__device__ inline void store_normalised(const A (&normalised)[Unit], A scale, const A* weights, const A* biases, int c,
                                        T* to) {
  A y[Unit], parameter[Unit];
  load_unit(weights + c, parameter);
#pragma unroll
  for (int i = 0; i < Unit; ++i) y[i] = normalised[i] * parameter[i];
  if (biases != nullptr) {
    load_unit(biases + c, parameter);
#pragma unroll
    for (int i = 0; i < Unit; ++i) y[i] += parameter[i];
  }
#pragma unroll
  for (int i = 0; i < Unit; ++i) y[i] *= scale;
  store_unit(to + c, y);
}

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// x alone, without a residual stream.
template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, 768 / Shape::threads)
    norm_forward_kernel(const __grid_constant__ View<const T, 3, cuda> x_rows,
                        const __grid_constant__ View<T, 3, cuda> out_rows, const accumulate_t<T>* weights,
                        const accumulate_t<T>* biases, accumulate_t<T>* mean_out, accumulate_t<T>* rstd_out,
                        double eps_given, double scale_given) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = x_rows.extent(1), rows = x_rows.extent(0) * length;
  const int channels = static_cast<int>(x_rows.extent(2));
  const bool several = Shape::cut(channels);
  const A per_channel = A(1) / static_cast<A>(channels), eps = static_cast<A>(eps_given);
  const A scale = static_cast<A>(scale_given);
  RowSums<Shape, A, 1> over_row;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();

  for (Index first = Index{blockIdx.x} * Shape::rows; first < rows; first += Index{gridDim.x} * Shape::rows) {
    const Index row = first + Shape::group();
    const bool there = row < rows;
    const int count = there ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(there ? row : 0, length);
    const T* const x = at.of(x_rows);
    StoredRow<Shape, T> xs;
    A sum[1] = {0};
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      xs.load(x, count, tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v)
#pragma unroll
        for (int i = 0; i < Unit; ++i) sum[0] += Centred ? xs(v, i) : xs(v, i) * xs(v, i);
    }
    over_row(sum);
    A mean = 0;
    if constexpr (Centred) {
      mean = sum[0] * per_channel;
      sum[0] = 0;
      for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
        if (several) xs.load(x, count, tile);
#pragma unroll
        for (int v = 0; v < Vectors; ++v)
          if (Shape::channel(tile, v) < count)
#pragma unroll
            for (int i = 0; i < Unit; ++i) sum[0] += (xs(v, i) - mean) * (xs(v, i) - mean);
      }
      over_row(sum);
    }
    const A rstd = rsqrt(sum[0] * per_channel + eps);
    T* const out = at.of(out_rows);
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      if (several) xs.load(x, count, tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (c >= count) continue;
        A h[Unit];
#pragma unroll
        for (int i = 0; i < Unit; ++i) h[i] = (xs(v, i) - mean) * rstd;
        store_normalised(h, scale, weights, biases, c, out);
      }
    }
    if (there && Shape::lane() == 0) {
      if (mean_out != nullptr) mean_out[row] = mean;
      if (rstd_out != nullptr) rstd_out[row] = rstd;
    }
  }
}

template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, (Shape::Long ? 512 : 1024) / Shape::threads)
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
#pragma unroll
      for (int i = 0; i < Unit; ++i) r[i] = (r[i] - mean) * rstd;
      store_normalised(r, scale, in.weight.data(), in.bias.data(), c, out);
      if (out1 != nullptr) store_normalised(r, scale, in.weight1.data(), in.bias1.data(), c, out1);
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
    with_row_shape<pack_size<T>, 4, 128>(in.x.extent(2), aligned, [&](auto shape) {
      using Shape = decltype(shape);
      launch_rows("norm_forward_kernel", norm_forward_kernel<Centred, Shape, T>,
                  cuda_runtime::blocks_for(rows, Shape::rows), Shape::threads, 0, View<const T, 3, cuda>(from.x),
                  View<T, 3, cuda>(target.out), in.weight.data(), in.bias.data(), mean.data(), rstd.data(), options.eps,
                  options.scale);
    });
  } else {
    with_row_shape<pack_size<T>, 1>(in.x.extent(2), aligned, [&](auto shape) {
      using Shape = decltype(shape);
      launch_rows("add_norm_forward_kernel", add_norm_forward_kernel<Centred, Shape, T>,
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
