// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward_general.cuh"
#include "diffmamba/ops/ssd/ssd_backward_hopper.cuh"
#include "diffmamba/ops/ssd/ssd_state_tile.cuh"
#include "diffmamba/tensor/tensor_map.cuh"

/// SSD backward on an NVIDIA GPU; the formulas and their names are those at the head of ssd_backward.hpp.
///
/// The tensor-core path (bfloat16 and float, headdim 64, d_state 64 or 128, no gate, D per head or none) takes chunks
/// of 128 tokens. Nothing was saved by forward:
///
///   1 decays   dt as the recurrence uses it and its running sums, in powers of two
///   2 walk     S before and dS' after every chunk, in the type of x, from a float state in registers; blocks walk
///              through heads of sequences, forwards for S and backwards for dS'. Where those are too few, segments of
///              them: first what each segment adds, then what each begins with, then the walk itself
///   3 states   a block owns a chunk and some heads of a group, and adds up over the heads the parts of dB and dC that
///              go through dS' and S, in float registers; also o and w
///   4 tokens   the same blocks again: G = C B^T once, then for each head dM = dY U^T, dx, the sums for da, and dt's
///              gradient; dG stays in float registers over the heads and gives the rest of dB and dC
///   5 sums     over the parts of a group, where it was split, and of the parameters over chunks and batch
///
/// For bfloat16 on Hopper 2 and 4 are the kernels of ssd_backward_hopper.cuh and 3 has its tiles brought by the copy
/// engine, if that can walk over x, dout, B, C and dx; else they are the kernels below, which any GPU from sm_80 on can
/// run.
///
/// x, dy, S and dS' are read twice (x and dy in 2 too), dx is written once. dx may be the memory of dout: only 4 writes
/// it, each block where it alone has read. Beyond the operands it takes 4 headdim d_state / 128 bytes (8 with float)
/// per token and head for the states, and little else.
///
/// Accuracy: with bfloat16 operands of products are rounded to 16 bits (the states, M, dG, and x and dy, or B and C,
/// where decays are multiplied into them), all sums are float; with float everything is float, and exponents are as
/// exact. E = dM M is never rounded, its diagonal never enters da, and dD is the trace of dM.
namespace diffmamba::ssd {
namespace detail {

// CUDA kernels
// ---------------------------------------------------------------------------------------------------------

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

template <class T, int N>
inline constexpr int walk_kernel_bytes = (2 * (64 * N + 64 * 64) + (sizeof(T) == 2 ? N * 64 : 0)) *
                                             static_cast<int>(sizeof(T)) +
                                         2 * (backward_tokens * static_cast<int>(sizeof(decay_sum_t<T>)) + 64 * 4);

/// The walk: grid.x counts segments, then heads, then the batch; grid.y is 0 for S and 1 for dS'. Four warps, each with
/// N / 4 rows of the state. With `Emit` the states at chunks' boundaries are written, else what the segment adds.
template <class T, int N, bool Emit>
__global__ void __launch_bounds__(128, sizeof(T) == 4 ? 2
                                       : N == 64      ? 4
                                                      : 3)
    ssd_walk_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, DeviceGradients<T> to, TensorMemory<T> memory) {
  constexpr int R = 64, P = 64, Q = backward_tokens;  // tokens of a tile
  const bool reverse = blockIdx.y == 1;
  const WalkSegments& segments = memory.segments;
  const int segment = static_cast<int>(blockIdx.x) % segments.count;
  const Index pair = blockIdx.x / segments.count, batch = pair / in.nheads;
  const int head = static_cast<int>(pair % in.nheads), group = head / in.heads_per_group;
  const Index slot = (blockIdx.y * (gridDim.x / segments.count) + pair) * segments.count + segment;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

  extern __shared__ __align__(128) unsigned char shared[];
  using Sum = decay_sum_t<T>;
  constexpr int stage = R * N + R * P;
  T* const tiles = reinterpret_cast<T*>(shared);
  T* const out_tile = tiles + 2 * stage;                                                  // (N, P), of 16-bit types
  Sum* const all_sums = reinterpret_cast<Sum*>(out_tile + (sizeof(T) == 2 ? N * P : 0));  // of the chunk; twice
  float* const all_steps = reinterpret_cast<float*>(all_sums + 2 * Q);                    // of the tile; twice
  const T* const left =
      reverse ? in.C + batch * in.C_batch + group * in.C_group : in.B + batch * in.B_batch + group * in.B_group;
  const Index left_token = reverse ? in.C_token : in.B_token;
  const T* const right = reverse ? upstream.dout + batch * upstream.dout_batch + head * upstream.dout_head
                                 : in.x + batch * in.x_batch + head * in.x_head;
  const Index right_token = reverse ? upstream.dout_token : in.x_token;

  const int all_tiles = static_cast<int>((in.length + R - 1) / R);
  const int first = 2 * segment * segments.chunks, last = ::min(first + 2 * segments.chunks, all_tiles);
  const int count = last - first;
  const auto tile_at = [&](int k) { return reverse ? last - 1 - k : first + k; };
  const auto place_of = [&](int tile) { return (batch * memory.chunks + tile / 2) * in.nheads + head; };
  const auto start_loading = [&](int k) {
    const int tile = tile_at(k), valid = static_cast<int>(::min(Index{R}, in.length - Index{tile} * R));
    const bool there = !reverse || upstream.dout != nullptr;
    T* const target = tiles + (k & 1) * stage;
    load_tile<R, N, 128>(target, left + Index{tile} * R * left_token, left_token, valid,
                         reverse ? memory.aligned.C : memory.aligned.B);
    load_tile<R, P, 128>(target + R * N, right + Index{tile} * R * right_token, right_token, there ? valid : 0,
                         reverse ? memory.aligned.dout : memory.aligned.x);
    load_numbers<Q, 128>(all_sums + (k & 1) * Q, memory.sums + place_of(tile) * Q);
    load_numbers<R, 128>(all_steps + (k & 1) * R, memory.steps + place_of(tile) * Q + tile % 2 * R);
    mma::commit_copies();
  };

  StateTile<T, N> state(warp, lane);
  state.for_each([&](int row, int column, float& value) {
    value = 0.0f;
    if constexpr (Emit) {
      if (segments.states != nullptr)
        value = segments.states[(slot * N + row) * P + column];
      else if (reverse && upstream.dfinal_state != nullptr)
        value = upstream.dfinal_state[batch * upstream.state_batch + head * upstream.state_head +
                                      column * upstream.state_channel + row];
      else if (!reverse && in.initial_state != nullptr)
        value = in.initial_state[batch * in.state_batch + head * in.state_head + column * in.state_channel + row];
    }
  });

  float total = 0.0f;  // of the segment, in powers of two
  if (count > 0) start_loading(0);
  for (int k = 0; k < count; ++k) {
    const int tile = tile_at(k);
    mma::wait_for_copies<0>();
    __syncthreads();  // this tile is there; the other buffer is free
    if (k + 1 < count) start_loading(k + 1);
    if (Emit && (reverse ? tile % 2 == 1 || tile + 1 == all_tiles : tile % 2 == 0)) {
      T* const target = (reverse ? memory.dstates : memory.states) + place_of(tile) * N * P;
      if constexpr (sizeof(T) == 2) {
        // Through the warp's own rows of a tile, so that 16 bytes are written at once.
        __syncwarp();
        state.store(out_tile);
        __syncwarp();
#pragma unroll
        for (int i = lane; i < N / 4 * P / 8; i += 32) {
          const int row = warp * (N / 4) + i / (P / 8), unit = i % (P / 8);
          *reinterpret_cast<uint4*>(target + row * P + unit * 8) =
              *reinterpret_cast<const uint4*>(out_tile + mma::unit_at<T, P>(row, unit));
        }
      } else {
        state.for_each_pair([&](int row, int column, float2 values) {
          *reinterpret_cast<float2*>(target + row * P + column) = values;
        });
      }
    }
    const T* const left_tile = tiles + (k & 1) * stage;
    const Sum* const sums = all_sums + (k & 1) * Q + tile % 2 * R;
    const float* const steps = all_steps + (k & 1) * R;
    const Sum before = tile % 2 == 0 ? Sum{} : sums[-1], end = sums[R - 1];
    state.scale(mma::power_of_two(difference(end, before)));
    total += difference(end, before);
    state.template add_products<R>(left_tile, left_tile + R * N, [&](int t) {
      return reverse ? mma::power_of_two(difference(sums[t], before))
                     : mma::power_of_two(difference(end, sums[t])) * steps[t];
    });
  }

  const bool to_initial = Emit && reverse && segment == 0 && to.dinitial_state != nullptr;
  if (!Emit || to_initial)
    state.for_each([&](int row, int column, float& value) {
      if (to_initial)
        to.dinitial_state[batch * to.state_batch + head * to.state_head + column * to.state_channel + row] = value;
      else
        segments.states[(slot * N + row) * P + column] = value;
    });
  if (!Emit && threadIdx.x == 0) segments.decays[slot] = mma::power_of_two(total);
}

/// Turns what each segment adds into what its walk begins with, in order. Grid (batch nheads, 2, N / 4), a thread for
/// every element of the state.
template <class T, int N>
__global__ void __launch_bounds__(256)
    ssd_walk_starts_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, WalkSegments segments) {
  constexpr int P = 64, ahead = 8;  // loads under way together
  const bool reverse = blockIdx.y == 1;
  const Index pair = blockIdx.x, batch = pair / in.nheads, head = pair % in.nheads;
  const Index slot = (blockIdx.y * Index{gridDim.x} + pair) * segments.count;
  const int i = static_cast<int>(blockIdx.z * 256 + threadIdx.x);
  float state = 0.0f;
  if (reverse && upstream.dfinal_state != nullptr)
    state = upstream.dfinal_state[batch * upstream.state_batch + head * upstream.state_head +
                                  i % P * upstream.state_channel + i / P];
  else if (!reverse && in.initial_state != nullptr)
    state = in.initial_state[batch * in.state_batch + head * in.state_head + i % P * in.state_channel + i / P];
  for (int first = 0; first < segments.count; first += ahead) {
    float added[ahead], decay[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const bool there = first + k < segments.count;
      const Index segment = slot + (reverse ? segments.count - 1 - first - k : first + k);
      added[k] = there ? segments.states[segment * N * P + i] : 0.0f;
      decay[k] = there ? segments.decays[segment] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (first + k >= segments.count) break;
      const Index segment = slot + (reverse ? segments.count - 1 - first - k : first + k);
      segments.states[segment * N * P + i] = state;
      state = decay[k] * state + added[k];
    }
  }
}

