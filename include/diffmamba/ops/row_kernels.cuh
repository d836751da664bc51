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
/// Where rows may be `Long`, longer than a tile, they are cut, and read again where they are needed again. Blocks have
/// `ThreadCount` threads.
template <int UnitSize, int LaneCount, int VectorCount, bool LongRows,
          int ThreadCount = (LaneCount > 256 ? LaneCount : 256)>
struct RowShape {
  static constexpr int Unit = UnitSize, Lanes = LaneCount, Vectors = VectorCount;
  static constexpr bool Long = LongRows;
  static constexpr int threads = ThreadCount;
  static constexpr int rows = threads / Lanes;  // of a block at a time
  static constexpr int tile = Lanes * Vectors * Unit;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % Lanes; }
  __device__ static int group() { return static_cast<int>(threadIdx.x) / Lanes; }
  __device__ static bool cut(int channels) { return Long && channels > tile; }
  __device__ static int tiles(int channels) { return Long ? (channels + tile - 1) / tile : 1; }
  /// The first channel of one of this thread's units in a tile.
  __device__ static int channel(int tile_number, int v) { return tile_number * tile + (v * Lanes + lane()) * Unit; }
};

/// Blocks for each multiprocessor in a grid that keeps sums over rows: 512 threads are enough where rows come ahead of
/// their use, and leave few lines to add up.
template <class Shape>
inline constexpr int sum_blocks_each = 512 / Shape::threads;
/// All of them, on an H100; the same on every GPU.
template <class Shape>
inline constexpr Index most_sum_blocks = 132 * sum_blocks_each<Shape>;
template <class Shape>
Index sum_blocks(Index rows) {
  const Index blocks = (rows + Shape::rows - 1) / Shape::rows;
  return blocks < most_sum_blocks<Shape> ? blocks : most_sum_blocks<Shape>;
}
/// Lines of sums that a grid of any shape needs at most.
inline Index most_lines(Index rows) {
  constexpr Index most = most_sum_blocks<RowShape<1, 256, 1, true>>;
  return rows < most ? rows : most;
}

// CUDA kernels: rows
// --------------------------------------------------------------------------------------------------

/// Unit consecutive elements as they are stored, in packs of at most 16 bytes.
template <class T, int Unit>
struct StoredUnit {
  static constexpr int N = Unit < pack_size<T> ? Unit : pack_size<T>, count = Unit / N;
  Pack<T, N> packs[count];

  __device__ void load(const T* from) {
#pragma unroll
    for (int k = 0; k < count; ++k) packs[k] = load_pack<N>(from + k * N);
  }
  __device__ void load_zeros() {
#pragma unroll
    for (int k = 0; k < count; ++k) packs[k] = zero_pack<N, T>();
  }
  /// Zeros if there is nothing.
  __device__ void load_if(bool there, const T* from) {
    if (there)
      load(from);
    else
      load_zeros();
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
      units[v].load_if(c < count, row + c);
    }
  }
  __device__ accumulate_t<T> operator()(int v, int i) const {
    return units[v][i];
  }
};

/// Starts a copy from global to shared memory.
template <int Bytes>
__device__ inline void copy_ahead(void* shared, const void* global) {
  static_assert(Bytes == 8 || Bytes == 16);
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(global) : "memory");
}

/// Rows of an operand in shared memory, the present one and the next `Stages` - 1 on their way there: every thread
/// copies what it will read itself, so that no barrier is needed and no register waits. Where rows may be long, they
/// are read where they lie.
template <class Shape, class T, int Stages>
class RowQueue {
 public:
  static constexpr int packs = StoredUnit<T, Shape::Unit>::count;
  static constexpr int pack_bytes = static_cast<int>(sizeof(Pack<T, StoredUnit<T, Shape::Unit>::N>));
  /// Shared memory of a block.
  static constexpr int bytes = Shape::Long ? 0 : Stages * Shape::Vectors * packs * Shape::threads * pack_bytes;

