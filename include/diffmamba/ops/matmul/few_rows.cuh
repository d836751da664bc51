// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::max

#include "diffmamba/device/hopper.cuh"
#include "diffmamba/device/mma.cuh"
#include "diffmamba/device/overlap.cuh"
#include "diffmamba/ops/matmul/matmul.hpp"

/// Few rows against a weight, y = alpha x w^T + beta y + bias with x (m, k), w (n, k), both with contiguous rows:
/// decoding. All that counts is that w is read once, that all of it is under way as early as can be, and that kernels
/// that follow one another leave no gap.
///
/// 16-bit operands: a small block takes 8 or 16 rows of w. The copy engine brings them into shared memory, which costs
/// no registers, so that the blocks of a whole weight, and those of the next, are on the GPU at once. They are
/// multiplied by the tensor cores, not for speed, of which there is plenty, but since these need no conversions and
/// share a weight among the rows of x: x is the 16 x 16 operand, of which m <= 8 rows are used, w the 16 x 8 one. The
/// elements of a block of 32 along k are dealt to the fragments so that each lane's are the 16 bytes it loads; as x and
/// w are dealt alike, the product is the same. Warps share k; their sums are added in their order.
///
/// While the kernel before still computes x, the rows of w already move towards L2, or, under WeightsAtRest, into
/// shared memory: by a warp of its own and two chunks at a time, for what the earlier kernels load now and what this
/// one will load of x queues up behind all that has been asked for. Float operands go through registers and are
/// multiplied and added one by one.
namespace diffmamba::detail {

struct FewRows {
  const void* x;
  const void* w;
  void* y;
  const void* bias;  // null: none
  Index x_row, w_row, y_row, y_column, bias_stride;
  Index n;
  int m, k;
  int chunk;  // elements of k that are brought at a time
  float alpha, beta;
  bool at_rest;  // nobody writes w any more
};

/// 16 bytes of a weight, which nobody reads twice.
__device__ inline uint4 load_once(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

/// Brings `bytes`, a multiple of 16, into shared memory; the barrier counts them.
__device__ inline void copy_bulk(void* shared, const void* global, int bytes, std::uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   hopper::shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(hopper::shared_address(barrier))
               : "memory");
#endif
}

/// The block's rows of w, [first, last), on their way into L2: a warp asks, a row per lane.
template <class T>
__device__ inline void prefetch_weight(const FewRows& p, Index first, Index last) {
  const Index row = first + threadIdx.x;
  if (row < last)
    cuda_runtime::prefetch_to_l2(static_cast<const T*>(p.w) + row * p.w_row, p.k * static_cast<int>(sizeof(T)));
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

/// Float: elements of k that a warp takes in a turn.
inline constexpr int few_rows_turn = 128, few_rows_most_warps = 16;

// CUDA kernels

inline constexpr int few_rows_warps = 8;   // at most, and one that brings the weight
inline constexpr int few_rows_chunks = 4;  // at most

/// Elements from one row of w to the next in shared memory: neighbours lie in different banks.
__host__ __device__ constexpr int few_rows_pitch(int k) {
  return k + 32;
}

/// The rows of a weight that a block takes, on their way into shared memory: [first, first + count). Every thread of the
/// block calls the members, in their order; the last warp brings the rows and does nothing else. T: bfloat16 or half.
template <class T>
class FewRowsTile {
 public:
  /// Before other kernels' results may be read.
  __device__ FewRowsTile(const FewRows& p, Index first, int count, T* tile, std::uint64_t (&arrived)[few_rows_chunks])
      : p_(p), w_(static_cast<const T*>(p.w) + first * p.w_row), tile_(tile), arrived_(arrived), count_(count) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) {
      for (int chunk = 0; chunk < chunks(); ++chunk) {
        hopper::initialise(&arrived_[chunk], 1);
        hopper::arrive_expecting(&arrived_[chunk], count_ * bytes_of(chunk));
      }
      hopper::publish_barriers();
    }
    __syncthreads();
    if (!brings()) return;
    const int lane = threadIdx.x % 32;
    if (p_.at_rest) {
      for (int chunk = 0; chunk < chunks(); ++chunk) {
        if (chunk >= 2) hopper::wait(&arrived_[chunk - 2], 0);
        copy_chunk(chunk);
      }
    } else if (lane < count_) {
      cuda_runtime::prefetch_to_l2(w_ + lane * p_.w_row, p_.k * static_cast<unsigned>(sizeof(T)));
    }
#endif
  }
  /// As soon as they may be.
  __device__ void bring() const {
#if __CUDA_ARCH__ >= 900
    if (brings() && !p_.at_rest)
      for (int chunk = 0; chunk < chunks(); ++chunk) copy_chunk(chunk);
#else
    constexpr int vector = 16 / sizeof(T);
    for (int row = 0; row < count_; ++row)
      for (int place = threadIdx.x * vector; place < p_.k; place += blockDim.x * vector)
        mma::copy_async(tile_ + row * few_rows_pitch(p_.k) + place, w_ + row * p_.w_row + place, true);
    mma::commit_copies();
#endif
  }
  /// Returns when elements [begin, end) of all rows are there.
  __device__ void wait(int begin, int end) const {
#if __CUDA_ARCH__ >= 900
    for (int chunk = begin / p_.chunk; chunk * p_.chunk < end; ++chunk) hopper::wait(&arrived_[chunk], 0);
#else
    mma::wait_for_copies<0>();
    __syncthreads();
#endif
  }