/// With the copy engine there are two buffers for everything, else one for x and dS' and one for dy and S.
template <class T, int N, bool Hopper>
inline constexpr int states_kernel_bytes = (Hopper ? 2 : 1) * (2 * 128 * 64 + 2 * N * 64) *
                                               static_cast<int>(sizeof(T)) +
                                           2 * 128 * (static_cast<int>(sizeof(decay_sum_t<T>)) + 4) +
                                           128 * N* static_cast<int>(sizeof(T)) + 2 * (2 * 128 + 8) * 4 +
                                           (Hopper ? 1024 : 0);

/// The parts of dB and dC through dS' and S, o and w. Eight warps: 32 tokens by N / 2 columns of dB and of dC each.
/// With `Hopper` the copy engine brings the tiles.
template <class T, int N, bool Hopper>
__global__ void __launch_bounds__(256)
    ssd_backward_states_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, TensorMemory<T> memory, Index batches,
                               const __grid_constant__ BackwardMaps maps) {
#if defined(DIFFMAMBA_SM90A)
  constexpr bool by_engine = Hopper;
#else
  constexpr bool by_engine = false;
#endif
  constexpr int Q = backward_tokens, P = 64, n_tiles = N / 16;  // of 8 columns, per warp
  const ChunkBlock<T> block(in, memory);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first_row = warp / 2 * 32, first_column = warp % 2 * (N / 2);

  extern __shared__ __align__(128) unsigned char unaligned[];
  unsigned char* const shared =
      Hopper ? unaligned + (1024 - hopper::shared_address(unaligned) % 1024) % 1024 : unaligned;
  using Sum = decay_sum_t<T>;
  constexpr int stage = 2 * Q * P + 2 * N * P, stages = Hopper ? 2 : 1;  // a stage: x, dy, S, dS'
  constexpr int numbers_bytes = Q * static_cast<int>(sizeof(Sum)) + Q * 4;
  T* const tiles = reinterpret_cast<T*>(shared);
  T* const C_tile = tiles + stages * stage;
  unsigned char* const numbers = reinterpret_cast<unsigned char*>(C_tile + Q * N);  // sums and steps, twice
  float* const o_parts = reinterpret_cast<float*>(numbers + 2 * numbers_bytes);     // (2, 2, Q)
  float* const w_parts = o_parts + 4 * Q;                                           // (2, 8)
  __shared__ std::uint64_t full[2];                                                 // used with Hopper only
  if constexpr (by_engine) {
    if (thread == 0) {
      hopper::initialise(&full[0], 1);
      hopper::initialise(&full[1], 1);
      hopper::publish_barriers();
    }
    __syncthreads();
  }
  const auto load_all = [&](int k) {  // by the copy engine
    if constexpr (by_engine) {
      if (thread != 0) return;
      const int head = block.first_head + k;
      const Index place = block.place + head;
      T* const x_tile = tiles + (k & 1) * stage;
      const int batch = static_cast<int>(block.batch), begin = static_cast<int>(block.begin);
      std::uint64_t* const barrier = &full[k & 1];
      hopper::arrive_expecting(barrier, stage * sizeof(T) + numbers_bytes);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        hopper::load_tile(x_tile + half * 64 * P, &maps.x, barrier, 0, head, begin + half * 64, batch);
        hopper::load_tile(x_tile + (2 + half) * 64 * P, &maps.dout, barrier, 0, head, begin + half * 64, batch);
      }
#pragma unroll
      for (int i = 0; i < N / 64; ++i) {
        const int row = static_cast<int>(place) * N + i * 64;
        hopper::load_tile(x_tile + 2 * Q * P + i * 64 * P, &maps.states, barrier, 0, 0, row, 0);
        hopper::load_tile(x_tile + 2 * Q * P + N * P + i * 64 * P, &maps.dstates, barrier, 0, 0, row, 0);
      }
      unsigned char* const target = numbers + (k & 1) * numbers_bytes;
      load_bytes(target, memory.sums + place * Q, barrier, Q * 4);
      load_bytes(target + Q * 4, memory.steps + place * Q, barrier, Q * 4);
    }
  };
  const auto load_for_dB = [&](int k) {
    const int head = block.first_head + k;
    const Index place = block.place + head;
    unsigned char* const target = numbers + (k & 1) * numbers_bytes;
    load_tile<Q, P, 256>(tiles, in.x + block.batch * in.x_batch + block.begin * in.x_token + head * in.x_head,
                         in.x_token, block.tokens, memory.aligned.x);
    load_tile<N, P, 256>(tiles + 2 * Q * P + N * P, memory.dstates + place * N * P, P, N);
    load_numbers<Q, 256>(reinterpret_cast<Sum*>(target), memory.sums + place * Q);
    load_numbers<Q, 256>(reinterpret_cast<float*>(target + Q * sizeof(Sum)), memory.steps + place * Q);
    mma::commit_copies();
  };
  const auto load_for_dC = [&](int k) {
    const int head = block.first_head + k;
    load_tile<Q, P, 256>(tiles + Q * P,
                         upstream.dout + block.batch * upstream.dout_batch + block.begin * upstream.dout_token +
                             head * upstream.dout_head,
                         upstream.dout_token, upstream.dout != nullptr ? block.tokens : 0, memory.aligned.dout);
    load_tile<N, P, 256>(tiles + 2 * Q * P, memory.states + (block.place + head) * N * P, P, N);
    mma::commit_copies();
  };
  const auto write_sums = [&](int k) {  // of head k, by the whole block, after a barrier
    const Index place = block.place + block.first_head + k;
    const float* const parts = o_parts + (k & 1) * 2 * Q;
    if (thread < Q) memory.from_start[place * Q + thread] = parts[thread] + parts[Q + thread];
    if (thread == Q) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += w_parts[(k & 1) * 8 + i];
      memory.through[place] = sum;
    }
  };

  float dB[2][n_tiles][4] = {}, dC[2][n_tiles][4] = {};
  load_tile<Q, N, 256>(C_tile, in.C + block.batch * in.C_batch + block.begin * in.C_token + block.group * in.C_group,
                       in.C_token, block.tokens, memory.aligned.C);
  mma::commit_copies();
  if constexpr (by_engine)
    load_all(0);
  else
    load_for_dB(0), load_for_dC(0);
  for (int k = 0; k < block.heads; ++k) {
    if constexpr (by_engine) {
      if (k == 0) mma::wait_for_copies<0>();
      hopper::wait(&full[k & 1], static_cast<unsigned>(k / 2 & 1));
    } else {
      mma::wait_for_copies<1>();
    }
    __syncthreads();  // x and dS' of this head are there; with the copy engine all is, and the other buffer is free
    if constexpr (by_engine)
      if (k + 1 < block.heads) load_all(k + 1);
    if (k > 0) write_sums(k - 1);
    const T* const x_tile = tiles + k % stages * stage;
    const T* const dy_tile = x_tile + Q * P;
    const T* const state = dy_tile + Q * P;
    const T* const dstate = state + N * P;
    const Sum* const sums = reinterpret_cast<const Sum*>(numbers + (k & 1) * numbers_bytes);
    const float* const steps = reinterpret_cast<const float*>(sums + Q);
    const Sum end = sums[Q - 1];

    mma::Left<T> rows[2][P / 16];
    float weight[2][2];
    const auto load_rows = [&](const T* tile) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < P / 16; ++i) rows[m][i] = mma::load_left<T, P>(tile, first_row + m * 16, i * 16, lane);
    };
    // Two tiles of columns of rows (of `tile`) times (columns of) a state. Floats are read again each time, since there
    // are not registers for all.
    const auto multiply = [&](float(&product)[2][2][4], const T* tile, const T* by, int column) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) product[m][n][i] = 0.0f;
