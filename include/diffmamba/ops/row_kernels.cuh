// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::uintptr_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/pack.cuh"   // load_pack, store_pack
#include "diffmamba/math/sigmoid.cuh"  // sigmoid_for
#include "diffmamba/tensor/view.hpp"

// What the GPU kernels are made of that walk over rows of channels (norms, gates, combinations): a row lies in the
// registers of a group of threads, so that it is read from memory once; sums over a row by shuffles, the same bits in
// every thread; sums over rows, for gradients of parameters, in one line of memory per block, which a second launch
// adds up in order. Grids follow from shapes alone: a result has the same bits on every GPU of a kind.
namespace diffmamba::detail {

/// `Lanes` threads have a row, each `Unit` consecutive elements of it. Where rows may be `Long`, longer than a tile,
/// they are cut into tiles, which are read again where they are needed again.
template <int UnitSize, int LaneCount, bool LongRows>
struct RowShape {
  static constexpr int Unit = UnitSize, Lanes = LaneCount;
  static constexpr bool Long = LongRows;
  static constexpr int threads = Lanes > 256 ? Lanes : 256;
  static constexpr int rows = threads / Lanes;  // of a block at a time
  static constexpr int tile = Lanes * Unit;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % Lanes; }
  __device__ static int group() { return static_cast<int>(threadIdx.x) / Lanes; }
  __device__ static bool cut(int channels) { return Long && channels > tile; }
  __device__ static int tiles(int channels) { return Long ? (channels + tile - 1) / tile : 1; }
  /// The first of this thread's channels in a tile.
  __device__ static int channel(int tile_number) { return tile_number * tile + lane() * Unit; }
};

/// Blocks of a grid that walks over rows with a stride and keeps sums over them.
inline constexpr Index most_sum_blocks = 528;
template <class Shape>
Index sum_blocks(Index rows) {
  const Index blocks = (rows + Shape::rows - 1) / Shape::rows;
  return blocks < most_sum_blocks ? blocks : most_sum_blocks;
}
/// Lines of sums that a grid of any shape needs at most.
inline Index most_lines(Index rows) {
  return rows < most_sum_blocks ? rows : most_sum_blocks;
}

// CUDA kernels: rows
// --------------------------------------------------------------------------------------------------

/// Unit consecutive elements, in packs of 16 bytes or one by one.
template <class T, int Unit>
inline constexpr int unit_pack = Unit % pack_size<T> == 0 ? pack_size<T> : 1;
template <int Unit, class T>
__device__ inline void load_unit(const T* from, accumulate_t<T> (&to)[Unit]) {
  constexpr int N = unit_pack<T, Unit>;
#pragma unroll
  for (int first = 0; first < Unit; first += N) {
    const Pack<T, N> pack = load_pack<N>(from + first);
#pragma unroll
    for (int i = 0; i < N; ++i) to[first + i] = static_cast<accumulate_t<T>>(pack.elements[i]);
  }
}
template <int Unit, class T>
__device__ inline void store_unit(T* to, const accumulate_t<T> (&from)[Unit]) {
  constexpr int N = unit_pack<T, Unit>;
#pragma unroll
  for (int first = 0; first < Unit; first += N) {
    accumulate_t<T> part[N];
#pragma unroll
    for (int i = 0; i < N; ++i) part[i] = from[first + i];
    store_pack(to + first, part);
  }
}
/// The same, zeros where there is nothing.
template <int Unit, class T>
__device__ inline void load_unit_if(bool there, const T* from, accumulate_t<T> (&to)[Unit]) {
  if (there) {
    load_unit(from, to);
  } else {
#pragma unroll
    for (int i = 0; i < Unit; ++i) to[i] = 0;
  }
}

/// Where a row of batch * length rows lies.
struct RowPosition {
  Index batch, token;

  __device__ RowPosition(Index row, Index length) {
    if (((row | length) >> 32) == 0) {  // the division of 32-bit numbers is several times faster
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

/// Sums of `Count` numbers over the lanes of each row. One barrier each where a row has several warps: consecutive sums
/// use two buffers in turn.
template <class Shape, class A, int Count>
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
      __syncthreads();
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
  /// This block's line begins at `offset`.
  __device__ ColumnLines(const LineSums<A, Count>& sums, Index offset, int channels) : channels_(channels) {
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      line_[k] = sums.to[k] != nullptr && sums.lines[k] != nullptr ? sums.lines[k] + offset : nullptr;
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) sums_[k][i] = 0;
    }
    if (Shape::cut(channels))
      for (int c = Shape::channel(0); c < channels; c += Shape::tile)
#pragma unroll
        for (int k = 0; k < Count; ++k)
          if (line_[k] != nullptr) store_unit(line_[k] + c, sums_[k]);
  }

  /// Adds to sum k at channel c, the first of a unit.
  __device__ void add(int k, int c, const A (&values)[Shape::Unit]) {
    if (Shape::cut(channels_)) {
      if (line_[k] == nullptr) return;
      A sum[Shape::Unit];
      load_unit(line_[k] + c, sum);
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) sum[i] += values[i];
      store_unit(line_[k] + c, sum);
    } else {
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) sums_[k][i] += values[i];
    }
  }
  /// Writes the line, once, at the end; all threads of the block call it.
  __device__ void finish() {
    if (Shape::cut(channels_)) return;
    const int c = Shape::channel(0);
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      if (line_[k] == nullptr) continue;
      if constexpr (Shape::rows > 1) {
        __shared__ A all[Shape::rows][Shape::tile];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < Shape::Unit; ++i) all[Shape::group()][c + i] = sums_[k][i];
        __syncthreads();
        for (int to = static_cast<int>(threadIdx.x); to < channels_; to += Shape::threads) {
          A sum = 0;
#pragma unroll
          for (int group = 0; group < Shape::rows; ++group) sum += all[group][to];
          line_[k][to] = sum;
        }
      } else {
        if (c < channels_) store_unit(line_[k] + c, sums_[k]);
      }
    }
  }

 private:
  A sums_[Count][Shape::Unit];
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
  line_sums_kernel<<<grid, dim3(32, 32), 0, stream.handle>>>(sums, static_cast<int>(count), static_cast<int>(channels),
                                                             mode == GradientMode::add);
  cuda_runtime::check_launch("line_sums_kernel");
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

/// work(shape) with the shape for rows (or groups) of so many channels.
template <class T, class Work>
void with_row_shape(Index channels, bool aligned, Work&& work) {
  constexpr int unit = static_cast<int>(16 / sizeof(T));
  require(channels <= Index{1} << 30, "a row of ", channels, " channels is too long for the GPU kernels");
  if (!aligned || channels % unit != 0) return work(RowShape<1, 256, true>{});
  const Index units = channels / unit;
  if (units <= 32) return work(RowShape<unit, 32, false>{});
  if (units <= 128) return work(RowShape<unit, 128, false>{});
  if (units <= 256) return work(RowShape<unit, 256, false>{});
  if (units <= 512) return work(RowShape<unit, 512, false>{});
  return work(RowShape<unit, 1024, true>{});
}

}  // namespace diffmamba::detail
