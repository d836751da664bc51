// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/mma.cuh"
#include "diffmamba/ops/ssd/ssd.hpp"

namespace diffmamba::ssd::detail {

/// A state (N x 64) in the registers of four warps, in float: warp w has rows w N / 4 and on.
template <class T, int N>
struct StateTile {
  static constexpr int P = 64, m_tiles = N / 64;  // of 16 rows, per warp
  float values[m_tiles][8][4];
  int warp, lane;

  __device__ StateTile(int warp_of_four, int lane_of_warp) : warp(warp_of_four), lane(lane_of_warp) {}

  /// visit(row, column, value)
  template <class Visit>
  __device__ void for_each(Visit&& visit) {
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          visit(warp * (N / 4) + m * 16 + (k / 2) * 8 + lane / 4, n * 8 + 2 * (lane % 4) + k % 2, values[m][n][k]);
  }
  /// visit(row, column, values), column and the next one
  template <class Visit>
  __device__ void for_each_pair(Visit&& visit) {
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int half_row = 0; half_row < 2; ++half_row)
          visit(warp * (N / 4) + m * 16 + half_row * 8 + lane / 4, n * 8 + 2 * (lane % 4),
                make_float2(values[m][n][2 * half_row], values[m][n][2 * half_row + 1]));
  }
  __device__ void scale(float factor) {
    for_each([&](int, int, float& value) { value *= factor; });
  }
  /// += left^T (weight . right), left (Tokens, N) and right (Tokens, 64); weight(t) of token t.
  template <int Tokens, class Weight>
  __device__ void add_products(const T* left, const T* right, Weight&& weight) {
#pragma unroll(sizeof(T) == 2 ? Tokens / 16 : 1)
    for (int k = 0; k < Tokens / 16; ++k) {
      float weights[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[i] = weight(k * 16 + 2 * (lane % 4) + i / 2 * 8 + i % 2);
      mma::Left<T> a[m_tiles];
#pragma unroll
      for (int m = 0; m < m_tiles; ++m) {
        a[m] = mma::load_left_transposed<T, N>(left, k * 16, warp * (N / 4) + m * 16, lane);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float2 value = mma::unpack<T>(a[m].pairs[r]);
          a[m].pairs[r] = mma::pack<T>(value.x * weights[r / 2 * 2], value.y * weights[r / 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        mma::Right<T> b[2];
        mma::load_right_rows<T, P>(b, right, k * 16, n * 8, lane);
#pragma unroll
        for (int m = 0; m < m_tiles; ++m) mma::multiply_add(values[m] + n, a[m], b);
      }
    }
  }
  /// This warp's rows, in T, into a tile in shared memory.
  __device__ void store(T* tile) {
    for_each_pair([&](int row, int column, float2 pair) {
      *reinterpret_cast<mma::pair_t<T>*>(tile + mma::pair_at<T, P>(row, column / 8, lane % 4)) =
          mma::pack<T>(pair.x, pair.y);
    });
  }
};

}  // namespace diffmamba::ssd::detail