#pragma unroll(sizeof(T) == 2 ? P / 16 : 1)
      for (int i = 0; i < P / 16; ++i) {
        mma::Right<T> b[2];
        mma::load_right<T, P>(b, by, column, i * 16, lane);
#pragma unroll
        for (int m = 0; m < 2; ++m)
          if constexpr (sizeof(T) == 2)
            mma::multiply_add(product[m], rows[m][i], b);
          else
            mma::multiply_add(product[m], mma::load_left<T, P>(tile, first_row + m * 16, i * 16, lane), b);
      }
    };

    // dB += e^{c_Q - c} dt . (x dS'^T)
    if constexpr (sizeof(T) == 2) load_rows(x_tile);
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        const int t = first_row + m * 16 + half_row * 8 + lane / 4;
        weight[m][half_row] = mma::power_of_two(difference(end, sums[t])) * steps[t];
      }
#pragma unroll
    for (int pair = 0; pair < n_tiles / 2; ++pair) {
      float product[2][2][4];
      multiply(product, x_tile, dstate, first_column + pair * 16);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) dB[m][2 * pair + n][i] += weight[m][i / 2] * product[m][n][i];
    }
    if constexpr (!by_engine) {
      mma::wait_for_copies<0>();
      __syncthreads();  // dy and S are there
    }

    // w = e^{c_Q} <S, dS'>; each thread reads what it will itself overwrite.
    float w = 0.0f;
    constexpr int row_units = P * static_cast<int>(sizeof(T)) / 16;
#pragma unroll
    for (int row = thread / row_units; row < N + thread / row_units; row += 256 / row_units) {
      const int at = mma::unit_at<T, P>(row, thread % row_units);
      using Four = mma::pair_t<T>;
#pragma unroll
      for (int j = 0; j < 16 / static_cast<int>(sizeof(Four)); ++j) {
        const float2 a = mma::unpack<T>(reinterpret_cast<const Four*>(state + at)[j]);
        const float2 b = mma::unpack<T>(reinterpret_cast<const Four*>(dstate + at)[j]);
        w += a.x * b.x + a.y * b.y;
      }
    }
    if constexpr (!by_engine)
      if (k + 1 < block.heads) load_for_dB(k + 1);
    for (int distance = 16; distance > 0; distance /= 2) w += __shfl_xor_sync(0xffffffffu, w, distance);
    if (lane == 0) w_parts[(k & 1) * 8 + warp] = w * mma::power_of_two(rounded(end));

    // dC += e^c . (dy S^T), and o = C . that
    if constexpr (sizeof(T) == 2) load_rows(dy_tile);
    float o[2][2] = {};
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row)
        weight[m][half_row] = mma::power_of_two(rounded(sums[first_row + m * 16 + half_row * 8 + lane / 4]));
