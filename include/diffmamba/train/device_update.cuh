// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/pack.cuh"
#include "diffmamba/train/device_update.hpp"

namespace diffmamba {

// CUDA kernels

namespace detail {

/// The sum over a block, in an order that only depends on its size; the first thread has it.
template <int Threads>
__device__ inline double block_sum(double value) {
  __shared__ double warps[Threads / 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = threadIdx.x < Threads / 32 ? warps[threadIdx.x] : 0.0;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  }
  return value;
}

}  // namespace detail

/// partial[tile] = sum of the squares of a tile of update_tile elements.
template <class R, int Threads>
__global__ void __launch_bounds__(Threads) squares_kernel(const R* x, Index size, double* partial, bool packs) {
  constexpr int N = detail::pack_size<R>;
  const Index begin = Index{blockIdx.x} * update_tile;
  const int count = static_cast<int>(size - begin < update_tile ? size - begin : update_tile);
  x += begin;
  double sum = 0;
  int i = 0;
  if (packs && count == update_tile) {
    constexpr int rounds = update_tile / (N * Threads);
    static_assert(rounds * N * Threads == update_tile);
    detail::Pack<R, N> loaded[rounds];
#pragma unroll
    for (int round = 0; round < rounds; ++round)
      loaded[round] = detail::load_pack<N>(x + (round * Threads + static_cast<int>(threadIdx.x)) * N);
#pragma unroll
    for (int round = 0; round < rounds; ++round)
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const double value = static_cast<double>(loaded[round].elements[j]);
        sum += value * value;
      }
    i = count;
  }
  for (i += static_cast<int>(threadIdx.x); i < count; i += Threads) {
    const double value = static_cast<double>(x[i]);
    sum += value * value;
  }
  sum = detail::block_sum<Threads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/// result = sqrt(sum of partial), one block.
template <int Threads>
__global__ void __launch_bounds__(Threads) norm_kernel(const double* partial, Index count, double* result) {
  double sum = 0;
  for (Index i = threadIdx.x; i < count; i += Threads) sum += partial[i];
  sum = detail::block_sum<Threads>(sum);
  if (threadIdx.x == 0) *result = sqrt(sum);
}

/// The norm from its partial sums, the factor that clips, and each kind's constants; one block.
template <class R, int Threads>
__global__ void __launch_bounds__(Threads)
    prepare_update_kernel(const double* partial, Index partials, const R* losses, int loss_count,
                          const StepScalars* scalars, AdamWOptions options, const UpdateKind* kinds, int kind_count,
                          detail::AdamWConstants<R>* constants, StepOutcome* outcome) {
  __shared__ double shared_scale;
  double sum = 0;
  for (Index i = threadIdx.x; i < partials; i += Threads) sum += partial[i];
  sum = detail::block_sum<Threads>(sum);
  const StepScalars now = *scalars;
  if (threadIdx.x == 0) {
    const double norm = now.gradient_scale * sqrt(sum);
    double loss = 0;
    for (int i = 0; i < loss_count; ++i) loss += static_cast<double>(losses[i]);
    if (loss_count > 0) loss /= loss_count;
    if (!isfinite(norm) || !isfinite(loss)) outcome->bad = 1;
    outcome->loss = loss;
    outcome->gradient_norm = norm;
    const double factor = isinf(now.clip) ? 1.0 : now.clip / (norm + 1e-6);
    shared_scale = now.gradient_scale * (factor < 1 ? factor : 1.0);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kind_count; i += Threads)
    constants[i] =
        detail::adamw_constants<R>(options, now.lr * kinds[i].lr_scale, options.weight_decay * kinds[i].decay_scale,
                                   now.correction1, now.correction2, shared_scale);
}

/// A tile of the flat array a block.
template <class R, class T, int Threads>
__global__ void __launch_bounds__(Threads)
    adamw_kernel(R* __restrict__ parameters, const R* __restrict__ gradients, R* __restrict__ exp_avg,
                 R* __restrict__ exp_avg_sq, T* __restrict__ shadows, const UpdateTile* __restrict__ tiles,
                 const detail::AdamWConstants<R>* __restrict__ constants, const StepOutcome* __restrict__ outcome,
                 bool packs) {
  constexpr int N = detail::pack_size<R>;
  if (outcome->bad != 0) return;
  const UpdateTile tile = tiles[blockIdx.x];
  const detail::AdamWConstants<R> c = constants[tile.kind];
  R *p = parameters + tile.begin, *m = exp_avg + tile.begin, *v = exp_avg_sq + tile.begin;
  const R* g = gradients + tile.begin;
  T* shadow = shadows == nullptr ? nullptr : shadows + tile.begin;
  int done = 0;
  if (packs && tile.begin % N == 0) {
    constexpr int unroll = 2;  // loads of so many packs are under way at once
    const int whole = tile.count / (N * Threads * unroll) * (N * Threads * unroll);
    for (int base = static_cast<int>(threadIdx.x) * N; base < whole; base += N * Threads * unroll) {
      detail::Pack<R, N> ps[unroll], gs[unroll], ms[unroll], vs[unroll];
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        const int i = base + u * N * Threads;
        ps[u] = detail::load_pack<N>(p + i);
        gs[u] = detail::load_pack<N>(g + i);
        ms[u] = detail::load_pack<N>(m + i);
        vs[u] = detail::load_pack<N>(v + i);
      }
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        const int i = base + u * N * Threads;
#pragma unroll
        for (int j = 0; j < N; ++j)
          detail::adamw_element(ps[u].elements[j], gs[u].elements[j], ms[u].elements[j], vs[u].elements[j], c);
        detail::store_pack<N>(p + i, ps[u].elements);
        detail::store_pack<N>(m + i, ms[u].elements);
        detail::store_pack<N>(v + i, vs[u].elements);
        if (shadow != nullptr) detail::store_pack<N>(shadow + i, ps[u].elements);
      }
    }
    done = whole;
  }
  for (int i = done + static_cast<int>(threadIdx.x); i < tile.count; i += Threads) {
    R parameter = p[i], average = m[i], square = v[i];
    detail::adamw_element(parameter, g[i], average, square, c);
    p[i] = parameter;
    m[i] = average;
    v[i] = square;
    if (shadow != nullptr) shadow[i] = detail::narrow<T>(parameter);
  }
}

