// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/hopper.cuh"
#include "diffmamba/ops/ssd/ssd_backward_device.cuh"

/// The walk of SSD's backward pass on Hopper: what ssd_walk_kernel does, by products of warpgroups on tiles that the
/// copy engine brings. A block has two heads of a group, which share the tiles of B or C; the states lie in float in
/// the registers of a warpgroup each, (headdim, d_state), and go to memory in 16 bits before every chunk.
namespace diffmamba::ssd::detail {

inline constexpr int walk_heads = 2;  // of a block

/// Shared memory of a block of the walk, in bytes from a multiple of 1024.
template <int N>
struct WalkMemory {
  static constexpr int tile = 64 * 64 * 2, matrix = N / 64 * tile;
  static constexpr int stages = N == 128 ? 2 : 3;
  static constexpr int right = matrix, stage = matrix + walk_heads * tile;
  static constexpr int out = stages * stage, weights = out + walk_heads * matrix;
  static constexpr int bytes = weights + stages * walk_heads * 64 * 4 + 1024;
};

/// Four 8 x 8 matrices into shared memory, each transposed: lane l gives the address of column l % 8 of matrix l / 8.
__device__ inline void store_matrices_transposed(void* row, unsigned r0, unsigned r1, unsigned r2, unsigned r3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(hopper::shared_address(row)),
      "r"(r0), "r"(r1), "r"(r2), "r"(r3)
      : "memory");
}
/// Copies `bytes`, a multiple of 16, from aligned global memory.
__device__ inline void load_bytes(void* shared, const void* from, std::uint64_t* barrier, int bytes) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   hopper::shared_address(shared)),
               "l"(from), "r"(bytes), "r"(hopper::shared_address(barrier))
               : "memory");
}