#pragma unroll
    for (int pair = 0; pair < n_tiles / 2; ++pair) {
      float product[2][2][4];
      multiply(product, dy_tile, state, first_column + pair * 16);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const auto c = mma::load_left<T, N>(C_tile, first_row + m * 16, first_column + pair * 16, lane);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int half_row = 0; half_row < 2; ++half_row) {
            const float2 c_pair = mma::unpack<T>(c.pairs[2 * n + half_row]);
            const float first = weight[m][half_row] * product[m][n][2 * half_row];
            const float second = weight[m][half_row] * product[m][n][2 * half_row + 1];
            dC[m][2 * pair + n][2 * half_row] += first;
            dC[m][2 * pair + n][2 * half_row + 1] += second;
            o[m][half_row] += c_pair.x * first + c_pair.y * second;
          }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        float sum = o[m][half_row];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) o_parts[((k & 1) * 2 + warp % 2) * Q + first_row + m * 16 + half_row * 8 + lane / 4] = sum;
      }
    if constexpr (!by_engine) {
      __syncthreads();  // dy and S have been read
      if (k + 1 < block.heads) load_for_dC(k + 1);
    }
  }
  __syncthreads();
  if (block.heads > 0) write_sums(block.heads - 1);
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half_row = 0; half_row < 2; ++half_row) {
      const int t = first_row + m * 16 + half_row * 8 + lane / 4;
      if (t >= block.tokens) continue;
      const Index at = block.partial_row(in, batches, t) * N + first_column + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
        *reinterpret_cast<float2*>(memory.dB + at + n * 8) =
            make_float2(dB[m][n][2 * half_row], dB[m][n][2 * half_row + 1]);
        *reinterpret_cast<float2*>(memory.dC + at + n * 8) =
            make_float2(dC[m][n][2 * half_row], dC[m][n][2 * half_row + 1]);
      }
    }
}

template <class T, int N>
inline constexpr int tokens_kernel_bytes = (128 * N + 2 * 128 * 64 + N * 64) * static_cast<int>(sizeof(T)) +
                                           2 * 128 * (static_cast<int>(sizeof(decay_sum_t<T>)) + 4) + 36 * 256 * 4 +
                                           2 * (8 + 4) * 128 * 4 + 2 * 8 * 4;

/// Everything else of a chunk. Eight warps; a warp has 16 rows s of M^T, of dM^T, of dx and of dB, and as many tiles of
/// 16 columns t >= s as there are up to the chunk's end. While a head's dS' is multiplied, its x and dy arrive; while
/// these are, the next head's dS' does.
template <class T, int N>
__global__ void __launch_bounds__(256)
    ssd_backward_tokens_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, DeviceGradients<T> to,
                               TensorMemory<T> memory, Index batches) {
  using mma::pair_at, mma::pair_t, mma::unit_at;
  constexpr int Q = backward_tokens, P = 64, per_unit = 16 / static_cast<int>(sizeof(T));
  constexpr int unrolled =
      sizeof(T) == 2 ? N / 16 : 2;  // steps of products, of which those in float take more registers
  const ChunkBlock<T> block(in, memory);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int mine = warp < 4 ? warp : 11 - warp;  // tile of rows: the two warps of a scheduler have 9 tiles together
  const int row = mine * 16 + lane / 4;          // and row + 8

  extern __shared__ __align__(128) unsigned char shared[];
  using Sum = decay_sum_t<T>;
  T* const B_tile = reinterpret_cast<T*>(shared);
  T* const x_tile = B_tile + Q * N;
  T* const dy_tile = x_tile + Q * P;
  T* const dstate = dy_tile + Q * P;
  Sum* const all_sums = reinterpret_cast<Sum*>(dstate + N * P);         // (2, Q)
  float* const all_steps = reinterpret_cast<float*>(all_sums + 2 * Q);  // (2, Q)
  float* const all_scores = all_steps + 2 * Q;                          // (36 tiles, 256)
  float* const row_parts = all_scores + 36 * 256;                       // (2, 8 tiles of s, Q)
  float* const token_sums = row_parts + 2 * 8 * Q;                      // (2, 4, Q)
  float* const dD_parts = token_sums + 2 * 4 * Q;                       // (2, 8)
  float4* const scores = reinterpret_cast<float4*>(all_scores) + (mine * 8 - mine * (mine - 1) / 2) * 64 + lane;
  const T* const B = in.B + block.batch * in.B_batch + block.begin * in.B_token + block.group * in.B_group;
  const T* const C = in.C + block.batch * in.C_batch + block.begin * in.C_token + block.group * in.C_group;
  T* const C_tile = x_tile;           // before and after the loop over heads
  T* const dG_tile = C_tile + Q * N;  // after it: (s, t)
  static_assert((Q * N + Q * Q) * sizeof(T) <=
                (2 * Q * P + N * P) * sizeof(T) + 2 * Q * (sizeof(Sum) + 4) + 36 * 256 * 4);

  const auto load_states = [&](int k) {
    const Index place = block.place + block.first_head + k;
    load_tile<N, P, 256>(dstate, memory.dstates + place * N * P, P, N);
    load_numbers<Q, 256>(all_sums + (k & 1) * Q, memory.sums + place * Q);
    load_numbers<Q, 256>(all_steps + (k & 1) * Q, memory.steps + place * Q);
    mma::commit_copies();
  };
  const auto load_tokens = [&](int k) {
    const int head = block.first_head + k;
    load_tile<Q, P, 256>(x_tile, in.x + block.batch * in.x_batch + block.begin * in.x_token + head * in.x_head,
                         in.x_token, block.tokens, memory.aligned.x);
    load_tile<Q, P, 256>(dy_tile,
                         upstream.dout + block.batch * upstream.dout_batch + block.begin * upstream.dout_token +
                             head * upstream.dout_head,
                         upstream.dout_token, upstream.dout != nullptr ? block.tokens : 0, memory.aligned.dout);
    mma::commit_copies();
  };

  /// da of head k and what follows from it, by one warp; lanes have 4 tokens. The sums of E over rows from a token on
  /// and columns before it are put together from whole blocks of 16 x 16, from the token's rows and columns of blocks,
  /// and, in the block on the diagonal alone, from the difference of rows and columns.
  const auto finish = [&](int k) {
    const int t = 4 * lane, own = lane / 4;  // block
    const float* const parts = row_parts + (k & 1) * 8 * Q;
    const float* const sums = token_sums + (k & 1) * 4 * Q;
    const float* const steps = memory.steps + (block.place + block.first_head + k) * Q;
    TokenSums mine = {};
    float rows[4], columns[4], blocks[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      mine.x_du[i] = sums[t + i];
      mine.through_end[i] = sums[Q + t + i];
      columns[i] = steps[t + i] * sums[2 * Q + t + i];
      rows[i] = parts[own * Q + t + i] - steps[t + i] * sums[3 * Q + t + i];
    }
#pragma unroll
    for (int s = 0; s < 8; ++s) {
      const float4 part = s < own ? *reinterpret_cast<const float4*>(parts + s * Q + t) : float4{};
      rows[0] += part.x, rows[1] += part.y, rows[2] += part.z, rows[3] += part.w;
      blocks[s] = (part.x + part.y) + (part.z + part.w);
      blocks[s] += __shfl_xor_sync(0xffffffffu, blocks[s], 1);
      blocks[s] += __shfl_xor_sync(0xffffffffu, blocks[s], 2);
    }
    float whole = 0.0f, before = 0.0f;
#pragma unroll
    for (int s = 1; s < 7; ++s) {
      before += blocks[s - 1];
      float sum = own > s ? before : 0.0f;
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (own == s) whole = sum;
    }
#pragma unroll
    for (int i = 2; i >= 0; --i) rows[i] += rows[i + 1];
    const float column_sum = (columns[0] + columns[1]) + (columns[2] + columns[3]);
    float passing = whole;
#pragma unroll
    for (int distance = 1; distance < 4; ++distance) {
      const float later = __shfl_down_sync(0xffffffffu, rows[0], distance);
      const float earlier = __shfl_up_sync(0xffffffffu, column_sum, distance);
      if (lane % 4 + distance < 4) passing += later;
      if (lane % 4 >= distance) passing += earlier;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      mine.passing[i] = passing + rows[i];
      passing += columns[i];
    }
    float dD = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) dD += dD_parts[(k & 1) * 8 + i];
    finish_head(in, to, memory, block, HeadNumbers<T>(in, memory, block, block.first_head + k), mine, dD);
  };

  // G^T, in the order in which each thread will read its own part again.
  load_tile<Q, N, 256>(B_tile, B, in.B_token, block.tokens, memory.aligned.B);
  load_tile<Q, N, 256>(C_tile, C, in.C_token, block.tokens, memory.aligned.C);
  mma::commit_copies();
  mma::wait_for_copies<0>();
  __syncthreads();
  for (int d = 0; mine + d < 8; ++d) {
    float g[2][4] = {};
#pragma unroll unrolled
    for (int i = 0; i < N / 16; ++i) {
      mma::Right<T> b[2];
      mma::load_right<T, N>(b, C_tile, (mine + d) * 16, i * 16, lane);
      mma::multiply_add(g, mma::load_left<T, N>(B_tile, mine * 16, i * 16, lane), b);
    }
    scores[d * 64] = make_float4(g[0][0], g[0][1], g[0][2], g[0][3]);
    scores[d * 64 + 32] = make_float4(g[1][0], g[1][1], g[1][2], g[1][3]);
  }
  __syncthreads();  // C has been read
  load_states(0);
  load_tokens(0);

  float dG[8][2][4] = {};  // dG^T: rows s, tiles of t from the warp's own on
  for (int k = 0; k < block.heads; ++k) {
    mma::wait_for_copies<1>();
    __syncthreads();  // this head's dS' is there
    if (k > 0 && warp == (k - 1) % 8) finish(k - 1);
    const int head = block.first_head + k;
    const Sum* const sums = all_sums + (k & 1) * Q;
    const float* const steps = all_steps + (k & 1) * Q;
    const Sum c[2] = {sums[row], sums[row + 8]}, end = sums[Q - 1];
    const float step[2] = {steps[row], steps[row + 8]};

    // du through the state after the chunk.
    float du[8][4] = {};
#pragma unroll unrolled
    for (int i = 0; i < N / 16; ++i) {
      const auto a = mma::load_left<T, N>(B_tile, mine * 16, i * 16, lane);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        mma::Right<T> b[2];
        mma::load_right_rows<T, P>(b, dstate, i * 16, n * 8, lane);
        mma::multiply_add(du + n, a, b);
      }
    }
    mma::wait_for_copies<0>();
    __syncthreads();  // its x and dy are there, dS' has been read
    if (k + 1 < block.heads) load_states(k + 1);

    mma::Left<T> x[P / 16];
