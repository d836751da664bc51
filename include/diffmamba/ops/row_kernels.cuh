// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::uintptr_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/mma.cuh"  // copy_async
#include "diffmamba/device/overlap.cuh"
#include "diffmamba/device/pack.cuh"   // load_pack, store_pack
#include "diffmamba/math/sigmoid.cuh"  // sigmoid_for
#include "diffmamba/tensor/takes_packs.hpp"
#include "diffmamba/tensor/view.hpp"

// What the GPU kernels are made of that walk over rows of channels (norms, gates, combinations): a row lies in the
// registers of a group of threads, so that it is read from memory once; sums over a row by shuffles, the same bits in
// every thread; sums over rows, for gradients of parameters, in one line of memory per block, which a second launch
// adds up in order. Grids follow from shapes alone: a result has the same bits on every GPU of a kind.
namespace diffmamba::detail {

/// `Lanes` threads have a row, each `Vectors` times `Unit` consecutive elements of it: a tile of the row in registers.
/// Where rows may be `Long`, longer than a tile, they are cut, and read again where they are needed again.
template <int UnitSize, int LaneCount, int VectorCount, bool LongRows>
struct RowShape {
  static constexpr int Unit = UnitSize, Lanes = LaneCount, Vectors = VectorCount;
  static constexpr bool Long = LongRows;
  static constexpr int threads = Lanes > 256 ? Lanes : 256;
  static constexpr int rows = threads / Lanes;  // of a block at a time
  static constexpr int tile = Lanes * Vectors * Unit;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % Lanes; }
  __device__ static int group() { return static_cast<int>(threadIdx.x) / Lanes; }
  __device__ static bool cut(int channels) { return Long && channels > tile; }
  __device__ static int tiles(int channels) { return Long ? (channels + tile - 1) / tile : 1; }
  /// The first channel of one of this thread's units in a tile.
  __device__ static int channel(int tile_number, int v) { return tile_number * tile + (v * Lanes + lane()) * Unit; }
};

/// Blocks of a grid that walks over rows with a stride and keeps sums over them: two for each multiprocessor of an
/// H100.
inline constexpr Index most_sum_blocks = 264;
template <class Shape>
Index sum_blocks(Index rows, Index most = most_sum_blocks) {
  const Index blocks = (rows + Shape::rows - 1) / Shape::rows;
  return blocks < most ? blocks : most;
}
/// The same where rows pass through shared memory: two for each.
inline constexpr Index resident_sum_blocks = 264;
/// Lines of sums that a grid of any shape needs at most.
inline Index most_lines(Index rows) {
  return rows < most_sum_blocks ? rows : most_sum_blocks;
}

// CUDA kernels: rows
// --------------------------------------------------------------------------------------------------

/// Unit consecutive elements as they are stored, in packs of 16 bytes or one by one.
template <class T, int Unit>
struct StoredUnit {
  static constexpr int N = Unit % pack_size<T> == 0 ? pack_size<T> : 1, count = Unit / N;
  Pack<T, N> packs[count];

  __device__ void load(const T* from) {
#pragma unroll
    for (int k = 0; k < count; ++k) packs[k] = load_pack<N>(from + k * N);
  }
  __device__ void load_zeros() {
#pragma unroll
    for (int k = 0; k < count; ++k) packs[k] = zero_pack<N, T>();
  }
  __device__ accumulate_t<T> operator[](int i) const {
    return static_cast<accumulate_t<T>>(packs[i / N].elements[i % N]);
  }
};
/// A thread's part of a tile of a row. All loads are begun before the first value is used.
template <class Shape, class T>
struct StoredRow {
  StoredUnit<T, Shape::Unit> units[Shape::Vectors];

  /// Zeros past `count` channels.
  __device__ void load(const T* row, int count, int tile) {
#pragma unroll
    for (int v = 0; v < Shape::Vectors; ++v) {
      const int c = Shape::channel(tile, v);
      if (c < count)
        units[v].load(row + c);
      else
        units[v].load_zeros();
    }
  }
  __device__ accumulate_t<T> operator()(int v, int i) const {
    return units[v][i];
  }
};

/// Rows of an operand in shared memory, the present one and the next `Stages` - 1 on their way there: every thread
/// copies what it will read itself, so that no barrier is needed and no register waits. Long rows are read where they
/// lie.
template <class Shape, class T, int Stages>
class RowQueue {
 public:
  /// Shared memory of a block.
  static constexpr int bytes = Shape::Long ? 0 : Stages * Shape::Vectors * Shape::threads * 16;
  static_assert(Shape::Long || StoredUnit<T, Shape::Unit>::count == 1, "a unit is one pack");