/// Grid: segments of pairs of heads of the batch; 2: S and dS'. Two warpgroups; a thread starts copies.
template <class T, int N, bool Emit>
__global__ void __launch_bounds__(walk_heads * 128, 2)
    ssd_hopper_walk_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, DeviceGradients<T> to,
                           TensorMemory<T> memory, const __grid_constant__ BackwardMaps maps) {
#if defined(DIFFMAMBA_SM90A)
  using Memory = WalkMemory<N>;
  using mma::swizzled;
  constexpr int P = 64, Q = backward_tokens, tile = 64 * 64;
  extern __shared__ unsigned char hopper_shared[];
  __shared__ std::uint64_t full[Memory::stages], empty[Memory::stages];
  unsigned char* const shared = hopper_shared + (1024 - hopper::shared_address(hopper_shared) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Memory::stages; ++i) {
      hopper::initialise(&full[i], 1);
      hopper::initialise(&empty[i], walk_heads * 128);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  const bool reverse = blockIdx.y == 1;
  const WalkSegments& segments = memory.segments;
  const int segment = static_cast<int>(blockIdx.x) % segments.count;
  const int group_pairs = (in.heads_per_group + walk_heads - 1) / walk_heads;
  const int groups = in.nheads / in.heads_per_group;
  const int sequence = static_cast<int>(blockIdx.x) / segments.count, pair = sequence % (group_pairs * groups);
  const int batch = sequence / (group_pairs * groups), group = pair / group_pairs;
  const int first_head = group * in.heads_per_group + pair % group_pairs * walk_heads;
  const int heads = ::min(walk_heads, (group + 1) * in.heads_per_group - first_head);
  const int first = segment * segments.chunks, last = ::min(first + segments.chunks, memory.chunks);
  const int own = static_cast<int>(threadIdx.x) / 128, warp = static_cast<int>(threadIdx.x) % 128 / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int stage = 0;
  unsigned parity = 0;
  const auto next_stage = [&] {
    if (++stage == Memory::stages) stage = 0, parity ^= 1;
  };
  const auto place_of = [&](int chunk, int head) { return (Index{batch} * memory.chunks + chunk) * in.nheads + head; };
  // Tile t of the walk, by one thread, when all have done with what was in its place.
  const int tiles = 2 * (last - first);
  const auto chunk_of = [&](int t) { return reverse ? last - 1 - t / 2 : first + t / 2; };
  const auto start_loading = [&](int t) {
    const CUtensorMap& left = reverse ? maps.C : maps.B;
    const CUtensorMap& right = reverse ? maps.dout : maps.x;
    const int chunk = chunk_of(t), token = chunk * Q + t % 2 * 64, target_stage = t % Memory::stages;
    if (t >= Memory::stages) hopper::wait(&empty[target_stage], (t / Memory::stages + 1) & 1);
    std::uint64_t* const barrier = &full[target_stage];
    hopper::arrive_expecting(barrier, Memory::stage + walk_heads * 64 * 4);
    T* const target = reinterpret_cast<T*>(shared + target_stage * Memory::stage);
#pragma unroll
    for (int i = 0; i < N / 64; ++i) hopper::load_tile(target + i * tile, &left, barrier, i * 64, group, token, batch);
#pragma unroll
    for (int i = 0; i < walk_heads; ++i) {
      const int head = first_head + (i < heads ? i : 0);
      hopper::load_tile(target + Memory::right / 2 + i * tile, &right, barrier, 0, head, token, batch);
      load_bytes(shared + Memory::weights + (target_stage * walk_heads + i) * 64 * 4,
                 (reverse ? memory.start : memory.to_end) + place_of(chunk, head) * Q + t % 2 * 64, barrier, 64 * 4);
    }
  };
  if (threadIdx.x == 0)
    for (int t = 0; t < Memory::stages && t < tiles; ++t) start_loading(t);

  const int head = first_head + own;
  const bool valid = own < heads;
  const int rows = warp * 16, row = rows + lane / 4, column = 2 * (lane % 4);
  const Index slot =
      ((Index{blockIdx.y} * (gridDim.x / segments.count / (group_pairs * groups)) + batch) * in.nheads + head) *
          segments.count +
      segment;
  float state[N / 2];                          // rows `row` and that + 8, columns `column` + 8 j and the next
  const auto at = [&](int i, Index channel) {  // of element i, where rows are `channel` apart
    return (row + i / 2 % 2 * 8) * channel + i / 4 * 8 + column + i % 2;
  };
  const auto at_transposed = [&](int i) { return (i / 4 * 8 + column + i % 2) * P + row + i / 2 % 2 * 8; };
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    state[i] = 0.0f;
    if (!Emit || !valid) continue;
    if (segments.states != nullptr)
      state[i] = segments.states[slot * N * P + at_transposed(i)];
    else if (reverse && upstream.dfinal_state != nullptr)
      state[i] =
          upstream
              .dfinal_state[batch * upstream.state_batch + head * upstream.state_head + at(i, upstream.state_channel)];
    else if (!reverse && in.initial_state != nullptr)
      state[i] = in.initial_state[batch * in.state_batch + head * in.state_head + at(i, in.state_channel)];
  }

  T* const out_tile = reinterpret_cast<T*>(shared + Memory::out + own * Memory::matrix);
  float total = 0.0f;  // of the segment, in powers of two
  const auto kept_at = [&](int k) {
    const Index place = place_of(chunk_of(2 * (::min(k, last - 1) - first)), valid ? head : first_head);
    return memory.start[place * Q + Q - 1];
  };
  float next_kept = kept_at(first);
  for (int k = first; k < last; ++k) {
    const Index place = place_of(chunk_of(2 * (k - first)), valid ? head : first_head);
    const float kept = next_kept;
    next_kept = kept_at(k + 1);  // loaded long before it is wanted
    if (!Emit) total += memory.sums[place * Q + Q - 1];
    if constexpr (Emit) {
      if (threadIdx.x % 128 == 0) hopper::wait_for_stores_to_read();
      hopper::synchronize(1 + own, 128);
#pragma unroll
      for (int j = 0; j < N / 8; j += 2)
        store_matrices_transposed(
            out_tile + swizzled<64>(8 * (j + lane / 16) + lane % 8, rows / 8 + lane / 8 % 2),
            mma::pack<T>(state[4 * j], state[4 * j + 1]), mma::pack<T>(state[4 * j + 2], state[4 * j + 3]),
            mma::pack<T>(state[4 * j + 4], state[4 * j + 5]), mma::pack<T>(state[4 * j + 6], state[4 * j + 7]));
      hopper::publish_stores();
      hopper::synchronize(1 + own, 128);
      if (threadIdx.x % 128 == 0 && valid)
#pragma unroll
        for (int i = 0; i < N / 64; ++i)
          hopper::store_tile(reverse ? &maps.dstates : &maps.states, out_tile + i * tile, 0, 0,
                             static_cast<int>(place) * N + i * 64, 0);
    }
#pragma unroll
    for (int i = 0; i < N / 2; ++i) state[i] *= kept;
    for (int part = 0; part < 2; ++part) {
      const T* const left_tile = reinterpret_cast<const T*>(shared + stage * Memory::stage);
      const T* const right_tile = left_tile + Memory::right / 2 + own * tile;
      const float2* const weights =
          reinterpret_cast<const float2*>(shared + Memory::weights + (stage * walk_heads + own) * 64 * 4);
      hopper::wait(&full[stage], parity);
      unsigned u[4][4];  // transposed: 16 channels of each warp, all tokens
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mma::load_matrices_transposed(
            u[i], right_tile + swizzled<64>(i * 16 + lane % 8 + lane / 16 * 8, rows / 8 + lane / 8 % 2));
        const float2 weight[2] = {weights[i * 8 + lane % 4], weights[i * 8 + 4 + lane % 4]};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float2 value = mma::unpack<T>(u[i][r]);
          u[i][r] = mma::pack<T>(value.x * weight[r / 2].x, value.y * weight[r / 2].y);
        }
      }
      const auto factor = hopper::Factor::columns(left_tile);
      hopper::hold(state);
      hopper::begin_products();
#pragma unroll
      for (int i = 0; i < 4; ++i) hopper::multiply<T>(state, u[i], factor + i * 128);
      hopper::end_products();
      hopper::wait_for_products<0>();
      hopper::hold(state);
      hopper::arrive(&empty[stage]);
      next_stage();
      if (const int next = 2 * (k - first) + part + Memory::stages; threadIdx.x == 0 && next < tiles)
        start_loading(next);
    }
  }

  if (valid && !Emit) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) segments.states[slot * N * P + at_transposed(i)] = state[i];
    if (threadIdx.x % 128 == 0) segments.decays[slot] = exp2f(total);
  }
  if (valid && Emit && reverse && segment == 0 && to.dinitial_state != nullptr) {
    float* const target = to.dinitial_state + batch * to.state_batch + head * to.state_head;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) target[at(i, to.state_channel)] = state[i];
  }
  if (Emit && threadIdx.x % 128 == 0) hopper::wait_for_stores();