#pragma unroll
    for (int i = 0; i < P / 16; ++i) x[i] = mma::load_left<T, P>(x_tile, mine * 16, i * 16, lane);
    // Of rows row and row + 8; of E over later blocks, and in the block on the diagonal without the diagonal and on it.
    float inter[2] = {}, columns[2] = {}, own[2] = {}, diagonal[2] = {};
    const float to_end[2] = {mma::power_of_two(difference(end, c[0])), mma::power_of_two(difference(end, c[1]))};
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        const float2 x_pair = mma::unpack<T>(x[n / 2].pairs[n % 2 * 2 + half_row]);
        du[n][2 * half_row] *= to_end[half_row];
        du[n][2 * half_row + 1] *= to_end[half_row];
        inter[half_row] += x_pair.x * du[n][2 * half_row] + x_pair.y * du[n][2 * half_row + 1];
      }

    // Within the chunk, 16 later tokens after the other.
    float dD = 0.0f;
#pragma unroll
    for (int d = 0; d < 8; ++d) {
      if (mine + d >= 8) break;
      const int first = (mine + d) * 16;
      float dM[2][4] = {};
#pragma unroll(sizeof(T) == 2 ? P / 16 : 1)
      for (int i = 0; i < P / 16; ++i) {
        mma::Right<T> b[2];
        mma::load_right<T, P>(b, dy_tile, first, i * 16, lane);
        if constexpr (sizeof(T) == 2)
          mma::multiply_add(dM, x[i], b);
        else  // read again: there are not registers for all
          mma::multiply_add(dM, mma::load_left<T, P>(x_tile, mine * 16, i * 16, lane), b);
      }
      const float4 low = scores[d * 64], high = scores[d * 64 + 32];
      const float g[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
      float mixing[2][4], over[4] = {};  // over: sums of E over this warp's rows, by column
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int t = first + n * 8 + 2 * (lane % 4) + i % 2, s = row + i / 2 * 8;
          float kept = mma::power_of_two(difference(sums[t], c[i / 2]));
          if (d == 0) kept = t >= s ? kept : 0.0f;
          mixing[n][i] = kept * g[n][i];
          const float dscore = dM[n][i] * kept, e = dscore * g[n][i];
          dG[d][n][i] += dscore * step[i / 2];
          if (d == 0 && t == s) {
            diagonal[i / 2] += e;
            dD += dM[n][i];
          } else {
            (d == 0 ? own : columns)[i / 2] += e;
            over[2 * n + i % 2] += e * step[i / 2];
          }
        }
      const auto a = mma::left_of<T>(mixing);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        mma::Right<T> b[2];
        mma::load_right_rows<T, P>(b, dy_tile, first, n * 8, lane);
        mma::multiply_add(du + n, a, b);
      }
      // Sums over the 8 lanes of a column: each step halves the columns of a lane, so 4 exchanges are enough.
      const bool upper = lane & 16, odd = lane & 8;
      const float kept0 = upper ? over[2] : over[0], kept1 = upper ? over[3] : over[1];
      const float half0 = kept0 + __shfl_xor_sync(0xffffffffu, upper ? over[0] : over[2], 16);
      const float half1 = kept1 + __shfl_xor_sync(0xffffffffu, upper ? over[1] : over[3], 16);
      float sum = (odd ? half1 : half0) + __shfl_xor_sync(0xffffffffu, odd ? half0 : half1, 8);
      sum += __shfl_xor_sync(0xffffffffu, sum, 4);
      if ((lane & 4) == 0)
        row_parts[((k & 1) * 8 + mine) * Q + first + (upper ? 8 : 0) + 2 * (lane % 4) + (odd ? 1 : 0)] = sum;
    }
