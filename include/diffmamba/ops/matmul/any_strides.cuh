// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/ops/matmul/matmul.hpp"

/// The product that is always there: any strides, any alignment, operands of two types, an empty inner axis. A block
/// makes a tile of c from tiles of a and b in shared memory; every element is summed by one thread in the order of k.
namespace diffmamba::detail {

template <class T>
struct StridedMatrix {
  T* data;
  Index row, column, batch;
  explicit StridedMatrix(const GpuMatrix& from)
      : data(static_cast<T*>(from.data)), row(from.row), column(from.column), batch(from.batch) {}
};

// CUDA kernels

template <class A, class B, class C>
__global__ __launch_bounds__(256) void any_strides_kernel(StridedMatrix<const A> a, StridedMatrix<const B> b,
                                                          StridedMatrix<C> c, Index m, Index n, Index k,
                                                          Index row_tiles, Index column_tiles, accumulate_t<C> alpha,
                                                          accumulate_t<C> beta, const accumulate_t<C>* bias,
                                                          Index bias_stride) {
  using S = accumulate_t<C>;
  constexpr int side = 64, depth = 16;
  __shared__ S a_tile[depth][side + 1], b_tile[depth][side + 1];
  const Index tile = blockIdx.x, which = tile / (row_tiles * column_tiles), rest = tile % (row_tiles * column_tiles);
  const Index i0 = rest % row_tiles * side, j0 = rest / row_tiles * side;
  a.data += which * a.batch;
  b.data += which * b.batch;
  c.data += which * c.batch;
  const int thread = threadIdx.x, row = thread / 16 * 4, column = thread % 16 * 4;
  // Neighbouring threads read along the axis that is contiguous.
  const bool a_along_k = a.column == 1, b_along_k = b.row == 1;
  S sum[4][4] = {};
  for (Index p0 = 0; p0 < k; p0 += depth) {
#pragma unroll
    for (int q = 0; q < side * depth / 256; ++q) {
      const int e = thread + q * 256;
      const int ap = a_along_k ? e % depth : e / side, ai = a_along_k ? e / depth : e % side;
      const int bp = b_along_k ? e % depth : e / side, bj = b_along_k ? e / depth : e % side;
      a_tile[ap][ai] =
          i0 + ai < m && p0 + ap < k ? static_cast<S>(a.data[(i0 + ai) * a.row + (p0 + ap) * a.column]) : S(0);
      b_tile[bp][bj] =
          j0 + bj < n && p0 + bp < k ? static_cast<S>(b.data[(p0 + bp) * b.row + (j0 + bj) * b.column]) : S(0);
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p < depth; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += a_tile[p][row + i] * b_tile[p][column + j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (i0 + row + i >= m || j0 + column + j >= n) continue;
      C& target = c.data[(i0 + row + i) * c.row + (j0 + column + j) * c.column];
      S value = alpha * sum[i][j];
      if (bias != nullptr) value += bias[(j0 + column + j) * bias_stride];
      if (beta != S(0)) value += beta * static_cast<S>(target);
      target = static_cast<C>(value);
    }
}

template <class C>
__global__ void add_bias_kernel(C* c, Index row, Index columns, Index size, const accumulate_t<C>* bias,
                                Index bias_stride) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += Index{gridDim.x} * blockDim.x) {
    const Index column = i % columns;
    C& target = c[i / columns * row + column];
    target = static_cast<C>(static_cast<accumulate_t<C>>(target) + bias[column * bias_stride]);
  }
}

// Launchers

template <class A, class B, class C>
void multiply_any_strides(const GpuMatrix& a, const GpuMatrix& b, const GpuMatrix& c, Index batch,
                          const MatmulOptions& options, const void* bias, Index bias_stride, cudaStream_t stream) {
  using S = accumulate_t<C>;
  const Index row_tiles = (c.rows + 63) / 64, column_tiles = (c.columns + 63) / 64;
  const Index blocks = row_tiles * column_tiles * batch, k = options.alpha == 0 ? 0 : a.columns;
  require(blocks < Index{1} << 31, "matmul: ", blocks, " tiles are more than a GPU takes in one launch");
  any_strides_kernel<A, B, C><<<static_cast<unsigned>(blocks), 256, 0, stream>>>(
      StridedMatrix<const A>(a), StridedMatrix<const B>(b), StridedMatrix<C>(c), c.rows, c.columns, k, row_tiles,
      column_tiles, static_cast<S>(options.alpha), static_cast<S>(options.beta), static_cast<const S*>(bias),
      bias_stride);
  cuda_runtime::check_launch("any_strides_kernel");
}

inline void multiply_any_strides(const GpuMatrix& a, const GpuMatrix& b, const GpuMatrix& c, Index batch,
                                 const MatmulOptions& options, const void* bias, Index bias_stride,
                                 cudaStream_t stream) {
  bool done = false;
  const auto try_types = [&]<class A, class B, class C>() {
    if (done || a.type != dtype_of<A> || b.type != dtype_of<B> || c.type != dtype_of<C>) return;
    multiply_any_strides<A, B, C>(a, b, c, batch, options, bias, bias_stride, stream);
    done = true;
  };
  try_types.template operator()<float, float, float>();
  try_types.template operator()<double, double, double>();
  try_types.template operator()<bfloat16, bfloat16, bfloat16>();
  try_types.template operator()<bfloat16, bfloat16, float>();
  try_types.template operator()<half, half, half>();
  try_types.template operator()<half, half, float>();
  try_types.template operator()<float, bfloat16, bfloat16>();
  try_types.template operator()<float, bfloat16, float>();
  try_types.template operator()<bfloat16, float, bfloat16>();
  try_types.template operator()<bfloat16, float, float>();
  require(done, "matmul: a GPU does not multiply ", a.type, " by ", b.type, " into ", c.type);
}

/// c += bias, a row at a time.
inline void add_bias(const GpuMatrix& c, const void* bias, Index bias_stride, cudaStream_t stream) {
  const Index size = c.rows * c.columns;
  const auto launch = [&]<class C>() {
    add_bias_kernel<<<cuda_runtime::blocks_for(size, 256), 256, 0, stream>>>(
        static_cast<C*>(c.data), c.row, c.columns, size, static_cast<const accumulate_t<C>*>(bias), bias_stride);
  };
  if (c.type == Dtype::bfloat16)
    launch.template operator()<bfloat16>();
  else if (c.type == Dtype::float16)
    launch.template operator()<half>();
  else if (c.type == Dtype::float64)
    launch.template operator()<double>();
  else
    launch.template operator()<float>();
  cuda_runtime::check_launch("add_bias_kernel");
}

}  // namespace diffmamba::detail
