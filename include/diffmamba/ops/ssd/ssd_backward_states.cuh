// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward_device.cuh"
#include "diffmamba/ops/ssd/ssd_backward_hopper.cuh"  // load_bytes

/// SSD backward on tensor cores, the kernel of step 3 as ssd_backward.cuh counts them: what goes through the states.
namespace diffmamba::ssd::detail {

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

}  // namespace diffmamba::ssd::detail
