// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/mma.cuh"
#include "diffmamba/device/overlap.cuh"
#include "diffmamba/ops/matmul/matmul.hpp"

/// Few rows against a weight, y = alpha x w^T + beta y + bias with x (m, k), w (n, k), both with contiguous rows:
/// decoding. All that counts is that w is read once and that enough of it is under way at any time. A block takes a few
/// rows of w and cuts k among its warps; every lane has all its loads of a turn (four of 16 bytes per row of w) in
/// flight before it uses the first; the warps' sums are added in their order. While the kernel before still computes x,
/// the block's part of w already moves into L2.
///
/// 16-bit operands are multiplied by the tensor cores, not for speed, of which there is plenty, but since they need no
/// conversions and share a weight among the rows of x: x is the 16 x 16 operand, of which m rows are used, w the 16 x 8
/// one. The elements of a block of 32 along k are dealt to the fragments so that each lane's four are the 16 bytes it
/// loads; as x and w are dealt alike, the product is the same. Float operands are multiplied and added one by one.
namespace diffmamba::detail {

struct FewRows {
  const void* x;
  const void* w;
  void* y;
  const void* bias;  // null: none
  Index x_row, w_row, y_row, y_column, bias_stride;
  Index n;
  int m, k;
  float alpha, beta;
};

/// 16 bytes of a weight, which nobody reads twice.
__device__ inline uint4 load_once(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

/// The block's rows of w, [first, last), on their way into L2: a warp asks, a row per lane.
template <class T>
__device__ inline void prefetch_weight(const FewRows& p, Index first, Index last) {
  const Index row = first + threadIdx.x;
  if (row < last) cuda_runtime::prefetch_to_l2(static_cast<const T*>(p.w) + row * p.w_row, p.k * sizeof(T));
}

/// Element (i, j) of the result from its sum.
template <class C>
__device__ inline void store_few_rows(const FewRows& p, int i, Index j, float sum) {
  C& target = static_cast<C*>(p.y)[i * p.y_row + j * p.y_column];
  float value = p.alpha * sum;
  if (p.bias != nullptr) value += static_cast<const float*>(p.bias)[j * p.bias_stride];
  if (p.beta != 0.0f) value += p.beta * static_cast<float>(target);
  target = static_cast<C>(value);
}

/// Elements of k that a warp takes in a turn.
inline constexpr int few_rows_turn = 128;
inline constexpr int few_rows_most_warps = 16;

// CUDA kernels

/// T: bfloat16 or half. `Groups` times 8 rows of w per block; up to 8 rows of x, or with `Halves` = 2 up to 16.
template <class T, class C, int Groups, int Halves>
__global__ __launch_bounds__(32 * few_rows_most_warps) void few_rows_kernel(const __grid_constant__ FewRows p) {
  constexpr int columns = 8 * Groups, rows = 8 * Halves, steps = few_rows_turn / 32;
  __shared__ float sums[few_rows_most_warps][columns * rows];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, quad = lane % 4;
  const Index first = Index{blockIdx.x} * columns;
  cuda_runtime::let_next_kernel_begin();
  prefetch_weight<T>(p, first, first + columns < p.n ? first + columns : p.n);
  cuda_runtime::wait_for_earlier_kernels();

  const T* w = static_cast<const T*>(p.w) + quad * 8;
  const T* x = static_cast<const T*>(p.x) + quad * 8;
  const auto load_w = [&](uint4(&fragment)[Groups][steps], int begin) {
#pragma unroll
    for (int i = 0; i < Groups; ++i) {
      const Index row = first + i * 8 + group;
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        const int place = begin + s * 32;
        fragment[i][s] = row < p.n && place + quad * 8 < p.k ? load_once(w + row * p.w_row + place) : uint4{};
      }
    }
  };
  float c[Groups][4] = {};
  uint4 now[Groups][steps];
  if (warp * few_rows_turn < p.k) load_w(now, warp * few_rows_turn);
  for (int begin = warp * few_rows_turn; begin < p.k; begin += warps * few_rows_turn) {
    uint4 a[Halves][steps];
#pragma unroll
    for (int h = 0; h < Halves; ++h)
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        const int row = group + h * 8, place = begin + s * 32;
        a[h][s] =
            row < p.m && place + quad * 8 < p.k ? *reinterpret_cast<const uint4*>(x + row * p.x_row + place) : uint4{};
      }
    uint4 next[Groups][steps];
    const int following = begin + warps * few_rows_turn;
    if (following < p.k) load_w(next, following);
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      const uint4 low = a[0][s], high = Halves == 2 ? a[Halves - 1][s] : uint4{};
#pragma unroll
      for (int i = 0; i < Groups; ++i) {
        mma::multiply_add<T>(c[i], {low.x, high.x, low.y, high.y}, now[i][s].x, now[i][s].y);
        mma::multiply_add<T>(c[i], {low.z, high.z, low.w, high.w}, now[i][s].z, now[i][s].w);
      }
    }
#pragma unroll
    for (int i = 0; i < Groups; ++i)
#pragma unroll
      for (int s = 0; s < steps; ++s) now[i][s] = next[i][s];
  }