#pragma unroll
    for (int half_row = 0; half_row < 2; ++half_row) {
      float values[4] = {columns[half_row] + own[half_row] + diagonal[half_row] + inter[half_row], inter[half_row],
                         columns[half_row], own[half_row]};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[i] += __shfl_xor_sync(0xffffffffu, values[i], 1);
        values[i] += __shfl_xor_sync(0xffffffffu, values[i], 2);
        if (lane % 4 == 0) token_sums[((k & 1) * 4 + i) * Q + row + half_row * 8] = values[i];
      }
    }
    for (int distance = 16; distance > 0; distance /= 2) dD += __shfl_xor_sync(0xffffffffu, dD, distance);
    if (lane == 0) dD_parts[(k & 1) * 8 + warp] = dD;

    // dx = dt du + D dy, in whole rows, through the warp's own rows of x, which have served.
    if (to.dx != nullptr) {
      const float D = in.D != nullptr ? in.D[head * in.D_head] : 0.0f;
      __syncwarp();
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int half_row = 0; half_row < 2; ++half_row) {
          const int at = pair_at<T, P>(row + half_row * 8, n, lane % 4);
          const float2 dy_pair = mma::unpack<T>(*reinterpret_cast<const pair_t<T>*>(dy_tile + at));
          *reinterpret_cast<pair_t<T>*>(x_tile + at) =
              mma::pack<T>(step[half_row] * du[n][2 * half_row] + D * dy_pair.x,
                           step[half_row] * du[n][2 * half_row + 1] + D * dy_pair.y);
        }
      __syncwarp();
      T* const dx = to.dx + block.batch * to.dx_batch + block.begin * to.dx_token + head * to.dx_head;
#pragma unroll
      for (int i = lane; i < 16 * P / per_unit; i += 32) {
        const int t = mine * 16 + i / (P / per_unit), unit = i % (P / per_unit);
        const T* const from = x_tile + unit_at<T, P>(t, unit);
        T* const target = dx + t * to.dx_token + unit * per_unit;
        if (t >= block.tokens) continue;
        if (memory.aligned.dx)
          *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(from);
        else
          for (int r = 0; r < per_unit; ++r) target[r] = from[r];
      }
    }
    __syncthreads();  // x and dy have been read
    if (k + 1 < block.heads) load_tokens(k + 1);
  }
  if (block.heads > 0 && warp == (block.heads - 1) % 8) finish(block.heads - 1);

  // Through the scores: dB += dG^T C by the warp's own rows s; dC += dG B by rows t, so that all warps are equally
  // long.
  load_tile<Q, N, 256>(C_tile, C, in.C_token, block.tokens, memory.aligned.C);
  mma::commit_copies();
#pragma unroll
  for (int d = 0; d < 8; ++d) {
    if (mine + d >= 8) break;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row)
        *reinterpret_cast<pair_t<T>*>(dG_tile + pair_at<T, Q>(row + half_row * 8, 2 * (mine + d) + n, lane % 4)) =
            mma::pack<T>(dG[d][n][2 * half_row], dG[d][n][2 * half_row + 1]);
  }
  mma::wait_for_copies<0>();
  __syncthreads();
  const auto write = [&](float(&part)[N / 8][4], int first_row, float* parts, T* target, Index token_stride,
                         bool aligned) {
#pragma unroll
    for (int half_row = 0; half_row < 2; ++half_row) {
      const int t = first_row + half_row * 8 + lane / 4;
      if (t >= block.tokens) continue;
      const Index from = block.partial_row(in, batches, t) * N + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
        add_pair(part[n][2 * half_row], part[n][2 * half_row + 1], parts + from + n * 8,
                 target != nullptr ? target + t * token_stride + n * 8 + 2 * (lane % 4) : nullptr,
                 memory.slices.count > 1, aligned);
    }
  };
  {
    float part[N / 8][4] = {};
#pragma unroll
    for (int d = 0; d < 8; ++d) {
      if (mine + d >= 8) break;
      const auto a = mma::left_of<T>(dG[d]);
#pragma unroll
      for (int n = 0; n < N / 8; n += 2) {
        mma::Right<T> b[2];
        mma::load_right_rows<T, N>(b, C_tile, (mine + d) * 16, n * 8, lane);
        mma::multiply_add(part + n, a, b);
      }
    }
    T* const dB = to.dB != nullptr
                      ? to.dB + block.batch * to.dB_batch + block.begin * to.dB_token + block.group * to.dB_group
                      : nullptr;
    write(part, mine * 16, memory.dB, dB, to.dB_token, memory.aligned.dB);
  }
  {
    const int other = 7 - mine;
    float part[N / 8][4] = {};
    for (int i = 0; i <= other; ++i) {
      const auto a = mma::load_left_transposed<T, Q>(dG_tile, i * 16, other * 16, lane);
#pragma unroll
      for (int n = 0; n < N / 8; n += 2) {
        mma::Right<T> b[2];
        mma::load_right_rows<T, N>(b, B_tile, i * 16, n * 8, lane);
        mma::multiply_add(part + n, a, b);
      }
    }
    T* const dC = to.dC != nullptr
                      ? to.dC + block.batch * to.dC_batch + block.begin * to.dC_token + block.group * to.dC_group
                      : nullptr;
    write(part, other * 16, memory.dC, dC, to.dC_token, memory.aligned.dC);
  }
}

