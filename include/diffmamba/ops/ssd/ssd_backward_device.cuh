// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/hopper.cuh"
#include "diffmamba/device/mma.cuh"
#include "diffmamba/ops/ssd/ssd_backward_general.cuh"

/// What the tensor-core kernels of SSD's backward pass share (ssd_backward.cuh says what they are).
namespace diffmamba::ssd::detail {

inline constexpr int backward_tokens = 128;  // tokens of a chunk on the tensor-core paths

/// How the walk is cut. Slots of segments: (2, batch, nheads, count).
struct WalkSegments {
  int count = 1, chunks = 1;  // segments of a sequence; chunks of one
  float* states = nullptr;    // (slots, d_state, 64)
  float* decays = nullptr;    // (slots)
};

/// Cut of a group's heads over blocks.
struct HeadSlices {
  int count = 1, heads = 1;
};

/// Whether rows may be read or written 16 bytes at a time.
struct AlignedRows {
  bool x, dout, B, C, dx, dB, dC;
};

template <class T>
struct TensorMemory : ChunkMemory<float, decay_sum_t<T>> {
  T *states = nullptr, *dstates = nullptr;          // (batch, chunks, nheads, d_state, 64)
  float *from_start = nullptr, *through = nullptr;  // o: like `steps`; w: (batch, chunks, nheads)
  float *dB = nullptr, *dC = nullptr;               // (slices, batch, length, ngroups, d_state)
  WalkSegments segments;
  HeadSlices slices;
  AlignedRows aligned = {};
};

/// Which chunk, group and heads a block of steps 3 and 4 has: blocks count slices, then groups, then chunks,
/// then the batch.
template <class T>
struct ChunkBlock {
  Index batch, begin, place;  // place: of the chunk's first head in arrays by chunk and head
  int group, slice, first_head, heads, tokens;

  __device__ ChunkBlock(const DeviceInputs<T>& in, const TensorMemory<T>& memory) {
    const int groups = in.nheads / in.heads_per_group;
    Index rest = blockIdx.x;
    slice = static_cast<int>(rest % memory.slices.count);
    rest /= memory.slices.count;
    group = static_cast<int>(rest % groups);
    rest /= groups;
    batch = rest / memory.chunks;
    begin = rest % memory.chunks * backward_tokens;
    place = rest * in.nheads;
    first_head = group * in.heads_per_group + slice * memory.slices.heads;
    heads = ::min(memory.slices.heads, in.heads_per_group - slice * memory.slices.heads);
    tokens = static_cast<int>(::min(Index{backward_tokens}, in.length - begin));
  }
  /// Of token t in the partial sums of dB and dC.
  __device__ Index partial_row(const DeviceInputs<T>& in, Index batches, int t) const {
    return ((slice * batches + batch) * in.length + begin + t) * (in.nheads / in.heads_per_group) + group;
  }
};

/// What a lane has of its 4 tokens: sums of E over later rows and (without dt) over earlier columns, x . du, and
/// (without dt) the part of x . du that comes through the state after the chunk. `passing` is the sum of E over rows
/// from the token on and columns before it, where it is known instead of rows and columns, which are zero then.
struct TokenSums {
  float rows[4], columns[4], x_du[4], through_end[4], passing[4] = {};
};

/// What a lane needs for the da of its 4 tokens of a head in a chunk: loaded together, so that a warp can do so while
/// the sums are not there yet. Tokens past the end take the last one's dt.
template <class T>
struct HeadNumbers {
  int head;
  Index place;
  float4 step, from_start;
  float through, A, bias;
  T raw[4];

