// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward_device.cuh"

/// SSD backward on tensor cores, the kernel of step 4 as ssd_backward.cuh counts them: what goes from token to token
/// within a chunk.
namespace diffmamba::ssd::detail {

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

}  // namespace diffmamba::ssd::detail