#endif
}

/// Shared memory of a block of ssd_hopper_tokens_kernel, in bytes from a multiple of 1024.
template <int N>
struct TokensMemory {
  static constexpr int tile = 64 * 64 * 2, matrix = N / 64 * tile;
  static constexpr int B = 0, scores = 2 * matrix, stages = scores + 3 * 2 * tile;
  static constexpr int dy = 2 * tile, dstate = 4 * tile, stage = dstate + matrix;
  static constexpr int out = stages + 2 * stage, exchange = out + 2 * tile, numbers = exchange + 2 * tile;
  static constexpr int row_parts = numbers + 2 * 2 * 128 * 4, token_sums = row_parts + 2 * 3 * 4 * 64 * 4;
  static constexpr int dD_parts = token_sums + 2 * 3 * 3 * 64 * 4, bytes = dD_parts + 2 * 8 * 4 + 1024;
  // After the loop over heads, in place of the stages: C, and what the third warpgroup adds to dB and dC.
  static constexpr int C = stages, dB = C + 2 * matrix, dC = dB + 2 * matrix;
};

/// What ssd_backward_tokens_kernel does, by products of warpgroups. M^T, dM^T and dG^T are cut into blocks of 64 x 64:
/// the first warpgroup has tokens s and t below 64, the second both from 64 on, the third s below and t from 64 on. The
/// third hands its part of du to the first through shared memory. Of a fourth, one warp starts copies and two compute
/// da from the sums of the others, of every second head each.
template <class T, int N>
__global__ void __launch_bounds__(512, 1)
    ssd_hopper_tokens_kernel(DeviceInputs<T> in, DeviceGradients<T> to, TensorMemory<T> memory, Index batches,
                             const __grid_constant__ BackwardMaps maps) {
#if defined(DIFFMAMBA_SM90A)
  using Memory = TokensMemory<N>;
  using mma::swizzled;
  constexpr int P = 64, Q = backward_tokens;
  const ChunkBlock<T> block(in, memory);
  // From the last head on: its tiles are what ssd_backward_states_kernel left in the second-level cache.
  const auto head_of = [&](int k) { return block.first_head + block.heads - 1 - k; };
  extern __shared__ unsigned char hopper_shared[];
  __shared__ std::uint64_t whole, full[2], empty[2], exchange_full, exchange_empty, sums_full[2], sums_empty[2];
  unsigned char* const shared = hopper_shared + (1024 - hopper::shared_address(hopper_shared) % 1024) % 1024;
  const auto tiles_at = [&](int offset) { return reinterpret_cast<T*>(shared + offset); };
  const auto floats_at = [&](int offset) { return reinterpret_cast<float*>(shared + offset); };
  if (threadIdx.x == 0) {
    hopper::initialise(&whole, 1);
    hopper::initialise(&exchange_full, 128);
    hopper::initialise(&exchange_empty, 128);
    for (int i = 0; i < 2; ++i) {
      hopper::initialise(&full[i], 1);
      hopper::initialise(&empty[i], 384);
      hopper::initialise(&sums_full[i], 384);
      hopper::initialise(&sums_empty[i], 32);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  const int warpgroup = static_cast<int>(threadIdx.x) / 128, warp = static_cast<int>(threadIdx.x) % 128 / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, thread = static_cast<int>(threadIdx.x) % 128;

  if (warpgroup == 3) {
    hopper::set_registers<56, false>();
    if (warp == 0 && lane == 0) {
      const int batch = static_cast<int>(block.batch), begin = static_cast<int>(block.begin);
      const auto load_matrix = [&](const CUtensorMap& map, int offset) {  // B or C
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < N / 64; ++i)
            hopper::load_tile(shared + offset + half * Memory::matrix + i * Memory::tile, &map, &whole, i * 64,
                              block.group, begin + half * 64, batch);
      };
      hopper::arrive_expecting(&whole, 4 * Memory::matrix);
      load_matrix(maps.B, Memory::B);
      load_matrix(maps.C, Memory::stages + Memory::stage);  // the second stage is free until its first head
      // Its reading counts as the second stage's first use; head k is that of stage k % 2 after k / 2 more.
      const auto wait_for_stage = [&](int k) {
        if (k > 0) hopper::wait(&empty[k & 1], static_cast<unsigned>((k - 1) / 2 & 1));
      };
      for (int k = 0; k < block.heads; ++k) {
        const int head = head_of(k);
        const Index place = block.place + head;
        unsigned char* const stage = shared + Memory::stages + (k & 1) * Memory::stage;
        float* const numbers = floats_at(Memory::numbers) + (k & 1) * 2 * Q;
        std::uint64_t* const barrier = &full[k & 1];
        wait_for_stage(k);
        hopper::arrive_expecting(barrier, Memory::stage + 2 * Q * 4);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          hopper::load_tile(stage + half * Memory::tile, &maps.x, barrier, 0, head, begin + half * 64, batch);
          hopper::load_tile(stage + Memory::dy + half * Memory::tile, &maps.dout, barrier, 0, head, begin + half * 64,
                            batch);
        }
#pragma unroll
        for (int i = 0; i < N / 64; ++i)
          hopper::load_tile(stage + Memory::dstate + i * Memory::tile, &maps.dstates, barrier, 0, 0,
                            static_cast<int>(place) * N + i * 64, 0);
        load_bytes(numbers, memory.sums + place * Q, barrier, Q * 4);
        load_bytes(numbers + Q, memory.steps + place * Q, barrier, Q * 4);
      }
      wait_for_stage(block.heads);
      wait_for_stage(block.heads + 1);
      hopper::arrive_expecting(&whole, 2 * Memory::matrix);
      load_matrix(maps.C, Memory::C);
    } else if (warp == 1 || warp == 2) {
      const int t = 4 * lane, first = t % 64;
      const bool late = t >= 64;
      for (int k = warp - 1; k < block.heads; k += 2) {
        const HeadNumbers<T> numbers(in, memory, block, head_of(k));
        const float* const parts = floats_at(Memory::row_parts) + (k & 1) * 3 * 4 * 64 + first;
        const float* const sums = floats_at(Memory::token_sums) + (k & 1) * 3 * 3 * 64 + first;
        hopper::wait(&sums_full[k & 1], static_cast<unsigned>(k / 2 & 1));
        TokenSums mine;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Rows of E: blocks (t, s) of the third, then the second warpgroup; or of the first alone.
          float rows = 0.0f;
#pragma unroll
          for (int part = 0; part < 4; ++part) rows += parts[((late ? 2 : 0) * 4 + part) * 64 + i];
          if (late)
#pragma unroll
            for (int part = 0; part < 4; ++part) rows += parts[(4 + part) * 64 + i];
          mine.rows[i] = rows;
          const float* const own = sums + (late ? 3 * 64 : 0) + i;
          const float third = late ? 0.0f : sums[6 * 64 + i];
          mine.columns[i] = own[0] + third;
          mine.x_du[i] = own[64] + third;
          mine.through_end[i] = own[128];
        }
        float dD = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) dD += floats_at(Memory::dD_parts)[(k & 1) * 8 + i];
        finish_head(in, to, memory, block, numbers, mine, dD);
        hopper::arrive(&sums_empty[k & 1]);
      }
    }
    return;
  }
  hopper::set_registers<152, true>();
  const auto work = [&]<bool Diagonal>() {
    const int s_block = warpgroup == 1, t_block = warpgroup != 0;
    const int rows = warp * 16, row = rows + lane / 4, column = 2 * (lane % 4);
    float4* const scores = reinterpret_cast<float4*>(shared + Memory::scores) + warpgroup * 8 * 128 + thread;
    float dG[32], product[32], du[32];  // rows `row` and that + 8, columns `column` + 8 j and the next

    // G^T, to be read again by the same thread.
    hopper::wait(&whole, 0);
    {
      const auto B = hopper::Factor::rows(shared + Memory::B + s_block * Memory::matrix);
      const auto C = hopper::Factor::rows(shared + Memory::stages + Memory::stage + t_block * Memory::matrix);
      hopper::begin_products();
#pragma unroll
      for (int i = 0; i < N / 16; ++i)
        hopper::multiply<T>(product, B + (i / 4 * 512 + i % 4 * 2), C + (i / 4 * 512 + i % 4 * 2), i > 0);
      hopper::end_products();
      hopper::wait_for_products<0>();
      hopper::hold(product);
      hopper::arrive(&empty[1]);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        scores[j * 128] = make_float4(product[4 * j], product[4 * j + 1], product[4 * j + 2], product[4 * j + 3]);
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) dG[i] = 0.0f;

    for (int k = 0; k < block.heads; ++k) {
      const int head = head_of(k), turn = k & 1;
      const unsigned parity = static_cast<unsigned>(k / 2 & 1);
      unsigned char* const stage = shared + Memory::stages + turn * Memory::stage;
      const T* const x_tile = reinterpret_cast<const T*>(stage + s_block * Memory::tile);
      const T* const dy_tile = reinterpret_cast<const T*>(stage + Memory::dy + s_block * Memory::tile);
      const float* const sums = floats_at(Memory::numbers) + turn * 2 * Q;
      const float D = Diagonal && in.D != nullptr ? in.D[head * in.D_head] : 0.0f;
      hopper::wait(&full[turn], parity);
      const auto x_rows = hopper::Factor::rows(x_tile);
      const auto dy_rows = hopper::Factor::rows(stage + Memory::dy + t_block * Memory::tile);
      const auto dy_columns = hopper::Factor::columns(stage + Memory::dy + t_block * Memory::tile);

      const float* const c_s = sums + s_block * 64;
      const float c[2] = {c_s[row], c_s[row + 8]}, step[2] = {c_s[Q + row], c_s[Q + row + 8]}, end = sums[Q - 1];
      const float2* const c_t = reinterpret_cast<const float2*>(sums + t_block * 64) + lane % 4;
      float4 score = scores[0];
      float2 c_pair = c_t[0];
      // dM^T = x dy^T, and du through the state after the chunk.
      hopper::begin_products();
#pragma unroll
      for (int i = 0; i < P / 16; ++i) hopper::multiply<T>(product, x_rows + 2 * i, dy_rows + 2 * i, i > 0);
      hopper::end_products();
      if constexpr (Diagonal) {
        const auto B = hopper::Factor::rows(shared + Memory::B + s_block * Memory::matrix);
        const auto dstate = hopper::Factor::columns(stage + Memory::dstate);
        hopper::begin_products();
#pragma unroll
        for (int i = 0; i < N / 16; ++i)
          hopper::multiply<T, true>(du, B + (i / 4 * 512 + i % 4 * 2), dstate + i * 128, i > 0);
        hopper::end_products();
        hopper::wait_for_products<1>();
      } else {
        hopper::wait_for_products<0>();
      }
      hopper::hold(product);

      unsigned mixing[4][4];
      float over[16];  // sums of E over this thread's rows, by column
      float columns[2] = {}, on_diagonal[2] = {}, dD = 0.0f;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 next_score = scores[::min(j + 1, 7) * 128];  // so that it is there when its turn comes
        const float2 next_pair = c_t[::min(j + 1, 7) * 4];
        float m[4] = {};
        over[2 * j] = over[2 * j + 1] = 0.0f;
        if (!Diagonal || 8 * j >= rows) {  // else t < s for the whole warp
          const float g[4] = {score.x, score.y, score.z, score.w};
          float e[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float kept = mma::power_of_two((i % 2 == 0 ? c_pair.x : c_pair.y) - c[i / 2]);
            if (Diagonal && 8 * j + i % 2 - i / 2 * 8 < row - column) kept = 0.0f;  // t < s
            m[i] = kept * g[i];
            const float dscore = product[4 * j + i] * kept;
            dG[4 * j + i] += dscore * step[i / 2];
            e[i] = dscore * g[i];
          }
          if (Diagonal && 8 * j < rows + 16) {
#pragma unroll
            for (int i = j % 2 * 2; i < j % 2 * 2 + 2; ++i)
              if (8 * j + i % 2 - i / 2 * 8 == row - column) {  // t == s
                on_diagonal[i / 2] += e[i];
                dD += product[4 * j + i];
                e[i] = 0.0f;
              }
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            columns[i / 2] += e[i];
            over[2 * j + i % 2] += e[i] * step[i / 2];
          }
        }
        score = next_score, c_pair = next_pair;
        mixing[j / 2][j % 2 * 2] = mma::pack<T>(m[0], m[1]);
        mixing[j / 2][j % 2 * 2 + 1] = mma::pack<T>(m[2], m[3]);
      }

      float inter[2] = {};
      if constexpr (Diagonal) {
        unsigned x[P / 16][4];
#pragma unroll
        for (int i = 0; i < P / 16; ++i)
          mma::load_matrices(x[i], x_tile + swizzled<64>(rows + lane % 16, 2 * i + lane / 16));
        hopper::wait_for_products<0>();
        hopper::hold(du);
        const float to_end[2] = {mma::power_of_two(end - c[0]), mma::power_of_two(end - c[1])};
#pragma unroll
        for (int i = 0; i < P / 16; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const float2 x_pair = mma::unpack<T>(x[i][r]);
            float &first = du[8 * i + 2 * r], &second = du[8 * i + 2 * r + 1];
            first *= to_end[r % 2];
            second *= to_end[r % 2];
            inter[r % 2] += x_pair.x * first + x_pair.y * second;
          }
      } else {
#pragma unroll
        for (int i = 0; i < 32; ++i) du[i] = 0.0f;
      }
      // du += M^T dy; meanwhile the sums.
      hopper::hold(du);
      hopper::begin_products();
#pragma unroll
      for (int i = 0; i < 4; ++i) hopper::multiply<T>(du, mixing[i], dy_columns + i * 128);
      hopper::end_products();

      if (k > 1) hopper::wait(&sums_empty[turn], static_cast<unsigned>(k / 2 - 1 & 1));
      {
        // Over the 8 lanes of a column: each exchange halves the columns of a lane.
        float eight[8], four[4], two[2];
        const bool b4 = lane & 16, b3 = lane & 8, b2 = lane & 4;
#pragma unroll
        for (int i = 0; i < 8; ++i)
          eight[i] = (b4 ? over[8 + i] : over[i]) + __shfl_xor_sync(0xffffffffu, b4 ? over[i] : over[8 + i], 16);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          four[i] = (b3 ? eight[4 + i] : eight[i]) + __shfl_xor_sync(0xffffffffu, b3 ? eight[i] : eight[4 + i], 8);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          two[i] = (b2 ? four[2 + i] : four[i]) + __shfl_xor_sync(0xffffffffu, b2 ? four[i] : four[2 + i], 4);
        float* const part = floats_at(Memory::row_parts) + ((turn * 3 + warpgroup) * 4 + warp) * 64;
        *reinterpret_cast<float2*>(part + lane / 4 * 8 + column) = make_float2(two[0], two[1]);
      }
      float* const own_sums = floats_at(Memory::token_sums) + (turn * 3 + warpgroup) * 3 * 64 + row;
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        float values[3] = {columns[half_row], columns[half_row] + on_diagonal[half_row] + inter[half_row],
                           inter[half_row]};
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          values[i] += __shfl_xor_sync(0xffffffffu, values[i], 1);
          values[i] += __shfl_xor_sync(0xffffffffu, values[i], 2);
          if (lane % 4 == 0) own_sums[i * 64 + half_row * 8] = values[i];
        }
      }
      if constexpr (Diagonal) {
        for (int distance = 16; distance > 0; distance /= 2) dD += __shfl_xor_sync(0xffffffffu, dD, distance);
        if (lane == 0) floats_at(Memory::dD_parts)[turn * 8 + warpgroup * 4 + warp] = dD;
      }
      __threadfence_block();
      hopper::arrive(&sums_full[turn]);

      unsigned dy[P / 16][4];
      if constexpr (Diagonal)