  /// Takes its part of the shared memory, if it will be used.
  __device__ RowQueue(unsigned char*& shared, bool used) : slots_(reinterpret_cast<uint4*>(shared) + threadIdx.x) {
    if (used) shared += bytes;
  }
  /// Begins to copy a row; nothing past `count` channels.
  __device__ void fetch(int stage, const T* row, int count) const {
    if constexpr (!Shape::Long)
#pragma unroll
      for (int v = 0; v < Shape::Vectors; ++v) {
        const int c = Shape::channel(0, v);
        if (c < count) mma::copy_async(slots_ + (stage * Shape::Vectors + v) * Shape::threads, row + c, true);
      }
  }
  /// Unit v of the row, at channel c.
  __device__ StoredUnit<T, Shape::Unit> unit(int stage, int v, const T* row, int c) const {
    StoredUnit<T, Shape::Unit> result;
    if constexpr (Shape::Long)
      result.load(row + c);
    else
      *reinterpret_cast<uint4*>(&result) = slots_[(stage * Shape::Vectors + v) * Shape::threads];
    return result;
  }

 private:
  uint4* slots_;
};

template <int Unit, class T>
__device__ inline void load_unit(const T* from, accumulate_t<T> (&to)[Unit]) {
  StoredUnit<T, Unit> stored;
  stored.load(from);
#pragma unroll
  for (int i = 0; i < Unit; ++i) to[i] = stored[i];
}
/// The same, zeros where there is nothing.
template <int Unit, class T>
__device__ inline void load_unit_if(bool there, const T* from, accumulate_t<T> (&to)[Unit]) {
#pragma unroll
  for (int i = 0; i < Unit; ++i) to[i] = 0;
  if (there) load_unit(from, to);
}
template <int Unit, class T>
__device__ inline void store_unit(T* to, const accumulate_t<T> (&from)[Unit]) {
  constexpr int N = StoredUnit<T, Unit>::N;
#pragma unroll
  for (int first = 0; first < Unit; first += N) {
    accumulate_t<T> part[N];
#pragma unroll
    for (int i = 0; i < N; ++i) part[i] = from[first + i];
    store_pack(to + first, part);
  }
}

/// Where a row of batch * length rows lies.
struct RowPosition {
  Index batch, token;

  __device__ RowPosition(Index row, Index length) {
    if (row < length) {
      batch = 0;
      token = row;
    } else if (((row | length) >> 32) == 0) {  // the division of 32-bit numbers is several times faster
      batch = static_cast<unsigned>(row) / static_cast<unsigned>(length);
      token = static_cast<unsigned>(row) % static_cast<unsigned>(length);
    } else {
      batch = row / length;
      token = row % length;
    }
  }
  /// Address of the row in a view; null where the view is absent.
  template <class T, int Rank>
  __device__ T* of(const View<T, Rank, cuda>& view) const {
    return view ? view.pointer(batch, token) : nullptr;
  }
};

/// Sums of `Count` numbers over the lanes of each row. Where a row has several warps they meet at a barrier of their
/// own, once for each sum: consecutive sums use two buffers in turn. Objects of one type share these buffers: a kernel
/// that has two of them gives each a `Buffer` of its own.
template <class Shape, class A, int Count, int Buffer = 0>
class RowSums {
 public:
  __device__ void operator()(A (&values)[Count]) {
#pragma unroll
    for (int k = 0; k < Count; ++k)
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        values[k] += __shfl_xor_sync(0xffffffffu, values[k], distance);
    if constexpr (Shape::Lanes > 32) {
      constexpr int warps = Shape::Lanes / 32;
      __shared__ A partial[2][Count][Shape::threads / 32];
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
      for (int k = 0; k < Count; ++k)
        if (lane == 0) partial[phase_][k][warp] = values[k];
      __barrier_sync_count(static_cast<unsigned>(1 + Shape::group()), Shape::Lanes);
#pragma unroll
      for (int k = 0; k < Count; ++k) {
        values[k] = partial[phase_][k][warp / warps * warps + lane % warps];
#pragma unroll
        for (int distance = warps / 2; distance > 0; distance /= 2)
          values[k] += __shfl_xor_sync(0xffffffffu, values[k], distance);
      }
      phase_ ^= 1;
    }
  }

 private:
  int phase_ = 0;
};

/// Up to `Count` sums over rows: where they go, null if not wanted, and the memory for one line of each block.
template <class A, int Count>
struct LineSums {
  A* lines[Count];  // (blocks, channels)
  A* to[Count];     // (channels)
};

/// A block's sums over its rows, one per channel: in registers, or where a row is longer than a tile in the block's
/// line.
template <class Shape, class A, int Count>
class ColumnLines {
 public:
  static constexpr int Unit = Shape::Unit;