 private:
  __device__ bool brings() const { return threadIdx.x >= blockDim.x - 32; }
  __device__ int chunks() const { return (p_.k + p_.chunk - 1) / p_.chunk; }
  __device__ int bytes_of(int chunk) const {
    const int rest = p_.k - chunk * p_.chunk;
    return (rest < p_.chunk ? rest : p_.chunk) * static_cast<int>(sizeof(T));
  }
  __device__ void copy_chunk(int chunk) const {
    const int lane = threadIdx.x % 32;
    if (lane < count_)
      copy_bulk(tile_ + lane * few_rows_pitch(p_.k) + chunk * p_.chunk, w_ + lane * p_.w_row + chunk * p_.chunk,
                bytes_of(chunk), &arrived_[chunk]);
  }

  const FewRows& p_;
  const T* w_;
  T* tile_;
  std::uint64_t* arrived_;
  int count_;
};

/// T: bfloat16 or half. `Groups` times 8 rows of w per block.
template <class T, class C, int Groups>
__global__ __launch_bounds__(32 * (few_rows_warps + 1), 3) void few_rows_kernel(const __grid_constant__ FewRows p) {
  constexpr int columns = 8 * Groups, rows = 8, at_once = 8;
  extern __shared__ __align__(128) unsigned char few_rows_memory[];
  __shared__ std::uint64_t arrived[few_rows_chunks];
  __shared__ float sums[few_rows_warps][columns * rows];
  T* tile = reinterpret_cast<T*>(few_rows_memory);
  const int threads = blockDim.x - 32, warps = threads / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, quad = lane % 4, pitch = few_rows_pitch(p.k);
  const Index first = Index{blockIdx.x} * columns;
  const int count = static_cast<int>(p.n - first < columns ? p.n - first : columns);
  const FewRowsTile<T> weight(p, first, count, tile, arrived);
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  weight.bring();

  // Blocks of 32 along k: warp w takes blocks w, w + warps, ..., eight of them at once.
  const T* x = static_cast<const T*>(p.x) + group * p.x_row;
  uint4 a[at_once];
  const auto load_x = [&](int begin) {
#pragma unroll
    for (int s = 0; s < at_once; ++s) {
      const int place = begin + s * threads;
      a[s] = group < p.m && place < p.k ? *reinterpret_cast<const uint4*>(x + place) : uint4{};
    }
  };
  int begin = warp * 32 + quad * 8;
  if (warp < warps) load_x(begin);
  weight.wait(0, p.k);
  if (warp < warps) {
    // Rows of w from count on are whatever lies there: they make elements that nobody stores.
    float c[2][Groups][4] = {};
    while (true) {
#pragma unroll
      for (int s = 0; s < at_once; ++s) {
        const int place = begin + s * threads;
#pragma unroll
        for (int i = 0; i < Groups; ++i) {
          const uint4 b =
              place < p.k ? *reinterpret_cast<const uint4*>(tile + (i * 8 + group) * pitch + place) : uint4{};
          mma::multiply_add<T>(c[0][i], {a[s].x, 0u, a[s].y, 0u}, b.x, b.y);
          mma::multiply_add<T>(c[1][i], {a[s].z, 0u, a[s].w, 0u}, b.z, b.w);
        }
      }
      begin += at_once * threads;
      if (begin - quad * 8 >= p.k) break;
      load_x(begin);
    }
#pragma unroll
    for (int i = 0; i < Groups; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)  // row `group` of x, rows 2 quad and 2 quad + 1 of w
        sums[warp][(i * 8 + quad * 2 + e) * rows + group] = c[0][i][e] + c[1][i][e];
  }
  __syncthreads();
  for (int element = threadIdx.x; element < columns * rows; element += blockDim.x) {
    const int i = element % rows, j = element / rows;
    if (i >= p.m || j >= count) continue;
    float sum = 0;
#pragma unroll
    for (int from = 0; from < few_rows_warps; ++from)
      if (from < warps) sum += sums[from][element];
    store_few_rows<C>(p, i, first + j, sum);
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
inline int few_rows_float_warps(int k) {
  const int turns = (k + few_rows_turn - 1) / few_rows_turn;
  const int each = (turns + few_rows_most_warps - 1) / few_rows_most_warps;
  return (turns + each - 1) / each;
}

/// A quarter of k, whole lines of the cache, and not too little to ask for.
inline int few_rows_chunk(int k) {
  return std::max(256, (k + 64 * few_rows_chunks - 1) / (64 * few_rows_chunks) * 64);
}
/// Shared memory of a block for so many rows of w.
inline std::size_t few_rows_bytes(int rows, Index k) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(few_rows_pitch(static_cast<int>(k))) * 2;
}
inline constexpr std::size_t few_rows_most_bytes = std::size_t{216} << 10;

template <class T, class C, int Groups>
void launch_few_rows(const FewRows& p, cudaStream_t stream) {
  const Index blocks = (p.n + 8 * Groups - 1) / (8 * Groups);
  const int warps = p.k < 2048 ? few_rows_warps / 2 : few_rows_warps;
  const auto kernel = few_rows_kernel<T, C, Groups>;
  cuda_runtime::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(few_rows_most_bytes)),
      "cudaFuncSetAttribute");
  cuda_runtime::launch_overlapped("few_rows_kernel", kernel, dim3(static_cast<unsigned>(blocks)),
                                  dim3(32 * (warps + 1)), few_rows_bytes(8 * Groups, p.k), stream, p);
}
template <class T, class C>
void launch_few_rows(const FewRows& p, cudaStream_t stream) {
  // With 16 rows of w in a block x is read half as often; but all multiprocessors should have several blocks.
  if (p.n >= 16 * 528 && few_rows_bytes(16, p.k) <= std::size_t{48} << 10)
    launch_few_rows<T, C, 2>(p, stream);
  else
    launch_few_rows<T, C, 1>(p, stream);
}
template <int Rows>
void launch_few_rows_float(const FewRows& p, cudaStream_t stream) {
  cuda_runtime::launch_overlapped("few_rows_float_kernel", few_rows_float_kernel<Rows>,
                                  dim3(static_cast<unsigned>((p.n + 3) / 4)), dim3(32 * few_rows_float_warps(p.k)), 0,
                                  stream, p);
}

/// Whether a product is one of few rows, and then does it.
inline bool multiply_few_rows_on_gpu(const GpuMatrix& a, const GpuMatrix& b, const GpuMatrix& c, Index batch,
                                     const MatmulOptions& options, const void* bias, Index bias_stride,
                                     cudaStream_t stream) {
  const bool wide = a.type == Dtype::float32;
  const Index most = 8, size = wide ? 4 : 2;
  if (batch != 1 || a.rows > most || a.type != b.type ||
      !(wide || a.type == Dtype::bfloat16 || a.type == Dtype::float16))
    return false;
  if (c.type != a.type && c.type != Dtype::float32) return false;
  if (a.column != 1 || b.row != 1 || a.columns > Index{1} << 30) return false;
  // Vectors of 16 bytes, whole ones only.
  const auto whole = [&](const void* data, Index step) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && step * size % 16 == 0;
  };
  if (!wide && few_rows_bytes(8, a.columns) > few_rows_most_bytes) return false;
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
                  few_rows_chunk(static_cast<int>(a.columns)),
                  static_cast<float>(options.alpha),
                  static_cast<float>(options.beta),
                  cuda_runtime::weights_at_rest_of_thread()};
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