#pragma unroll
        for (int i = 0; i < P / 16; ++i)
          mma::load_matrices(dy[i], dy_tile + swizzled<64>(rows + lane % 16, 2 * i + lane / 16));
      hopper::wait_for_products<0>();
      hopper::hold(du);
      float4* const exchange = reinterpret_cast<float4*>(shared + Memory::exchange) + thread;
      if constexpr (!Diagonal) {
        hopper::arrive(&empty[turn]);
        if (k > 0) hopper::wait(&exchange_empty, static_cast<unsigned>(k - 1 & 1));
#pragma unroll
        for (int j = 0; j < 8; ++j)
          exchange[j * 128] = make_float4(du[4 * j], du[4 * j + 1], du[4 * j + 2], du[4 * j + 3]);
        __threadfence_block();
        hopper::arrive(&exchange_full);
        continue;
      }
      if (warpgroup == 0) {
        hopper::wait(&exchange_full, static_cast<unsigned>(k & 1));
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float4 other = exchange[j * 128];
          du[4 * j] += other.x, du[4 * j + 1] += other.y, du[4 * j + 2] += other.z, du[4 * j + 3] += other.w;
        }
      }

      // dx = dt du + D dy, in whole rows.
      T* const out_tile = tiles_at(Memory::out + s_block * Memory::tile) + rows * P;  // of this warp
      if (lane == 0) hopper::wait_for_stores_to_read();                               // of the head before
      __syncwarp();