  /// This block's line begins at `offset`.
  __device__ ColumnLines(const LineSums<A, Count>& sums, Index offset, int channels) : channels_(channels) {
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      line_[k] = sums.to[k] != nullptr && sums.lines[k] != nullptr ? sums.lines[k] + offset : nullptr;
#pragma unroll
      for (int v = 0; v < Shape::Vectors; ++v)
#pragma unroll
        for (int i = 0; i < Unit; ++i) sums_[k][v][i] = 0;
    }
    if (Shape::cut(channels))
      for (int c = Shape::lane() * Unit; c < channels; c += Shape::Lanes * Unit)
#pragma unroll
        for (int k = 0; k < Count; ++k)
          if (line_[k] != nullptr) store_unit(line_[k] + c, sums_[k][0]);
  }

  /// Adds to sum k at channel c, the first of unit v.
  __device__ void add(int k, int v, int c, const A (&values)[Unit]) {
    if (Shape::cut(channels_)) {
      if (line_[k] == nullptr) return;
      A sum[Unit];
      load_unit(line_[k] + c, sum);
#pragma unroll
      for (int i = 0; i < Unit; ++i) sum[i] += values[i];
      store_unit(line_[k] + c, sum);
    } else {
#pragma unroll
      for (int i = 0; i < Unit; ++i) sums_[k][v][i] += values[i];
    }
  }
  /// Writes the line, times `factor`, once, at the end; all threads of the block call it.
  __device__ void finish(A factor = A(1)) {
    if (Shape::cut(channels_)) {
      for (int c = Shape::lane() * Unit; c < channels_; c += Shape::Lanes * Unit)
#pragma unroll
        for (int k = 0; k < Count; ++k) {
          if (line_[k] == nullptr) continue;
          load_unit(line_[k] + c, sums_[k][0]);
#pragma unroll
          for (int i = 0; i < Unit; ++i) sums_[k][0][i] *= factor;
          store_unit(line_[k] + c, sums_[k][0]);
        }
      return;
    }
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      if (line_[k] == nullptr) continue;
      if constexpr (Shape::rows > 1) {
        __shared__ A all[Shape::rows][Shape::tile];
        __syncthreads();
#pragma unroll
        for (int v = 0; v < Shape::Vectors; ++v)
#pragma unroll
          for (int i = 0; i < Unit; ++i) all[Shape::group()][Shape::channel(0, v) + i] = sums_[k][v][i];
        __syncthreads();
        for (int to = static_cast<int>(threadIdx.x); to < channels_; to += Shape::threads) {
          A sum = 0;
#pragma unroll
          for (int group = 0; group < Shape::rows; ++group) sum += all[group][to];
          line_[k][to] = factor * sum;
        }
      } else {
#pragma unroll
        for (int v = 0; v < Shape::Vectors; ++v) {
          const int c = Shape::channel(0, v);
          if (c >= channels_) continue;
#pragma unroll
          for (int i = 0; i < Unit; ++i) sums_[k][v][i] *= factor;
          store_unit(line_[k] + c, sums_[k][v]);
        }
      }
    }
  }

 private:
  A sums_[Count][Shape::Vectors][Unit];
  A* line_[Count];
  int channels_;
};

// CUDA kernels: the second launch of sums over rows
// -------------------------------------------------------------------

/// Adds up lines: 32 channels a block, 32 threads a channel, each over every 32nd line; then those in order. blockIdx.y
/// is the sum.
template <class A, int Count>
__global__ void __launch_bounds__(1024)
    line_sums_kernel(const __grid_constant__ LineSums<A, Count> sums, int count, int channels, bool add) {
  cuda_runtime::wait_for_earlier_kernels();
  const A* const lines = sums.lines[blockIdx.y];
  A* const to = sums.to[blockIdx.y];
  if (to == nullptr) return;
  const int c = static_cast<int>(blockIdx.x) * 32 + static_cast<int>(threadIdx.x);
  __shared__ A partial[32][33];
  A sum = 0;
  if (c < channels && lines != nullptr)
#pragma unroll 8
    for (int line = static_cast<int>(threadIdx.y); line < count; line += 32) sum += lines[Index{line} * channels + c];
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  // Threads change places, so that a warp adds up a channel.
  A total = partial[threadIdx.x][threadIdx.y];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
  const int channel = static_cast<int>(blockIdx.x) * 32 + static_cast<int>(threadIdx.y);
  if (threadIdx.x == 0 && channel < channels) to[channel] = add ? to[channel] + total : total;
}

// Launchers
// ------------------------------------------------------------------------------------------------------------

template <class A, int Count>
void launch_line_sums(const LineSums<A, Count>& sums, Index count, Index channels, GradientMode mode) {
  bool any = false;
  for (int k = 0; k < Count; ++k) any = any || sums.to[k] != nullptr;
  if (!any || channels == 0) return;
  const auto stream = cuda_runtime::current_stream();
  const dim3 grid(static_cast<unsigned>((channels + 31) / 32), Count);
  cuda_runtime::launch_overlapped("line_sums_kernel", line_sums_kernel<A, Count>, grid, dim3(32, 32), 0, stream.handle,
                                  sums, static_cast<int>(count), static_cast<int>(channels), mode == GradientMode::add);
}