// Launchers

namespace detail {

/// Number of partial sums written.
template <class R>
Index launch_squares(const View<const R, 1, cuda>& x, double* partial, const cuda_runtime::Stream& stream) {
  const Index tiles = (x.size() + update_tile - 1) / update_tile;
  if (tiles == 0) return 0;
  require(tiles < Index{1} << 31, "global_norm: too many gradients");
  const bool packs = reinterpret_cast<std::uintptr_t>(x.data()) % 16 == 0;
  squares_kernel<R, 256><<<static_cast<unsigned>(tiles), 256, 0, stream.handle>>>(x.data(), x.size(), partial, packs);
  cuda_runtime::check_launch("squares_kernel");
  return tiles;
}

}  // namespace detail

template <class R>
void device_norm(const View<const R, 1, cuda>& x, const View<double, 1, cuda>& result, Workspace<cuda>& workspace) {
  require(x.contiguous(), "global_norm: the gradients must be contiguous");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const auto mark = workspace.mark();
  double* partial = workspace.take<double>((x.size() + update_tile - 1) / update_tile);
  const Index partials = detail::launch_squares(x, partial, stream);
  norm_kernel<1024><<<1, 1024, 0, stream.handle>>>(partial, partials, result.data());
  cuda_runtime::check_launch("norm_kernel");
  workspace.reset(mark);
}

template <class R, class T>
void device_update(const UpdateArrays<R, T>& arrays, const AdamWOptions& options, MeasureNorm measure,
                   Workspace<cuda>& workspace) {
  const Index size = arrays.parameters.size();
  const auto check = [&](const char* name, const auto& view) {
    require(view.size() == size && view.contiguous(), "adamw: ", name, " has ", view.size(),
            " elements, expected a contiguous array of ", size);
  };
  check("parameters", arrays.parameters);
  check("gradients", arrays.gradients);
  check("exp_avg", arrays.exp_avg);
  check("exp_avg_sq", arrays.exp_avg_sq);
  if (arrays.shadows) check("shadows", arrays.shadows);
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const auto mark = workspace.mark();
  double* partial = workspace.take<double>((size + update_tile - 1) / update_tile);
  const int kinds = static_cast<int>(arrays.kinds.size());
  auto* constants = workspace.take<detail::AdamWConstants<R>>(kinds);
  const Index partials =
      measure == MeasureNorm::yes ? detail::launch_squares<R>(arrays.gradients, partial, stream) : Index{0};
  prepare_update_kernel<R, 1024><<<1, 1024, 0, stream.handle>>>(
      partial, partials, arrays.losses.data(), arrays.losses ? static_cast<int>(arrays.losses.size()) : 0,
      arrays.scalars.data(), options, arrays.kinds.data(), kinds, constants, arrays.outcome.data());
  cuda_runtime::check_launch("prepare_update_kernel");
  const Index tiles = arrays.tiles.size();
  require(tiles < Index{1} << 31, "adamw: too many parameters");
  if (tiles > 0) {
    const auto aligned = [](const auto* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
    const bool packs = aligned(arrays.parameters.data()) && aligned(arrays.gradients.data()) &&
                       aligned(arrays.exp_avg.data()) && aligned(arrays.exp_avg_sq.data()) &&
                       aligned(arrays.shadows.data());
    adamw_kernel<R, T, 256><<<static_cast<unsigned>(tiles), 256, 0, stream.handle>>>(
        arrays.parameters.data(), arrays.gradients.data(), arrays.exp_avg.data(), arrays.exp_avg_sq.data(),
        arrays.shadows.data(), arrays.tiles.data(), constants, arrays.outcome.data(), packs);
    cuda_runtime::check_launch("adamw_kernel");
  }
  workspace.reset(mark);
}

}  // namespace diffmamba