#pragma unroll
      for (int i = 0; i < P / 16; ++i) {
        unsigned dx[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float2 dy_pair = mma::unpack<T>(dy[i][r]);
          dx[r] = mma::pack<T>(step[r % 2] * du[8 * i + 2 * r] + D * dy_pair.x,
                               step[r % 2] * du[8 * i + 2 * r + 1] + D * dy_pair.y);
        }
        hopper::store_matrices(out_tile + swizzled<64>(lane % 16, 2 * i + lane / 16), dx[0], dx[1], dx[2], dx[3]);
      }
      // What was read from shared memory has arrived in registers, since it went into what was stored.
      hopper::arrive(&empty[turn]);
      if (warpgroup == 0) hopper::arrive(&exchange_empty);
      hopper::publish_stores();
      __syncwarp();
      if (lane == 0 && to.dx != nullptr)
        hopper::store_tile(&maps.dx, out_tile, 0, head, static_cast<int>(block.begin) + s_block * 64 + rows,
                           static_cast<int>(block.batch));
    }

    // Through the scores: dB += dG^T C, dC += dG B. dG^T is transposed in the place of the scores.
    unsigned factor[4][4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      factor[j / 2][j % 2 * 2] = mma::pack<T>(dG[4 * j], dG[4 * j + 1]);
      factor[j / 2][j % 2 * 2 + 1] = mma::pack<T>(dG[4 * j + 2], dG[4 * j + 3]);
    }
    T* const dG_tile = tiles_at(Memory::scores + warpgroup * 2 * Memory::tile);
    hopper::synchronize(1 + warpgroup, 128);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      hopper::store_matrices(dG_tile + swizzled<64>(rows + lane % 16, 2 * i + lane / 16), factor[i][0], factor[i][1],
                             factor[i][2], factor[i][3]);
    hopper::synchronize(1 + warpgroup, 128);
    hopper::wait(&whole, 1);
    const auto through_scores = [&](int offset, int place, float* parts, T* target, Index token_stride, bool aligned,
                                    int token_block, bool alone) {
      float part[N / 2];
#pragma unroll
      for (int i = 0; i < N / 2; ++i) part[i] = 0.0f;
      const auto by = hopper::Factor::columns(shared + offset);
      hopper::hold(part);
      hopper::begin_products();
#pragma unroll
      for (int i = 0; i < 4; ++i) hopper::multiply<T>(part, factor[i], by + i * 128);
      hopper::end_products();
      hopper::wait_for_products<0>();
      hopper::hold(part);
      float4* const exchange = reinterpret_cast<float4*>(shared + place) + thread;
      if constexpr (!Diagonal) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
          exchange[j * 128] = make_float4(part[4 * j], part[4 * j + 1], part[4 * j + 2], part[4 * j + 3]);
      }
      hopper::synchronize(4, 384);
      if constexpr (!Diagonal) return;
      if (!alone) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          const float4 other = exchange[j * 128];
          part[4 * j] += other.x, part[4 * j + 1] += other.y, part[4 * j + 2] += other.z, part[4 * j + 3] += other.w;
        }
      }
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        const int t = token_block * 64 + row + half_row * 8;
        if (t >= block.tokens) continue;
        float* const from = parts + block.partial_row(in, batches, t) * N + column;
        float2 sums[N / 8];  // loaded together, before any is stored
