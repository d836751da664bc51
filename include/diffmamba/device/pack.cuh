// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>  // std::is_same_v

#include "diffmamba/core/dtype.hpp"

/// Several neighbouring elements in one access of at most 16 bytes, as registers of the accumulation type.
namespace diffmamba::detail {

/// Elements of T in 16 bytes.
template <class T>
inline constexpr int pack_size = 16 / static_cast<int>(sizeof(T));

/// N elements as they lie in memory. An array of these may be loaded ahead and be widened when it is needed.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T elements[N];

  template <class A>
  __device__ void widen(A (&to)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = static_cast<A>(elements[i]);
  }
};

template <int N, class T>
__device__ inline Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T>
__device__ inline Pack<T, N> zero_pack() {
  Pack<T, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result.elements[i] = T{};
  return result;
}

/// One rounding to T, by the hardware's instruction.
template <class T, class A>
__device__ inline T narrow(A value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    T result;
    result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(static_cast<float>(value)));
    return result;
  } else if constexpr (std::is_same_v<T, half>) {
    T result;
    result.bits = __half_as_ushort(__float2half_rn(static_cast<float>(value)));
    return result;
  } else {
    return static_cast<T>(value);
  }
}

template <int N, class T, class A>
__device__ inline void store_pack(T* to, const A (&from)[N]) {
  Pack<T, N> pack;
  if constexpr (std::is_same_v<T, bfloat16> && N % 2 == 0) {  // two by one instruction
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[i], from[i + 1]);
      pack.elements[i].bits = __bfloat16_as_ushort(pair.x);
      pack.elements[i + 1].bits = __bfloat16_as_ushort(pair.y);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) pack.elements[i] = narrow<T>(from[i]);
  }
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

}  // namespace diffmamba::detail