  __device__ HeadNumbers(const DeviceInputs<T>& in, const TensorMemory<T>& memory, const ChunkBlock<T>& block, int h)
      : head(h), place(block.place + h) {
    const int t = 4 * static_cast<int>(threadIdx.x % 32);
    step = *reinterpret_cast<const float4*>(memory.steps + place * backward_tokens + t);
    from_start = *reinterpret_cast<const float4*>(memory.from_start + place * backward_tokens + t);
    through = memory.through[place];
    A = in.A[head];
    bias = in.dt_bias != nullptr ? in.dt_bias[head] : 0.0f;
    const T* const dt = in.dt + block.batch * in.dt_batch + head * in.dt_head;
#pragma unroll
    for (int i = 0; i < 4; ++i) raw[i] = dt[(block.begin + ::min(t + i, block.tokens - 1)) * in.dt_token];
  }
};

/// da of a head in a chunk and what follows from it, by one warp; lane l has tokens 4 l and on.
template <class T>
__device__ inline void finish_head(const DeviceInputs<T>& in, const DeviceGradients<T>& to,
                                   const TensorMemory<T>& memory, const ChunkBlock<T>& block,
                                   const HeadNumbers<T>& numbers, const TokenSums& mine, float dD) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = 4 * lane, head = numbers.head;
  const Index place = numbers.place;
  const float step[4] = {numbers.step.x, numbers.step.y, numbers.step.z, numbers.step.w};
  const float from_start[4] = {numbers.from_start.x, numbers.from_start.y, numbers.from_start.z, numbers.from_start.w};
  float later[4], before_end[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    later[i] = mine.rows[i] - step[i] * mine.columns[i] + from_start[i];
    before_end[i] = step[i] * mine.through_end[i];
  }
  // later: sums over tokens from one's own on; before_end: over those before.
#pragma unroll
  for (int i = 2; i >= 0; --i) later[i] += later[i + 1];
  const float own_later = later[0], own_before = before_end[0] + before_end[1] + before_end[2] + before_end[3];
  float after = own_later, before = own_before;
  for (int distance = 1; distance < 32; distance *= 2) {
    const float next = __shfl_down_sync(0xffffffffu, after, distance);
    const float previous = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane + distance < 32) after += next;
    if (lane >= distance) before += previous;
  }
  after -= own_later;
  before -= own_before;
  float dA = 0.0f, ddt_bias = 0.0f;
  T* const ddt_target = to.ddt != nullptr ? to.ddt + block.batch * to.ddt_batch + head * to.ddt_head : nullptr;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float da = later[i] + after + before + numbers.through + mine.passing[i];
    before += before_end[i];
    const bool inside = t + i < block.tokens;
    const float ddt = (mine.x_du[i] + numbers.A * da) *
                      discretize_derivative(static_cast<float>(numbers.raw[i]), numbers.bias, in.options);
    dA += inside ? step[i] * da : 0.0f;
    ddt_bias += inside ? ddt : 0.0f;
    if (inside && ddt_target != nullptr) ddt_target[(block.begin + t + i) * to.ddt_token] = static_cast<T>(ddt);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    dA += __shfl_xor_sync(0xffffffffu, dA, distance);
    ddt_bias += __shfl_xor_sync(0xffffffffu, ddt_bias, distance);
  }
  if (lane != 0) return;
  memory.dA[place] = dA;
  memory.ddt_bias[place] = ddt_bias;
  memory.dD[place] = dD;
}

/// Two neighbours of a row that may begin at an odd address.
template <class T>
__device__ inline void store_pair(T* to, mma::pair_t<T> pair, bool aligned) {
  if (aligned) {
    *reinterpret_cast<mma::pair_t<T>*>(to) = pair;
  } else {
    to[0] = reinterpret_cast<const T*>(&pair)[0];
    to[1] = reinterpret_cast<const T*>(&pair)[1];
  }
}
/// Two neighbours of dB or dC: to `part` if slices are to be joined, else to `target`, which may be null.
template <class T>
__device__ inline void put_pair(float2 sum, float* part, T* target, bool join, bool aligned) {
  if (join)
    *reinterpret_cast<float2*>(part) = sum;
  else if (target != nullptr)
    store_pair(target, mma::pack<T>(sum.x, sum.y), aligned);
}
/// The same of the sum with what lies in `part`.
template <class T>
__device__ inline void add_pair(float first, float second, float* part, T* target, bool join, bool aligned) {
  float2 sum = *reinterpret_cast<const float2*>(part);
  sum.x += first;
  sum.y += second;
  put_pair(sum, part, target, join, aligned);
}

/// Where the copy engine finds the operands.
struct BackwardMaps {
  CUtensorMap x, dout, B, C;    // boxes of 64 tokens
  CUtensorMap states, dstates;  // boxes of 64 rows of a state
  CUtensorMap dx;               // boxes of 16 tokens
};

/// Copies `Rows` rows of `Columns` numbers into a tile; rows from `valid` on become zero.
template <int Rows, int Columns, int Threads, class T>
__device__ inline void load_tile(T* tile, const T* from, Index stride, int valid, bool aligned = true) {
  constexpr int per_unit = 16 / static_cast<int>(sizeof(T)), row_units = Columns / per_unit;
  constexpr int step = Threads / row_units;  // rows from one copy of a thread to its next
  static_assert(Threads % row_units == 0 && Rows % step == 0);
  const int first = static_cast<int>(threadIdx.x) / row_units, unit = static_cast<int>(threadIdx.x) % row_units;
  const T* source = from + first * stride + unit * per_unit;
  if (aligned) {
#pragma unroll
    for (int row = first; row < first + Rows; row += step, source += step * stride)
      mma::copy_async(tile + mma::unit_at<T, Columns>(row, unit), row < valid ? source : from, row < valid);
  } else {
#pragma unroll 1
    for (int row = first; row < first + Rows; row += step, source += step * stride)
      for (int k = 0; k < per_unit; ++k)
        tile[mma::unit_at<T, Columns>(row, unit) + k] = row < valid ? source[k] : T(0.0f);
  }
}
/// Numbers whose memory and whose number of bytes are multiples of 16.
template <int Count, int Threads, class Number>
__device__ inline void load_numbers(Number* to, const Number* from) {
  constexpr int per_unit = 16 / static_cast<int>(sizeof(Number));
  for (int i = static_cast<int>(threadIdx.x); i < Count / per_unit; i += Threads)
    mma::copy_async(to + per_unit * i, from + per_unit * i, true);
}

}  // namespace diffmamba::ssd::detail
