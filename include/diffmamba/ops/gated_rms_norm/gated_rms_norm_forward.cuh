// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm.hpp"
#include "diffmamba/ops/row_kernels.cuh"

/// The forward pass of both gated norms on an NVIDIA GPU. A group of a row is read once and waits in registers.
namespace diffmamba::gated_rms_norm {
namespace detail {

using namespace diffmamba::detail;

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, 1024 / Shape::threads)
    gated_norm_forward_kernel(const __grid_constant__ Inputs<T, cuda> in,
                              const __grid_constant__ OutputViews<T, cuda> to, accumulate_t<T>* mean_out,
                              accumulate_t<T>* rstd_out, int size, int groups, double eps_given,
                              bool norm_before_gate) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = in.x.extent(1), items = in.x.extent(0) * length * groups;
  const bool several = Shape::cut(size), has_z = bool(in.z);
  const bool gate_first = has_z && !norm_before_gate, gate_last = has_z && norm_before_gate;
  const A per_channel = A(1) / static_cast<A>(size);
  RowSums<Shape, A, 1> over_group;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();

  for (Index first = Index{blockIdx.x} * Shape::rows; first < items; first += Index{gridDim.x} * Shape::rows) {
    const Index item = first + Shape::group();
    const bool there = item < items;
    const int count = there ? size : 0;  // a group that is not there has no channels
    const RowPosition of_row(there ? item : 0, groups);
    const RowPosition at(of_row.batch, length);
    const int begin = static_cast<int>(of_row.token) * size;
    const T* const x = at.of(in.x) + begin;
    const T* const z = has_z ? at.of(in.z) + begin : nullptr;
    A u[Vectors][Unit];  // what is normalised: x, or x silu(z)
    StoredRow<Shape, T> zs;
    const auto load = [&](int tile) {
      StoredRow<Shape, T> xs;
      xs.load(x, count, tile);
      if (has_z) zs.load(z, count, tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v)
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          u[v][i] = xs(v, i);
          if (gate_first) u[v][i] *= zs(v, i) * sigmoid_for<T>(zs(v, i));
        }
    };

    A sum[1] = {0};
    for (int tile = 0; tile < Shape::tiles(size); ++tile) {
      load(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v)
#pragma unroll
        for (int i = 0; i < Unit; ++i) sum[0] += Centred ? u[v][i] : u[v][i] * u[v][i];
    }
    over_group(sum);
    A mean = 0;
    if constexpr (Centred) {
      mean = sum[0] * per_channel;
      sum[0] = 0;
      for (int tile = 0; tile < Shape::tiles(size); ++tile) {
        if (several) load(tile);
#pragma unroll
        for (int v = 0; v < Vectors; ++v)
          if (Shape::channel(tile, v) < count)
#pragma unroll
            for (int i = 0; i < Unit; ++i) sum[0] += (u[v][i] - mean) * (u[v][i] - mean);
      }
      over_group(sum);
    }
    const A rstd = rsqrt(sum[0] * per_channel + static_cast<A>(eps_given));

    T* const out = at.of(to.out) + begin;
    for (int tile = 0; tile < Shape::tiles(size); ++tile) {
      if (several) load(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (c >= count) continue;
        A parameter[Unit];
        load_unit(in.weight.data() + begin + c, parameter);
#pragma unroll
        for (int i = 0; i < Unit; ++i) u[v][i] = (u[v][i] - mean) * rstd * parameter[i];
        if (in.bias) {
          load_unit(in.bias.data() + begin + c, parameter);
#pragma unroll
          for (int i = 0; i < Unit; ++i) u[v][i] += parameter[i];
        }
        if (gate_last)
#pragma unroll
          for (int i = 0; i < Unit; ++i) u[v][i] *= zs(v, i) * sigmoid_for<T>(zs(v, i));
        store_unit(out + c, u[v]);
      }
    }
    if (there && Shape::lane() == 0) {
      if (mean_out != nullptr) mean_out[item] = mean;
      if (rstd_out != nullptr) rstd_out[item] = rstd;
    }
  }
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Both gated norms. `mean` and `rstd`, dense, are written where they are given.
template <bool Centred, class T>
void launch_forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& to,
                    const View<accumulate_t<T>, 3, cuda>& mean, const View<accumulate_t<T>, 3, cuda>& rstd) {
  if (in.x.size() == 0) return;
  const Index channels = in.x.extent(2), size = group_size(channels, options), groups = channels / size;
  const Index items = in.x.extent(0) * in.x.extent(1) * groups;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  auto from = in;
  auto target = to;
  flatten_rows(items / groups, from.x, from.z, target.out);
  const bool aligned = all_rows_aligned(in.x, in.weight, in.z, in.bias, to.out);
  with_row_shape<pack_size<T>, 2, 64>(size, aligned, [&](auto shape) {
    using Shape = decltype(shape);
    launch_rows("gated_norm_forward_kernel", gated_norm_forward_kernel<Centred, Shape, T>,
                cuda_runtime::blocks_for(items, Shape::rows), Shape::threads, 0, from, target, mean.data(), rstd.data(),
                static_cast<int>(size), static_cast<int>(groups), options.eps, options.norm_before_gate);
  });
}

}  // namespace detail

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved) {
  check(in, options, outputs);
  View<accumulate_t<T>, 3, cuda> rstd;
  if (saved) {
    saved->options = options;
    reuse_or_allocate(saved->rstd, Extents{in.x.extent(0), in.x.extent(1), group_count(in.x.extent(2), options)});
    rstd = saved->rstd;
  }
  detail::launch_forward<false>(in, options, outputs, {}, rstd);
}

}  // namespace diffmamba::gated_rms_norm