#pragma unroll
        for (int j = 0; j < N / 8; ++j) sums[j] = *reinterpret_cast<const float2*>(from + j * 8);
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          sums[j].x += part[4 * j + 2 * half_row];
          sums[j].y += part[4 * j + 2 * half_row + 1];
        }
        T* const to_row = target != nullptr ? target + t * token_stride + column : nullptr;
        const bool join = memory.slices.count > 1;
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
          put_pair(sums[j], from + j * 8, to_row != nullptr ? to_row + j * 8 : nullptr, join, aligned);
      }
    };
    const auto target_of = [&](T* gradient, Index batch_stride, Index token_stride, Index group_stride) {
      return gradient != nullptr
                 ? gradient + block.batch * batch_stride + block.begin * token_stride + block.group * group_stride
                 : nullptr;
    };
    through_scores(Memory::C + t_block * Memory::matrix, Memory::dB, memory.dB,
                   target_of(to.dB, to.dB_batch, to.dB_token, to.dB_group), to.dB_token, memory.aligned.dB, s_block,
                   warpgroup == 1);
    __syncwarp();  // lanes past the sequence's end left the loop over rows early; what follows is of whole warps
#pragma unroll
    for (int i = 0; i < 4; ++i)
      mma::load_matrices_transposed(factor[i],
                                    dG_tile + swizzled<64>(i * 16 + lane % 8 + lane / 16 * 8, rows / 8 + lane / 8 % 2));
    through_scores(Memory::B + s_block * Memory::matrix, Memory::dC, memory.dC,
                   target_of(to.dC, to.dC_batch, to.dC_token, to.dC_group), to.dC_token, memory.aligned.dC, t_block,
                   warpgroup == 0);
    if (lane == 0) hopper::wait_for_stores();
  };
  if (warpgroup < 2)
    work.template operator()<true>();
  else
    work.template operator()<false>();
#endif
}

}  // namespace diffmamba::ssd::detail
