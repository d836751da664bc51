// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm.hpp"
#include "diffmamba/ops/row_kernels.cuh"

/// The forward pass of both gated norms on an NVIDIA GPU. A group of a row is read once and waits in registers.
namespace diffmamba::gated_rms_norm {
namespace detail {

using namespace diffmamba::detail;

/// Rows of a block in shared memory: the present one and the next.
inline constexpr int stages = 2;

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads)
    gated_norm_forward_kernel(const __grid_constant__ Inputs<T, cuda> in,
                              const __grid_constant__ OutputViews<T, cuda> to,
                              const __grid_constant__ View<accumulate_t<T>, 3, cuda> mean_out,
                              const __grid_constant__ View<accumulate_t<T>, 3, cuda> rstd_out, int size, int groups,
                              double eps_given, bool norm_before_gate) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = in.x.extent(1), items = in.x.extent(0) * length * groups;
  const bool several = Shape::cut(size);
  const bool gate_first = in.z && !norm_before_gate, gate_last = in.z && norm_before_gate;
  const A per_channel = A(1) / static_cast<A>(size);
  RowSums<Shape, A, 1> over_group;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();

  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue_x(free, true), queue_z(free, bool(in.z));
  const Index stride = Index{gridDim.x} * Shape::rows;
  const auto fetch = [&](Index item, int stage) {
    if (item < items) {
      const RowPosition of_row(item, groups);
      const RowPosition at(of_row.batch, length);
      const Index begin = of_row.token * size;
      queue_x.fetch(stage, at.of(in.x) + begin, size);
      if (in.z) queue_z.fetch(stage, at.of(in.z) + begin, size);
    }
    mma::commit_copies();
  };
  Index item = Index{blockIdx.x} * Shape::rows + Shape::group();
  for (int stage = 0; stage + 1 < stages; ++stage) fetch(item + stage * stride, stage);

  int stage = 0;
  for (Index first = Index{blockIdx.x} * Shape::rows; first < items; first += stride, item += stride) {
    const bool there = item < items;
    const int count = there ? size : 0;  // a group that is not there has no channels
    const RowPosition of_row(there ? item : 0, groups);
    const RowPosition at(of_row.batch, length);
    const int begin = static_cast<int>(of_row.token) * size;
    const T* const x = at.of(in.x) + begin;
    const T* const z = in.z ? at.of(in.z) + begin : nullptr;
    A u[Vectors][Unit];  // what is normalised: x, or x silu(z)
    const auto load = [&](int tile) {
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
#pragma unroll
        for (int i = 0; i < Unit; ++i) u[v][i] = 0;
        if (c >= count) continue;
        const auto xs = queue_x.unit(stage, v, x, c);
#pragma unroll
        for (int i = 0; i < Unit; ++i) u[v][i] = xs[i];
        if (!gate_first) continue;
        const auto gate = queue_z.unit(stage, v, z, c);
#pragma unroll
        for (int i = 0; i < Unit; ++i) u[v][i] *= gate[i] * sigmoid_for<T>(gate[i]);
      }
    };

    mma::wait_for_copies<stages - 2>();
    fetch(item + (stages - 1) * stride, stage == 0 ? stages - 1 : stage - 1);
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
        if (gate_last) {
          const auto gate = queue_z.unit(stage, v, z, c);
#pragma unroll
          for (int i = 0; i < Unit; ++i) u[v][i] *= gate[i] * sigmoid_for<T>(gate[i]);
        }
        store_unit(out + c, u[v]);
      }
    }
    stage = stage + 1 == stages ? 0 : stage + 1;
    if (there && Shape::lane() == 0) {
      if (mean_out) mean_out(at.batch, at.token, of_row.token) = mean;
      if (rstd_out) rstd_out(at.batch, at.token, of_row.token) = rstd;
    }
  }
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Both gated norms. `mean` and `rstd` are written where they are given.
template <bool Centred, class T>
void launch_forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& to,
                    const View<accumulate_t<T>, 3, cuda>& mean, const View<accumulate_t<T>, 3, cuda>& rstd) {
  if (in.x.size() == 0) return;
  const Index channels = in.x.extent(2), size = group_size(channels, options), groups = channels / size;
  const Index items = in.x.extent(0) * in.x.extent(1) * groups;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  auto from = in;
  auto target = to;
  auto mean_rows = mean, rstd_rows = rstd;
  flatten_rows(items / groups, from.x, from.z, target.out, mean_rows, rstd_rows);
  const bool aligned = all_rows_aligned(in.x, in.weight, in.z, in.bias, to.out);
  with_row_shape<T, 4>(size, aligned, [&](auto shape) {
    using Shape = decltype(shape);
    const int bytes = (in.z ? 2 : 1) * RowQueue<Shape, T, stages>::bytes;
    launch_resident(gated_norm_forward_kernel<Centred, Shape, T>, "gated_norm_forward_kernel",
                    (items + Shape::rows - 1) / Shape::rows, Shape::threads, bytes, from, target, mean_rows, rstd_rows,
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
