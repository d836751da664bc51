// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/dtype.hpp"

/// What a warp says to the tensor cores (sm_80 and later), and asynchronous copies into shared memory. Fragments are
/// those of mma.m16n8k16: lane l holds row l / 4 (and 8 below it) and columns 2 (l % 4), 2 (l % 4) + 1.
///
/// `Left`, `Right` and what loads and multiplies them are the same for 16-bit types and for float, so that a kernel can
/// be written once. Floats are multiplied as three products of tf32 (x = high + low, and low low is left out), each sum
/// over 16 begun at zero and added to the rest by ordinary additions, because tensor cores cut sums off where additions
/// round: about as exact as multiply-adds in float.
namespace diffmamba::mma {

/// 2^x to about 2e-7 relative; 0 below 2^-126.
__device__ inline float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Two neighbours: 16-bit numbers in a register, the first in the lower half, or two floats.
template <class T>
using pair_t = std::conditional_t<sizeof(T) == 4, float2, unsigned>;

template <class T>
__device__ inline pair_t<T> pack(float first, float second) {
  pair_t<T> result;
  if constexpr (std::is_same_v<T, float>) {
    result = make_float2(first, second);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    result = *reinterpret_cast<const unsigned*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    result = *reinterpret_cast<const unsigned*>(&pair);
  }
  return result;
}
template <class T>
__device__ inline float2 unpack(pair_t<T> pair) {
  if constexpr (std::is_same_v<T, float>)
    return pair;
  else if constexpr (std::is_same_v<T, bfloat16>)
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

// --- The same for 16-bit types and float
// -----------------------------------------------------------------------------

/// Where unit `unit` (16 bytes) of a row of a tile lies; `Columns` a multiple of 64. Of floats not only eight rows of
/// one unit lie in different banks, but also eight columns of four rows that follow one another or each other's next.
template <class T, int Columns>
__device__ inline int unit_at(int row, int unit) {
  if constexpr (sizeof(T) == 2) {
    return swizzled<Columns>(row, unit);
  } else {
    const int key = (row & 2) << 1 | ((row ^ row >> 2) & 1) << 1 | (row >> 2 & 1);
    return row * Columns + (unit ^ key) * 4;
  }
}
/// Where columns 8 eight + 2 two and the next one of a row lie.
template <class T, int Columns>
__device__ inline int pair_at(int row, int eight, int two) {
  if constexpr (sizeof(T) == 2)
    return swizzled<Columns>(row, eight) + 2 * two;
  else
    return unit_at<T, Columns>(row, 2 * eight + two / 2) + 2 * (two % 2);
}

/// Where a lane finds its part of a matrix of floats at the upper left corner of a tile, and where, from there, that of
/// the matrix `row` rows (a multiple of 8) and `eight` times eight columns further: of four numbers a lane has, all
/// places in a tile follow by constants.
template <int Columns>
__device__ inline int along_rows(int row, int eight, int lane) {
  return row * Columns + eight / 4 * 32 + (pair_at<float, Columns>(lane / 4, 0, lane % 4) ^ eight % 4 * 8);
}
/// The same of the transpose, its row `odd` of two neighbours.
template <int Columns>
__device__ inline int along_columns(int row, int odd, int eight, int lane) {
  const int corner = unit_at<float, Columns>(lane % 4 * 2, lane / 16) + lane / 4 % 4;
  return (row + odd) * Columns + eight / 4 * 32 + (corner ^ (eight % 4 ^ odd) * 8);
}

/// A lane's part of a left factor, 16 x 16: row l / 4 and 8 below it of columns 2 (l % 4) and on, then the same of
/// eight columns further.
template <class T>
struct Left {
  pair_t<T> pairs[4];
};
/// Of a right factor, 16 x 8: rows 2 (l % 4) and the next one of column l / 4, then the same of eight rows further.
template <class T>
struct Right {
  pair_t<T> pairs[2];
};

/// Rows from `row` on and columns from `column` on (multiples of 16) of a tile.
template <class T, int Columns>
__device__ inline Left<T> load_left(const T* tile, int row, int column, int lane) {
  Left<T> a;
  if constexpr (sizeof(T) == 2) {
    load_matrices(a.pairs, tile + swizzled<Columns>(row + lane % 16, column / 8 + lane / 16));
  } else {
#pragma unroll
    for (int r = 0; r < 4; ++r)
      a.pairs[r] =
          *reinterpret_cast<const float2*>(tile + along_rows<Columns>(row + r % 2 * 8, column / 8 + r / 2, lane));
  }
  return a;
}
/// The transpose of a part of a tile: its rows from `inner` on are the factor's columns, its columns from `row` on the
/// factor's rows.
template <class T, int Columns>
__device__ inline Left<T> load_left_transposed(const T* tile, int inner, int row, int lane) {
  Left<T> a;
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(a.pairs,
                             tile + swizzled<Columns>(inner + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
  } else {
#pragma unroll
    for (int r = 0; r < 4; ++r)
      a.pairs[r] = make_float2(tile[along_columns<Columns>(inner + r / 2 * 8, 0, row / 8 + r % 2, lane)],
                               tile[along_columns<Columns>(inner + r / 2 * 8, 1, row / 8 + r % 2, lane)]);
  }
  return a;
}
/// Two right factors side by side, columns from `column` on, whose columns are rows of the tile.
template <class T, int Columns>
__device__ inline void load_right(Right<T> (&b)[2], const T* tile, int column, int inner, int lane) {
  if constexpr (sizeof(T) == 2) {
    unsigned r[4];
    load_matrices(r, tile + swizzled<Columns>(column + lane % 16, inner / 8 + lane / 16));
    b[0] = {r[0], r[2]};
    b[1] = {r[1], r[3]};
  } else {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        b[n].pairs[r] =
            *reinterpret_cast<const float2*>(tile + along_rows<Columns>(column + n * 8, inner / 8 + r, lane));
  }
}
/// The same where the factors' rows are rows of the tile.
template <class T, int Columns>
__device__ inline void load_right_rows(Right<T> (&b)[2], const T* tile, int inner, int column, int lane) {
  if constexpr (sizeof(T) == 2) {
    unsigned r[4];
    load_matrices_transposed(r, tile + swizzled<Columns>(inner + lane % 16, column / 8 + lane / 16));
    b[0] = {r[0], r[1]};
    b[1] = {r[2], r[3]};
  } else {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        b[n].pairs[r] = make_float2(tile[along_columns<Columns>(inner + r * 8, 0, column / 8 + n, lane)],
                                    tile[along_columns<Columns>(inner + r * 8, 1, column / 8 + n, lane)]);
  }
}
/// A product's two tiles of 16 x 8 as a left factor.
template <class T>
__device__ inline Left<T> left_of(const float (&c)[2][4]) {
  return {{pack<T>(c[0][0], c[0][1]), pack<T>(c[0][2], c[0][3]), pack<T>(c[1][0], c[1][1]), pack<T>(c[1][2], c[1][3])}};
}

/// A float as the tf32 next to it, whose last 13 bits mean nothing, and what is left.
__device__ inline void split(float x, unsigned& high, unsigned& low) {
  high = __float_as_uint(x) + 0x1000u;
  low = __float_as_uint(x - __uint_as_float(high & 0xffffe000u));
}

/// c[n] (16 x 8, float) += a b[n]
template <class T, int Tiles>
__device__ inline void multiply_add(float (*c)[4], const Left<T>& a, const Right<T> (&b)[Tiles]) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) multiply_add<T>(c[n], a.pairs, b[n].pairs[0], b[n].pairs[1]);
  } else {
    unsigned a_high[2][4], a_low[2][4], b_high[Tiles][2][2], b_low[Tiles][2][2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float2 pair = a.pairs[2 * k + r % 2];
        split(r < 2 ? pair.x : pair.y, a_high[k][r], a_low[k][r]);
      }
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        split(b[n].pairs[k].x, b_high[n][k][0], b_low[n][k][0]);
        split(b[n].pairs[k].y, b_high[n][k][1], b_low[n][k][1]);
      }
    }
    float sum[Tiles][4] = {};
    const auto add = [&](const unsigned(&left)[2][4], const unsigned(&right)[Tiles][2][2]) {
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int n = 0; n < Tiles; ++n) multiply_add_tf32(sum[n], left[k], right[n][k][0], right[n][k][1]);
    };
    add(a_low, b_high);
    add(a_high, b_low);
    add(a_high, b_high);
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[n][i] += sum[n][i];
  }
}

}  // namespace diffmamba::mma