  /// Takes its part of the shared memory, if it will be used.
  __device__ RowQueue(unsigned char*& shared, bool used) : slots_(shared + threadIdx.x * pack_bytes) {
    if (used) shared += bytes;
  }
  /// Begins to copy a row; nothing past `count` channels.
  __device__ void fetch(int stage, const T* row, int count) const {
    if constexpr (!Shape::Long)
#pragma unroll
      for (int v = 0; v < Shape::Vectors; ++v) {
        const int c = Shape::channel(0, v);
        if (c >= count) continue;
#pragma unroll
        for (int k = 0; k < packs; ++k)
          copy_ahead<pack_bytes>(slot(stage, v, k), row + c + k * StoredUnit<T, Shape::Unit>::N);
      }
  }
  /// Unit v of the row, at channel c; zeros if that is not `there`.
  __device__ void unit(bool there, int stage, int v, const T* row, int c, StoredUnit<T, Shape::Unit>& to) const {
    if constexpr (Shape::Long) {
      to.load_if(there, row + c);
    } else if (!there) {
      to.load_zeros();
    } else {
#pragma unroll
      for (int k = 0; k < packs; ++k)
        to.packs[k] = *reinterpret_cast<const Pack<T, StoredUnit<T, Shape::Unit>::N>*>(slot(stage, v, k));
    }
  }

 private:
  __device__ unsigned char* slot(int stage, int v, int k) const {
    return slots_ + ((stage * Shape::Vectors + v) * packs + k) * Shape::threads * pack_bytes;
  }

  unsigned char* slots_;
};

/// The rows first, first + stride, ... below `rows` of this thread's group: fetch(row, stage) begins to copy a row,
/// `Stages` - 1 of them ahead, and work(row, there, stage) has it. Groups of a block walk together; where a group has
/// no row left it is not `there`.
template <class Shape, int Stages, class Fetch, class Work>
__device__ inline void for_rows(Index block, Index blocks, Index rows, Fetch&& fetch, Work&& work) {
  const Index stride = blocks * Shape::rows;
  const auto begin = [&](Index row, int stage) {
    if constexpr (Shape::Long) return;
    if (row < rows) fetch(row, stage);
    mma::commit_copies();
  };
  Index row = block * Shape::rows + Shape::group();
#pragma unroll
  for (int stage = 0; stage + 1 < Stages; ++stage) begin(row + stage * stride, stage);
  int stage = 0;
  for (Index first = block * Shape::rows; first < rows; first += stride, row += stride) {
    if constexpr (!Shape::Long) mma::wait_for_copies<Stages - 2>();
    begin(row + (Stages - 1) * stride, stage == 0 ? Stages - 1 : stage - 1);
    work(row, row < rows, stage);
    stage = stage + 1 == Stages ? 0 : stage + 1;
  }
}

/// A number of each row, in a dense array; read one row ahead of its use.
template <class Shape, class A>
class RowNumber {
 public:
  /// Of the rows that for_rows gives this thread: from[row * step].
  __device__ RowNumber(const A* from, Index step, Index block, Index blocks, Index rows)
      : from_(from), step_(step), stride_(blocks * Shape::rows), rows_(rows) {
    read(block * Shape::rows + Shape::group());
  }
  /// The next row's, or 0 where there is none.
  __device__ A next(Index row) {
    const A result = ahead_;
    read(row + stride_);
    return result;
  }

 private:
  __device__ void read(Index row) { ahead_ = from_ != nullptr && row < rows_ ? from_[row * step_] : A(0); }

  const A* from_;
  Index step_, stride_, rows_;
  A ahead_;
};

/// A parameter of every channel: in registers for all rows; of long rows, or if it is not `Kept`, it is read where it
/// is needed.
template <class Shape, class A, bool Kept = !Shape::Long>
class RowParameter {
 public:
  /// `absent` everywhere where there is none.
  __device__ RowParameter(const A* from, int channels, A absent = A(0)) : from_(from), absent_(absent) {
    if constexpr (Kept)
#pragma unroll
      for (int v = 0; v < Shape::Vectors; ++v) {
        const int c = Shape::channel(0, v);
        load(from != nullptr && c < channels, c, values_[v]);
      }
  }
  /// Of unit v, at channel c, if that is `there`.
  __device__ void unit(bool there, int v, int c, A (&to)[Shape::Unit]) const {
    if constexpr (!Kept) {
      load(there && from_ != nullptr, c, to);
    } else {
#pragma unroll
      for (int i = 0; i < Shape::Unit; ++i) to[i] = values_[v][i];
    }
  }

 private:
  __device__ void load(bool there, int c, A (&to)[Shape::Unit]) const;