/// Whether every row of a view begins at a multiple of 16 bytes. Absent views do not mind.
template <class T, int Rank>
bool rows_aligned(const View<T, Rank, cuda>& view) {
  if (!view) return true;
  bool good = reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
  for (int axis = 0; axis + 1 < Rank; ++axis)
    good = good && (view.extent(axis) <= 1 || view.stride(axis) * static_cast<Index>(sizeof(T)) % 16 == 0);
  return good;
}
template <class... Views>
bool all_rows_aligned(const Views&... views) {
  return (rows_aligned(views) && ...);
}

/// Views of (batch, length, ...) whose rows all lie at one distance become (1, batch * length, ...), so that kernels
/// divide no row numbers; if one of them cannot, none does. Absent views do not mind.
template <class ViewType>
bool one_distance(const ViewType& view) {
  return !view || view.extent(0) <= 1 || view.extent(1) == 0 || view.stride(0) == view.extent(1) * view.stride(1);
}
template <class ViewType>
void flatten(ViewType& view, Index rows) {
  auto extents = view.extents();
  auto strides = view.strides();
  if (view.extent(1) <= 1) strides[1] = strides[0];
  extents[0] = 1;
  extents[1] = rows;
  using Base = View<typename ViewType::element_type, ViewType::rank, typename ViewType::device_type>;
  static_cast<Base&>(view) = Base(view.data(), extents, strides);
}
template <class... Views>
void flatten_rows(Index rows, Views&... views) {
  if (!(one_distance(views) && ...)) return;
  (flatten(views, rows), ...);
}

/// Launches a kernel that calls wait_for_earlier_kernels(). A small one, as in decoding, begins while the one before it
/// ends: it is over before that would be noticed otherwise.
template <class Kernel, class... Arguments>
void launch_rows(Kernel kernel, const char* name, unsigned blocks, int threads, int shared_bytes,
                 const Arguments&... arguments) {
  const auto stream = cuda_runtime::current_stream();
  const auto block = static_cast<unsigned>(threads);
  const auto bytes = static_cast<std::size_t>(shared_bytes);
  if (blocks <= 264) {
    cuda_runtime::launch_overlapped(name, kernel, blocks, block, bytes, stream.handle, arguments...);
  } else {
    kernel<<<blocks, block, bytes, stream.handle>>>(arguments...);
    cuda_runtime::check_launch(name);
  }
}

/// Launches a kernel whose blocks walk over rows with a stride: as many blocks as fit at once, at most those needed.
template <class Kernel, class... Arguments>
void launch_resident(Kernel kernel, const char* name, Index blocks_needed, int threads, int shared_bytes,
                     const Arguments&... arguments) {
  const auto stream = cuda_runtime::current_stream();
  int processors = 0, blocks_each = 0;
  cuda_runtime::check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, stream.device), name);
  cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  cuda_runtime::check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, kernel, threads,
                                                                    static_cast<std::size_t>(shared_bytes)),
                      name);
  const Index resident = Index{processors} * (blocks_each > 0 ? blocks_each : 1);
  launch_rows(kernel, name, static_cast<unsigned>(blocks_needed < resident ? blocks_needed : resident), threads,
              shared_bytes, arguments...);
}

/// work(shape) with the shape for rows (or groups) of so many channels, of at most `Vectors` units a thread.
template <class T, int Vectors, class Work>
void with_row_shape(Index channels, bool aligned, Work&& work) {
  constexpr int unit = pack_size<T>;
  require(channels <= Index{1} << 30, "a row of ", channels, " channels is too long for the GPU kernels");
  if (!aligned || channels % unit != 0) return work(RowShape<1, 256, 1, true>{});
  const Index units = channels / unit;
  if (units <= 32) return work(RowShape<unit, 32, 1, false>{});
  if constexpr (Vectors > 2)
    if (units <= 64) return work(RowShape<unit, 32, 2, false>{});
  if constexpr (Vectors > 1) {
    if (units <= 32 * Vectors) return work(RowShape<unit, 32, Vectors, false>{});
    if (units <= 64 * Vectors) return work(RowShape<unit, 64, Vectors, false>{});
    if (units <= 128 * Vectors) return work(RowShape<unit, 128, Vectors, false>{});
    return work(RowShape<unit, 256, Vectors, true>{});
  } else {
    if (units <= 128) return work(RowShape<unit, 128, 1, false>{});
    if (units <= 256) return work(RowShape<unit, 256, 1, false>{});
    return work(RowShape<unit, 512, 1, true>{});
  }
}

}  // namespace diffmamba::detail
