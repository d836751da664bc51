// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/dtype.hpp"

/// What a warp says to the tensor cores (sm_80 and later), and asynchronous copies into shared memory. Fragments are
/// those of mma.m16n8k16: lane l holds row l / 4 (and 8 below it) and columns 2 (l % 4), 2 (l % 4) + 1.
namespace diffmamba::mma {

/// 2^x to about 2e-7 relative; 0 below 2^-126.
__device__ inline float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Two 16-bit numbers in a register, the first in the lower half.
template <class T>
__device__ inline unsigned pack(float first, float second) {
  unsigned result;
  if constexpr (std::is_same_v<T, bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    result = *reinterpret_cast<const unsigned*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    result = *reinterpret_cast<const unsigned*>(&pair);
  }
  return result;
}
template <class T>
__device__ inline float2 unpack(unsigned pair) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
  else
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

/// c (16 x 8, float) += a (16 x 16) b (16 x 8)
template <class T>
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<T, bfloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// c (16 x 8) += a (16 x 8) b (8 x 8) of floats cut to tf32 (their last 13 bits are ignored): a[0] is row l / 4, column
/// l % 4, a[1] 8 rows below, a[2] and a[3] four columns further; b0 row l % 4, column l / 4, b1 four rows below.
__device__ inline void multiply_add_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
/// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

/// Starts a copy of 16 bytes from global to shared memory; zeros instead if not `valid`.
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Pending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// A matrix of 16-bit numbers in shared memory, `Columns` a multiple of 64: units of 16 bytes are exchanged within a
/// row by the row's number, so that eight rows of one column of units lie in different banks.
template <int Columns>
__device__ inline int swizzled(int row, int unit) {
  return row * Columns + ((unit ^ (row & 7)) * 8);
}

}  // namespace diffmamba::mma