  const A* from_;
  A absent_;
  A values_[Kept ? Shape::Vectors : 1][Shape::Unit];
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

template <class Shape, class A, bool Kept>
__device__ inline void RowParameter<Shape, A, Kept>::load(bool there, int c, A (&to)[Shape::Unit]) const {
#pragma unroll
  for (int i = 0; i < Shape::Unit; ++i) to[i] = absent_;
  if (there) load_unit(from_ + c, to);
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
      // Barriers by constants: of those a program might use, a multiprocessor has few.
      if constexpr (Shape::rows == 1)
        __syncthreads();
      else
#pragma unroll
        for (unsigned group = 0; group < Shape::rows; ++group)
          if (group == Shape::group()) __barrier_sync_count(1 + group, Shape::Lanes);
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

  /// Adds to sum k at channel c, the first of unit v; zeros, if that is not `there`.
  __device__ void add(int k, int v, int c, bool there, const A (&values)[Unit]) {
    if (Shape::cut(channels_)) {
      if (line_[k] == nullptr || !there) return;
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
  /// Shared memory that `finish` wants.
  static constexpr int bytes =
      Shape::Long || Shape::rows == 1 ? 0 : Shape::rows * Shape::tile * static_cast<int>(sizeof(A));
  /// Writes the line, times `factor`, once, at the end; all threads of the block call it. What the shared memory held
  /// is not needed any more.
  __device__ void finish(unsigned char* shared, A factor = A(1)) {
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
        A* const all = reinterpret_cast<A*>(shared);
        __syncthreads();
#pragma unroll
        for (int v = 0; v < Shape::Vectors; ++v)
          store_unit(all + Shape::group() * Shape::tile + Shape::channel(0, v), sums_[k][v]);
        __syncthreads();
        for (int to = static_cast<int>(threadIdx.x); to < channels_; to += Shape::threads) {
          A sum = 0;
#pragma unroll
          for (int group = 0; group < Shape::rows; ++group) sum += all[group * Shape::tile + to];
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
  cuda_runtime::let_next_kernel_begin();
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

/// Launches a kernel that calls wait_for_earlier_kernels(): it begins while the one before it ends.
template <class Kernel, class... Arguments>
void launch_rows(const char* name, Kernel kernel, Index blocks, int threads, int shared_bytes,
                 const Arguments&... arguments) {
  if (shared_bytes > 32 * 1024)  // with what a kernel declares itself it might be more than all have, 48 KiB
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  cuda_runtime::launch_overlapped(name, kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                                  static_cast<std::size_t>(shared_bytes), cuda_runtime::current_stream().handle,
                                  arguments...);
}

/// work(shape) with the shape for rows (or groups) of so many channels, of at most `Vectors` units of `Unit` a thread.
/// Blocks have `Threads`, more where a row needs them.
template <int Unit, int Vectors, int Threads = 256, class Work>
void with_row_shape(Index channels, bool aligned, Work&& work) {
  require(channels <= Index{1} << 30, "a row of ", channels, " channels is too long for the GPU kernels");
  if (!aligned || channels % Unit != 0) return work(RowShape<1, 256, 1, true>{});
  const Index units = channels / Unit;
  const auto with = [&]<int Lanes, int Units, bool Long>() {
    work(RowShape<Unit, Lanes, Units, Long, (Lanes > Threads ? Lanes : Threads)>{});
  };
  if (units <= 32) return with.template operator()<32, 1, false>();
  if constexpr (Vectors > 2)
    if (units <= 64) return with.template operator()<32, 2, false>();
  if constexpr (Vectors > 1) {
    if (units <= 32 * Vectors) return with.template operator()<32, Vectors, false>();
    if (units <= 64 * Vectors) return with.template operator()<64, Vectors, false>();
    if (units <= 128 * Vectors) return with.template operator()<128, Vectors, false>();
    if (units <= 256 * Vectors) return with.template operator()<256, Vectors, false>();
    return with.template operator()<256, Vectors, true>();
  } else {
    if (units <= 128) return with.template operator()<128, 1, false>();
    if (units <= 256) return with.template operator()<256, 1, false>();
    if (units <= 512) return with.template operator()<512, 1, false>();
    return with.template operator()<512, 1, true>();
  }
}

}  // namespace diffmamba::detail
