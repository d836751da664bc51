// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::clamp

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/memory.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/linear/linear.hpp"

/// The gradient of the bias, the sum of dy over its rows: slabs of rows first, each summed by its block in a fixed
/// order, then the slabs in their order. (The other gradients are products.)
namespace diffmamba::detail {

// CUDA kernels

inline constexpr int column_sum_columns = 128, column_sum_lanes = 8;

/// Sums of the rows [slab * rows_per_slab, ...) of 128 columns: partial (slabs, columns). Vector elements are read at a
/// time, four where the rows allow it.
template <class T, int Vector>
__global__ __launch_bounds__(32 * column_sum_lanes) void column_sums_kernel(const T* x, Index row, Index column,
                                                                            Index rows, Index columns,
                                                                            Index rows_per_slab, Index column_tiles,
                                                                            accumulate_t<T>* partial) {
  using S = accumulate_t<T>;
  constexpr int each = column_sum_columns / 32;
  struct alignas(Vector * sizeof(T)) Elements {
    T value[Vector];
  };
  __shared__ S sums[column_sum_lanes][column_sum_columns];
  const Index slab = blockIdx.x / column_tiles, first = blockIdx.x % column_tiles * column_sum_columns;
  const Index begin = slab * rows_per_slab, end = begin + rows_per_slab < rows ? begin + rows_per_slab : rows;
  const int lane = threadIdx.x % 32, line = threadIdx.x / 32;
  S sum[each] = {};
  for (Index r = begin + line; r < end; r += column_sum_lanes) {
    const T* from = x + r * row;
#pragma unroll
    for (int q = 0; q < each; q += Vector) {
      const Index j = first + (Vector == 1 ? lane + q * 32 : lane * Vector);
      if (j >= columns) continue;
      if constexpr (Vector == 1) {
        sum[q] += static_cast<S>(from[j * column]);
      } else {
        const Elements elements = *reinterpret_cast<const Elements*>(from + j);
#pragma unroll
        for (int e = 0; e < Vector; ++e) sum[e] += static_cast<S>(elements.value[e]);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < each; ++q) sums[line][Vector == 1 ? lane + q * 32 : lane * Vector + q] = sum[q];
  __syncthreads();
  const int j = threadIdx.x;
  if (j >= column_sum_columns || first + j >= columns) return;
  S total = 0;
#pragma unroll
  for (int i = 0; i < column_sum_lanes; ++i) total += sums[i][j];
  partial[slab * columns + first + j] = total;
}

template <class S>
__global__ void add_slabs_kernel(const S* partial, Index slabs, Index columns, S* sums, Index stride, bool add) {
  const Index j = Index{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= columns) return;
  S total = 0;
  for (Index slab = 0; slab < slabs; ++slab) total += partial[slab * columns + j];
  S& target = sums[j * stride];
  target = add ? target + total : total;
}

// Launchers

template <class T>
void column_sums(const GpuMatrix& x, void* sums, Index stride, GradientMode mode, cudaStream_t stream) {
  using S = accumulate_t<T>;
  const Index column_tiles = (x.columns + column_sum_columns - 1) / column_sum_columns;
  const Index slabs = std::clamp<Index>((x.rows + 63) / 64, 1, std::max<Index>(1, 1024 / column_tiles));
  const Index rows_per_slab = (x.rows + slabs - 1) / slabs;
  Workspace<cuda> workspace(Workspace<cuda>::bytes_of<S>(slabs * x.columns));
  S* partial = workspace.take<S>(slabs * x.columns);
  const auto* data = static_cast<const T*>(x.data);
  constexpr int vector = 4;
  const bool vectors = x.column == 1 && x.columns % vector == 0 && x.row % vector == 0 &&
                       reinterpret_cast<std::uintptr_t>(data) % (vector * sizeof(T)) == 0;
  (vectors
       ? column_sums_kernel<T, vector>
       : column_sums_kernel<T, 1>)<<<static_cast<unsigned>(slabs * column_tiles), 32 * column_sum_lanes, 0, stream>>>(
      data, x.row, x.column, x.rows, x.columns, rows_per_slab, column_tiles, partial);
  cuda_runtime::check_launch("column_sums_kernel");
  add_slabs_kernel<<<static_cast<unsigned>((x.columns + 127) / 128), 128, 0, stream>>>(
      partial, slabs, x.columns, static_cast<S*>(sums), stride, mode == GradientMode::add);
  cuda_runtime::check_launch("add_slabs_kernel");
}

template <class>
void column_sums_on_gpu(const GpuMatrix& x, void* sums, Index stride, GradientMode mode) {
  if (x.columns == 0) return;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  switch (x.type) {
    case Dtype::float64:
      return column_sums<double>(x, sums, stride, mode, stream.handle);
    case Dtype::float32:
      return column_sums<float>(x, sums, stride, mode, stream.handle);
    case Dtype::bfloat16:
      return column_sums<bfloat16>(x, sums, stride, mode, stream.handle);
    case Dtype::float16:
      return column_sums<half>(x, sums, stride, mode, stream.handle);
    default:
      fail("linear: a GPU does not sum columns of type ", x.type);
  }
}

}  // namespace diffmamba::detail