#pragma unroll
  for (int i = 0; i < Groups; ++i)
#pragma unroll
    for (int e = 0; e < 2 * Halves; ++e)  // row group (+ 8), column 2 quad (+ 1)
      sums[warp][(i * 8 + quad * 2 + e % 2) * rows + group + e / 2 * 8] = c[i][e];
  __syncthreads();
  for (int element = threadIdx.x; element < columns * rows; element += blockDim.x) {
    const int i = element % rows;
    const Index j = first + element / rows;
    if (i >= p.m || j >= p.n) continue;
    float sum = 0;
    for (int from = 0; from < warps; ++from) sum += sums[from][element];
    store_few_rows<C>(p, i, j, sum);
  }
}

/// Float: `Rows` rows of x, four of w per block.
template <int Rows>
__global__ __launch_bounds__(32 * few_rows_most_warps) void few_rows_float_kernel(const __grid_constant__ FewRows p) {
  constexpr int columns = 4;
  __shared__ float sums[few_rows_most_warps][columns * Rows];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Index first = Index{blockIdx.x} * columns;
  cuda_runtime::let_next_kernel_begin();
  prefetch_weight<float>(p, first, first + columns < p.n ? first + columns : p.n);
  cuda_runtime::wait_for_earlier_kernels();

  const float* w = static_cast<const float*>(p.w) + lane * 4;
  const float* x = static_cast<const float*>(p.x) + lane * 4;
  float c[columns][Rows] = {};
  const auto load_w = [&](float4(&values)[columns], int begin) {
#pragma unroll
    for (int j = 0; j < columns; ++j) {
      const uint4 bits =
          first + j < p.n && begin + lane * 4 < p.k ? load_once(w + (first + j) * p.w_row + begin) : uint4{};
      values[j] = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w)};
    }
  };
  float4 now[columns];
  if (warp * few_rows_turn < p.k) load_w(now, warp * few_rows_turn);
  for (int begin = warp * few_rows_turn; begin < p.k; begin += warps * few_rows_turn) {
    float4 next[columns] = {};
    const int following = begin + warps * few_rows_turn;
    if (following < p.k) load_w(next, following);
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      const float4 a = i < p.m && begin + lane * 4 < p.k ? *reinterpret_cast<const float4*>(x + i * p.x_row + begin)
                                                         : float4{0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < columns; ++j) c[j][i] += a.x * now[j].x + a.y * now[j].y + a.z * now[j].z + a.w * now[j].w;
    }
#pragma unroll
    for (int j = 0; j < columns; ++j) now[j] = next[j];
  }
#pragma unroll
  for (int j = 0; j < columns; ++j)
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      float sum = c[j][i];
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane == 0) sums[warp][j * Rows + i] = sum;
    }
  __syncthreads();
  const int element = threadIdx.x, i = element % Rows;
  const Index j = first + element / Rows;
  if (element >= columns * Rows || i >= p.m || j >= p.n) return;
  float sum = 0;
  for (int from = 0; from < warps; ++from) sum += sums[from][element];
  store_few_rows<float>(p, i, j, sum);
}

