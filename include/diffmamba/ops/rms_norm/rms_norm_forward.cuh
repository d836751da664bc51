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
struct StreamRow {
  using A = accumulate_t<T>;
  const T *x, *x1;
  const A* residual;
  A rowscale;

  __device__ StreamRow(const Inputs<T, cuda>& in, const RowPosition& at)
      : x(at.of(in.x)), x1(at.of(in.x1)), residual(at.of(in.residual)), rowscale(1) {
    if (in.rowscale) rowscale = *at.of(in.rowscale);
  }
  /// Their sum from channel c on; zeros past `count` channels.
  __device__ void load(int c, int count, A (&r)[Shape::Unit]) const {
    const bool there = c < count;
    A addend[Shape::Unit];
    load_unit_if(there, x + c, r);
#pragma unroll
    for (int i = 0; i < Shape::Unit; ++i) r[i] *= rowscale;
    if (x1 != nullptr) {
      load_unit_if(there, x1 + c, addend);
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) r[i] += addend[i];
    }
    if (residual != nullptr) {
      load_unit_if(there, residual + c, addend);
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) r[i] += addend[i];
    }
  }
};

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads)
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

  for (Index first = Index{blockIdx.x} * Shape::rows; first < rows; first += Index{gridDim.x} * Shape::rows) {
    const Index row = first + Shape::group();
    const int count = row < rows ? channels : 0;  // a row that is not there has no channels
    const RowPosition at(row < rows ? row : 0, length);
    const StreamRow<Shape, T> stream(in, at);
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
      const int c = Shape::channel(tile);
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
        const int c = Shape::channel(tile);
        if (several) load_again(c);
        if (c < count)
#pragma unroll
          for (int i = 0; i < Unit; ++i) sum[0] += (r[i] - mean) * (r[i] - mean);
      }
      over_row(sum);
    }
    const A rstd = A(1) / sqrt(sum[0] * per_channel + static_cast<A>(eps_given));

    T* const out = at.of(to.out);
    T* const out1 = at.of(to.out1);
    for (int tile = 0; tile < Shape::tiles(channels); ++tile) {
      const int c = Shape::channel(tile);
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
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const bool aligned = all_rows_aligned(in.x, in.weight, in.bias, in.residual, in.x1, in.weight1, in.bias1, to.out,
                                        to.out1, to.residual_out);
  with_row_shape<T>(in.x.extent(2), aligned, [&](auto shape) {
    using Shape = decltype(shape);
    const unsigned blocks = cuda_runtime::blocks_for(rows, Shape::rows);
    add_norm_forward_kernel<Centred, Shape, T>
        <<<blocks, Shape::threads, 0, stream.handle>>>(in, to, mean, rstd, options.eps, options.scale);
    cuda_runtime::check_launch("add_norm_forward_kernel");
  });
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