/// Adds up what the slices of a group gave; grid.y is 0 for dB and 1 for dC. A thread has 4 columns.
template <class T>
__global__ void __launch_bounds__(256) ssd_join_slices_kernel(DeviceGradients<T> to, TensorMemory<T> memory,
                                                              Index batches, Index length, int groups, int N) {
  const Index row = (Index{blockIdx.x} * 256 + threadIdx.x) / (N / 4), rows = batches * length * groups;
  const int column = static_cast<int>((Index{blockIdx.x} * 256 + threadIdx.x) % (N / 4)) * 4;
  T* const target = blockIdx.y == 0 ? to.dB : to.dC;
  if (row >= rows || target == nullptr) return;
  const float* from = (blockIdx.y == 0 ? memory.dB : memory.dC) + row * N + column;
  float4 sum = *reinterpret_cast<const float4*>(from);
  for (int slice = 1; slice < memory.slices.count; ++slice) {
    const float4 part = *reinterpret_cast<const float4*>(from + slice * rows * N);
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  const Index group = row % groups, token = row / groups % length, batch = row / groups / length;
  T* const place = blockIdx.y == 0 ? target + batch * to.dB_batch + token * to.dB_token + group * to.dB_group + column
                                   : target + batch * to.dC_batch + token * to.dC_token + group * to.dC_group + column;
  const bool aligned = blockIdx.y == 0 ? memory.aligned.dB : memory.aligned.dC;
  store_pair(place, mma::pack<T>(sum.x, sum.y), aligned);
  store_pair(place + 2, mma::pack<T>(sum.z, sum.w), aligned);
}

// Launchers
// ------------------------------------------------------------------------------------------------------------

inline int processors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}

/// Segments of the walk, by what the busiest multiprocessor sees, in chunks: two blocks of two heads share one; with
/// segments most work is done twice, and there are two more launches.
inline WalkSegments cut_walk(const Sizes& s) {
  WalkSegments best;
  const Index chunks = (s.length + backward_tokens - 1) / backward_tokens, width = 2 * processors();
  const Index walks = 2 * s.batch * s.ngroups * ((s.heads_per_group() + walk_heads - 1) / walk_heads);
  double least = 0;
  for (Index count = 1; count <= 64 && (count == 1 || count <= chunks / 4); ++count) {
    const Index each = (chunks + count - 1) / count;
    if (count > 1 && (chunks + each - 1) / each != count) continue;
    const double waves = static_cast<double>((walks * count + width - 1) / width);
    const double cost = waves * static_cast<double>(each) * (count > 1 ? 1.8 : 1.0) +
                        (count > 1 ? 8.0 + static_cast<double>(count) : 0.0);
    if (count > 1 && cost >= least) continue;
    least = cost;
    best.count = static_cast<int>(count);
    best.chunks = static_cast<int>(each);
  }
  return best;
}

/// Slices of a group: the fewest whose blocks leave the last wave on the GPU well filled. A block's own work counts as
/// two heads, and joining slices as a third of one for each.
inline HeadSlices cut_heads(const Sizes& s) {
  const Index blocks = s.batch * ((s.length + backward_tokens - 1) / backward_tokens) * s.ngroups;
  const Index all = s.heads_per_group(), width = processors();
  HeadSlices best;
  double lowest = 0;
  for (Index count = 1; count <= all && count <= 32; ++count) {
    const Index heads = (all + count - 1) / count;
    if ((all + heads - 1) / heads != count) continue;
    const Index waves = (blocks * count + width - 1) / width;
    const double cost = static_cast<double>(waves) * (static_cast<double>(heads) + 2.0 + (count > 1 ? 1.0 : 0.0));
    if (count > 1 && cost >= lowest) continue;
    lowest = cost;
    best = {static_cast<int>(count), static_cast<int>(heads)};
  }
  return best;
}

/// Cuts the tensor-core path's memory from a workspace, or (null) only counts its bytes.
template <class T>
TensorMemory<T> tensor_memory(const Sizes& s, Workspace<cuda>* workspace, std::size_t* bytes) {
  TensorMemory<T> m;
  const auto take = [&]<class Element>(Element*& place, Index count) {
    if (bytes != nullptr) *bytes += Workspace<cuda>::bytes_of<Element>(count);
    if (workspace != nullptr) place = workspace->template take<Element>(count);
  };
  const Index chunks = (s.length + backward_tokens - 1) / backward_tokens, places = s.batch * chunks * s.nheads;
  const Index state = s.d_state * s.headdim;
  m.chunks = static_cast<int>(chunks);
  m.segments = cut_walk(s);
  m.slices = cut_heads(s);
  take(m.steps, places * backward_tokens);
  take(m.sums, places * backward_tokens);
  if (sizeof(T) == 2) {  // read by Hopper's kernels
    take(m.to_end, places * backward_tokens);
    take(m.start, places * backward_tokens);
  }
  take(m.from_start, places * backward_tokens);
  take(m.through, places);
  take(m.dA, places);
  take(m.ddt_bias, places);
  take(m.dD, places);
  take(m.states, places * state);
  take(m.dstates, places * state);
  take(m.dB, m.slices.count * s.batch * s.length * s.ngroups * s.d_state);
  take(m.dC, m.slices.count * s.batch * s.length * s.ngroups * s.d_state);
  if (m.segments.count > 1) {
    const Index slots = 2 * s.batch * s.nheads * m.segments.count;
    take(m.segments.states, slots * state);
    take(m.segments.decays, slots);
  }
  return m;
}