// Launchers

/// Warps of a block: as many as there are turns along k, or such that each has the same number of them.
inline int few_rows_warps(int k) {
  const int turns = (k + few_rows_turn - 1) / few_rows_turn;
  const int each = (turns + few_rows_most_warps - 1) / few_rows_most_warps;
  return (turns + each - 1) / each;
}

template <class T, class C, int Groups, int Halves>
void launch_few_rows(const FewRows& p, cudaStream_t stream) {
  const Index blocks = (p.n + 8 * Groups - 1) / (8 * Groups);
  cuda_runtime::launch_overlapped("few_rows_kernel", few_rows_kernel<T, C, Groups, Halves>,
                                  dim3(static_cast<unsigned>(blocks)), dim3(32 * few_rows_warps(p.k)), 0, stream, p);
}
template <class T, class C>
void launch_few_rows(const FewRows& p, cudaStream_t stream) {
  const bool many = p.n >= 16 * 200;  // enough for every multiprocessor, with 16 rows of w at a time
  if (p.m <= 8)
    many ? launch_few_rows<T, C, 2, 1>(p, stream) : launch_few_rows<T, C, 1, 1>(p, stream);
  else
    many ? launch_few_rows<T, C, 2, 2>(p, stream) : launch_few_rows<T, C, 1, 2>(p, stream);
}
template <int Rows>
void launch_few_rows_float(const FewRows& p, cudaStream_t stream) {
  cuda_runtime::launch_overlapped("few_rows_float_kernel", few_rows_float_kernel<Rows>,
                                  dim3(static_cast<unsigned>((p.n + 3) / 4)), dim3(32 * few_rows_warps(p.k)), 0, stream,
                                  p);
}

/// Whether a product is one of few rows, and then does it.
inline bool multiply_few_rows_on_gpu(const GpuMatrix& a, const GpuMatrix& b, const GpuMatrix& c, Index batch,
                                     const MatmulOptions& options, const void* bias, Index bias_stride,
                                     cudaStream_t stream) {
  const bool wide = a.type == Dtype::float32;
  const Index most = wide ? 8 : 16, size = wide ? 4 : 2;
  if (batch != 1 || a.rows > most || a.type != b.type ||
      !(wide || a.type == Dtype::bfloat16 || a.type == Dtype::float16))
    return false;
  if (c.type != a.type && c.type != Dtype::float32) return false;
  if (a.column != 1 || b.row != 1 || a.columns > Index{1} << 30) return false;
  // Vectors of 16 bytes, whole ones only.
  const auto whole = [&](const void* data, Index step) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && step * size % 16 == 0;
  };
  if (a.columns * size % 16 != 0 || !whole(a.data, a.rows > 1 ? a.row : 0) ||
      !whole(b.data, b.columns > 1 ? b.column : 0))
    return false;
  const FewRows p{a.data,
                  b.data,
                  c.data,
                  bias,
                  a.row,
                  b.column,
                  c.row,
                  c.column,
                  bias_stride,
                  c.columns,
                  static_cast<int>(a.rows),
                  static_cast<int>(a.columns),
                  static_cast<float>(options.alpha),
                  static_cast<float>(options.beta)};
  if (wide) {
    if (p.m == 1)
      launch_few_rows_float<1>(p, stream);
    else if (p.m == 2)
      launch_few_rows_float<2>(p, stream);
    else if (p.m <= 4)
      launch_few_rows_float<4>(p, stream);
    else
      launch_few_rows_float<8>(p, stream);
  } else if (a.type == Dtype::bfloat16) {
    c.type == Dtype::float32 ? launch_few_rows<bfloat16, float>(p, stream)
                             : launch_few_rows<bfloat16, bfloat16>(p, stream);
  } else {
    c.type == Dtype::float32 ? launch_few_rows<half, float>(p, stream) : launch_few_rows<half, half>(p, stream);
  }
  return true;
}

}  // namespace diffmamba::detail
