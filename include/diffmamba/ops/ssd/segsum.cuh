// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>  // std::numeric_limits

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/ops/ssd/segsum.hpp"

/// Segment sums on an NVIDIA GPU, in the CPU's order: a thread walks down a column of a matrix.
namespace diffmamba::ssd::segsum {
namespace detail {

// CUDA kernels

/// A thread for every column j of every matrix: out_ij for all i.
template <class T>
__global__ void segsum_kernel(View<const T, 2, cuda> x, T* out, T minus_infinity) {
  const Index length = x.extent(1), column = Index{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= x.extent(0) * length) return;
  const Index row = column / length, j = column % length;
  T* const place = out + row * length * length + j;
  T sum = T(0);
  for (Index i = 0; i < length; ++i) {
    if (i > j) sum += x(row, i);
    place[i * length] = i < j ? minus_infinity : sum;
  }
}

/// sums_kj = sum_{i >= k} dout_ij for j < k: a thread for every column of every matrix.
template <class T>
__global__ void segsum_columns_kernel(View<const T, 3, cuda> dout, T* sums) {
  const Index length = dout.extent(1), column = Index{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= dout.extent(0) * length) return;
  const Index row = column / length, j = column % length;
  T* const place = sums + row * length * length + j;
  T sum = T(0);
  for (Index k = length - 1; k > j; --k) place[k * length] = sum += dout(row, k, j);
}

/// dx_k = sum_{j < k} sums_kj: a warp for every k of every matrix.
template <class T>
__global__ void segsum_rows_kernel(const T* sums, T* dx, Index length, Index count) {
  const Index item = (Index{blockIdx.x} * blockDim.x + threadIdx.x) / 32, k = item % length;
  if (item >= count) return;
  const T* const row = sums + item * length;
  T sum = T(0);
  for (Index j = threadIdx.x % 32; j < k; j += 32) sum += row[j];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) dx[item] = sum;
}

// Launchers

inline unsigned blocks_of(Index threads) {
  const Index blocks = (threads + 127) / 128;
  require(blocks < (Index{1} << 31), "ssd::segsum: a batch of this size does not fit into one launch");
  return static_cast<unsigned>(blocks);
}

}  // namespace detail

template <class T>
Tensor<T, 3, cuda> forward(const View<const T, 2, cuda>& x) {
  require_dense_rows("ssd::segsum", "x", x);
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  auto out = Tensor<T, 3, cuda>::uninitialized(Extents{x.extent(0), x.extent(1), x.extent(1)});
  if (x.size() == 0) return out;
  detail::segsum_kernel<<<detail::blocks_of(x.size()), 128, 0, stream.handle>>>(x, out.data(),
                                                                                -std::numeric_limits<T>::infinity());
  cuda_runtime::check_launch("segsum_kernel");
  return out;
}

template <class T>
Tensor<T, 2, cuda> backward(const View<const T, 3, cuda>& dout) {
  require_dense_rows("ssd::segsum", "dout", dout);
  require(dout.extent(1) == dout.extent(2), "ssd::segsum: dout is ", dout.extents(), ", expected square matrices");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const Index length = dout.extent(1), count = dout.extent(0) * length;
  auto dx = Tensor<T, 2, cuda>::uninitialized(Extents{dout.extent(0), length});
  if (count == 0) return dx;
  auto sums = Tensor<T, 3, cuda>::uninitialized(dout.extents());
  detail::segsum_columns_kernel<<<detail::blocks_of(count), 128, 0, stream.handle>>>(dout, sums.data());
  cuda_runtime::check_launch("segsum_columns_kernel");
  detail::segsum_rows_kernel<<<detail::blocks_of(count * 32), 128, 0, stream.handle>>>(sums.data(), dx.data(), length,
                                                                                       count);
  cuda_runtime::check_launch("segsum_rows_kernel");
  return dx;
}

}  // namespace diffmamba::ssd::segsum