/// Whether the tensor-core path takes a call: sizes and options say so and the GPU's shared memory, not the operands'.
template <class T>
bool tensor_cores_suit(const Inputs<T, cuda>& in) {
  const Sizes s = sizes(in);
  if constexpr (!std::is_same_v<T, double>) {
    const int bytes = s.d_state == 64 ? tokens_kernel_bytes<T, 64> : tokens_kernel_bytes<T, 128>;
    if (bytes > device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return false;
  }
  return !std::is_same_v<T, double> && s.batch > 0 && s.length > 0 && s.nheads > 0 && s.headdim == 64 &&
         (s.d_state == 64 || s.d_state == 128) && !in.z && !in.D_per_channel;
}
template <class T>
AlignedRows aligned_rows(const Inputs<T, cuda>& in, const OutputGradients<T, cuda>& upstream,
                         const GradientViews<T, cuda>& to) {
  const auto aligned = [](const View<const T, 4, cuda>& view) {
    bool good = reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
    for (int axis = 0; axis < 3; ++axis)
      good = good && (view.extent(axis) == 1 || view.stride(axis) % Index{16 / sizeof(T)} == 0);
    return good;
  };
  return {.x = aligned(in.x),
          .dout = aligned(upstream.dout),
          .B = aligned(in.B),
          .C = aligned(in.C),
          .dx = aligned(to.dx),
          .dB = aligned(to.dB),
          .dC = aligned(to.dC)};
}

/// Whether the kernels for Hopper have a body for the current stream's GPU and the copy engine can walk over the
/// operands.
template <class T, int N>
bool hopper_takes_backward(const Inputs<T, cuda>& in, const OutputGradients<T, cuda>& upstream) {
  if (!hopper::can_map(View<const T, 4, cuda>(in.x)) || !hopper::can_map(View<const T, 4, cuda>(in.B)) ||
      !hopper::can_map(View<const T, 4, cuda>(in.C)) || !hopper::can_map(upstream.dout))
    return false;
  const Sizes s = sizes(in);
  if (s.batch * (s.length + backward_tokens) / backward_tokens * s.nheads * N >= (Index{1} << 31)) return false;
  return hopper::has_body(ssd_hopper_walk_kernel<T, N, true>);
}

template <class T, int N>
void launch_tensor_backward(const Inputs<T, cuda>& views, const OutputGradients<T, cuda>& upstream_views,
                            const View<T, 4, cuda>& dx, const DeviceInputs<T>& in, const DeviceUpstream<T>& upstream,
                            const DeviceGradients<T>& to, const AlignedRows& aligned, Workspace<cuda>& workspace) {
  const Sizes s = sizes(views);
  const auto stream = cuda_runtime::current_stream().handle;
  TensorMemory<T> memory = tensor_memory<T>(s, &workspace, nullptr);
  memory.aligned = aligned;
  const auto launch = [&](const char* name, auto kernel, dim3 grid, int threads, int bytes, auto... arguments) {
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute");
    kernel<<<grid, static_cast<unsigned>(threads), static_cast<std::size_t>(bytes), stream>>>(arguments...);
    cuda_runtime::check_launch(name);
  };
  ssd_chunk_decays_kernel<T, backward_tokens, decay_sum_t<T>>
      <<<dim3(grid_of(s.batch * memory.chunks), static_cast<unsigned>((s.nheads + 7) / 8)), 256, 0, stream>>>(
          in, memory, 1.4426950408889634);
  cuda_runtime::check_launch("ssd_chunk_decays_kernel");

  bool on_hopper = false;
  BackwardMaps maps = {};
  if constexpr (sizeof(T) == 2) {
    on_hopper = hopper_takes_backward<T, N>(views, upstream_views);
    const Extents<4> rows{1, s.batch * memory.chunks * s.nheads * N, 1, 64};
    if (on_hopper)
      maps = {hopper::tensor_map(View<const T, 4, cuda>(views.x), 64),
              hopper::tensor_map(upstream_views.dout, 64),
              hopper::tensor_map(View<const T, 4, cuda>(views.B), 64),
              hopper::tensor_map(View<const T, 4, cuda>(views.C), 64),
              hopper::tensor_map(View<T, 4, cuda>(memory.states, rows), 64),
              hopper::tensor_map(View<T, 4, cuda>(memory.dstates, rows), 64),
              {}};
  }
  const auto walk = [&]<bool Emit>(std::bool_constant<Emit>, const char* name) {
    if constexpr (sizeof(T) == 2)
      if (on_hopper) {
        const Index pairs = s.ngroups * ((s.heads_per_group() + walk_heads - 1) / walk_heads);
        return launch(name, ssd_hopper_walk_kernel<T, N, Emit>,
                      dim3(grid_of(s.batch * pairs * memory.segments.count), 2), walk_heads * 128, WalkMemory<N>::bytes,
                      in, upstream, to, memory, maps);
      }
    launch(name, ssd_walk_kernel<T, N, Emit>, dim3(grid_of(s.batch * s.nheads * memory.segments.count), 2), 128,
           walk_kernel_bytes<T, N>, in, upstream, to, memory);
  };
  if (memory.segments.count > 1) {
    walk(std::false_type(), "ssd_walk_kernel (segments)");
    ssd_walk_starts_kernel<T, N>
        <<<dim3(grid_of(s.batch * s.nheads), 2, N / 4), 256, 0, stream>>>(in, upstream, memory.segments);
    cuda_runtime::check_launch("ssd_walk_starts_kernel");
  }
  walk(std::true_type(), "ssd_walk_kernel");

  const unsigned blocks = grid_of(s.batch * memory.chunks * s.ngroups * memory.slices.count);
  const auto the_rest = [&]<bool Hopper>(std::bool_constant<Hopper>) {
    launch("ssd_backward_states_kernel", ssd_backward_states_kernel<T, N, Hopper>, blocks, 256,
           states_kernel_bytes<T, N, Hopper>, in, upstream, memory, s.batch, maps);
    if constexpr (Hopper)
      if (to.dx == nullptr || hopper::can_map(dx)) {
        if (to.dx != nullptr) maps.dx = hopper::tensor_map(dx, 16);
        return launch("ssd_hopper_tokens_kernel", ssd_hopper_tokens_kernel<T, N>, blocks, 512, TokensMemory<N>::bytes,
                      in, to, memory, s.batch, maps);
      }
    launch("ssd_backward_tokens_kernel", ssd_backward_tokens_kernel<T, N>, blocks, 256, tokens_kernel_bytes<T, N>, in,
           upstream, to, memory, s.batch);
  };
  if constexpr (sizeof(T) == 2)
    on_hopper ? the_rest(std::true_type()) : the_rest(std::false_type());
  else
    the_rest(std::false_type());
  if (memory.slices.count > 1 && (to.dB != nullptr || to.dC != nullptr)) {
    const Index threads = s.batch * s.length * s.ngroups * (N / 4);
    ssd_join_slices_kernel<<<dim3(grid_of((threads + 255) / 256), 2), 256, 0, stream>>>(to, memory, s.batch, s.length,
                                                                                        static_cast<int>(s.ngroups), N);
    cuda_runtime::check_launch("ssd_join_slices_kernel");
  }
  ssd_parameter_sums_kernel<<<grid_of(s.nheads), 256, 0, stream>>>(
      to, static_cast<int>(s.nheads), s.batch * memory.chunks, ChunkMemory<float, decay_sum_t<T>>(memory));
  cuda_runtime::check_launch("ssd_parameter_sums_kernel");
}

}  // namespace detail

/// Bytes of workspace that backward takes.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Saved<T, cuda>&) {
  std::size_t bytes = 0;
  if constexpr (!std::is_same_v<T, double>) {
    const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
    if (detail::tensor_cores_suit(in)) {
      detail::tensor_memory<T>(sizes(in), nullptr, &bytes);
      return bytes;
    }
  }
  detail::general_memory<accumulate_t<T>>(sizes(in), nullptr, &bytes);
  return bytes;
}

/// Writes the gradients whose views are given, on the current stream, and never allocates. Throws Error.
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  check(in, saved, upstream, gradients);
  const Sizes s = sizes(in);
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const auto mark = workspace.mark();
  const detail::DeviceInputs<T> inputs(in, saved.options);
  const detail::DeviceUpstream<T> from(upstream);
  const detail::DeviceGradients<T> to(gradients, mode);
  if (detail::tensor_cores_suit(in)) {
    if constexpr (!std::is_same_v<T, double>) {
      const detail::AlignedRows aligned = detail::aligned_rows<T>(in, upstream, gradients);
      if (s.d_state == 64)
        detail::launch_tensor_backward<T, 64>(in, upstream, gradients.dx, inputs, from, to, aligned, workspace);
      else
        detail::launch_tensor_backward<T, 128>(in, upstream, gradients.dx, inputs, from, to, aligned, workspace);
    }
  } else {
    detail::launch_general_backward(inputs, from, to, s, workspace);
  }
  workspace.reset(mark);
}

}  // namespace diffmamba::ssd
