// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::max, std::min

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/pack.cuh"
#include "diffmamba/ops/dropout/dropout.hpp"

/// The words of block q of the generator decide about elements 4 q to 4 q + 3 in row-major order, as on the CPU. A
/// thread draws a block (two for 16-bit elements, which it then moves 16 bytes at a time) where x and out are dense.
namespace diffmamba::dropout {
namespace detail {

// CUDA kernels

/// Dense: packs of 2, 4 or 8 elements; what is left behind the last whole pack is the first block's.
template <class T, int Vector>
__global__ __launch_bounds__(256) void dense_kernel(const T* x, T* out, Index size, StepRandom generator,
                                                    std::uint64_t least, accumulate_t<T> factor) {
  using S = accumulate_t<T>;
  const Philox random = generator.get();
  const Index packs = size / Vector;
  const auto drawn = [&](S value, std::uint32_t word) { return word >= least ? value * factor : S(0); };
  for (Index i = Index{blockIdx.x} * 256 + threadIdx.x; i < packs; i += Index{gridDim.x} * 256) {
    S values[Vector];
    diffmamba::detail::load_pack<Vector>(x + i * Vector).widen(values);
    if constexpr (Vector % 4 == 0) {
#pragma unroll
      for (int q = 0; q < Vector / 4; ++q) {
        const RandomWords words = random(static_cast<std::uint64_t>(i * (Vector / 4) + q));
#pragma unroll
        for (int e = 0; e < 4; ++e) values[q * 4 + e] = drawn(values[q * 4 + e], words.word[e]);
      }
    } else {
      const RandomWords words = random(static_cast<std::uint64_t>(i / 2));
#pragma unroll
      for (int e = 0; e < Vector; ++e) values[e] = drawn(values[e], i % 2 == 0 ? words.word[e] : words.word[2 + e]);
    }
    diffmamba::detail::store_pack<Vector>(out + i * Vector, values);
  }
  if (blockIdx.x == 0 && threadIdx.x < size - packs * Vector) {
    const Index i = packs * Vector + threadIdx.x;
    out[i] = diffmamba::detail::narrow<T>(
        drawn(static_cast<S>(x[i]), random(static_cast<std::uint64_t>(i / 4)).word[i % 4]));
  }
}

template <class T>
__global__ __launch_bounds__(256) void strided_kernel(View<const T, 4, cuda> x, View<T, 4, cuda> out,
                                                      StepRandom generator, std::uint64_t least,
                                                      accumulate_t<T> factor) {
  using S = accumulate_t<T>;
  const Philox random = generator.get();
  const Index size = x.size();
  for (Index i = Index{blockIdx.x} * 256 + threadIdx.x; i < size; i += Index{gridDim.x} * 256) {
    Index rest = i, index[4];
#pragma unroll
    for (int axis = 3; axis >= 0; --axis) {
      index[axis] = rest % x.extent(axis);
      rest /= x.extent(axis);
    }
    const std::uint32_t word = random(static_cast<std::uint64_t>(i / 4)).word[i % 4];
    const S value = static_cast<S>(x(index[0], index[1], index[2], index[3]));
    out(index[0], index[1], index[2], index[3]) = diffmamba::detail::narrow<T>(word >= least ? value * factor : S(0));
  }
}

}  // namespace detail

// Launchers

template <class T>
void drop_on_gpu(const View<const T, 4, cuda>& x, const Options& options, const View<T, 4, cuda>& out) {
  using S = accumulate_t<T>;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  constexpr int vector = diffmamba::detail::pack_size<T>;
  constexpr unsigned most_blocks = 132 * 16;  // so that the chain of generators is worked out once for many elements
  const auto blocks = [&](Index items) { return std::min(cuda_runtime::blocks_for(items, 256), most_blocks); };
  const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  if (x.contiguous() && out.contiguous() && aligned(x.data()) && aligned(out.data())) {
    detail::dense_kernel<T, vector><<<std::max(1u, blocks(x.size() / vector)), 256, 0, stream.handle>>>(
        x.data(), out.data(), x.size(), options.random, threshold(options), scale<S>(options));
    cuda_runtime::check_launch("dense_kernel");
  } else {
    detail::strided_kernel<T>
        <<<blocks(x.size()), 256, 0, stream.handle>>>(x, out, options.random, threshold(options), scale<S>(options));
    cuda_runtime::check_launch("strided_kernel");
  }
}

}  // namespace diffmamba::dropout
