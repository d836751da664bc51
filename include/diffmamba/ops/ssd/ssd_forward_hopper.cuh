// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/hopper.cuh"
#include "diffmamba/device/mma.cuh"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/ssd/ssd_device.cuh"
#include "diffmamba/tensor/tensor_map.cuh"

/// SSD forward on Hopper (16-bit types, headdim 64, d_state 64 or 128).
///
/// A block has two heads of a group, which share the tiles of B and C. It walks over chunks of 64 tokens; x, B, C, dt
/// are read once, out is written once and no intermediate sees global memory. Two warps start the copies of the next
/// chunks and turn dt into decays. Each head has a warpgroup for its state, S (headdim, d_state), in float in
/// registers, and one for its outputs, which gets a 16-bit copy of the state before each chunk through shared memory.
/// With c_i the sum of dt A up to i, in powers of two, and u_j = 2^(c_end - c_j) dt_j x_j, the first computes
///
///   S <- 2^c_end S + U^T B
///
/// and the second
///
///   G = C B^T;  Y = C S^T;  out = 2^c_i Y + D x + (2^(c_i - c_j) dt_j G) X
///
/// The work is cut by chunks, not by sequences: each block gets the same number of consecutive chunks of the sequences
/// (a sequence: two heads of a row of the batch) laid end to end. It begins with its last, unfinished sequence and
/// leaves the state behind; it ends with the rest of the one that the block before it began, whose state has long been
/// there by then. Nothing is computed twice, and since the state is handed over in float the cut changes no bit.
/// Where there are fewer sequences than multiprocessors, they are cut into segments instead: a first launch computes
/// what each segment adds to the state, a second adds up what state each begins with, a third computes the outputs.
namespace diffmamba::ssd::detail {

inline constexpr int hopper_heads = 2;  // of a block
/// Threads of a block: the warpgroups of each head, and copies and decays.
template <bool Output>
inline constexpr int hopper_threads = hopper_heads*(Output ? 256 : 128) + 128;

/// How the work is cut, and the memory in which its pieces meet.
struct Walk {
  int sequences = 0;           // batch times pairs; fewer than 2^31 chunks in all, since kernels divide
  int share = 0;               // chunks of a block
  int chunks = 0;              // of a sequence
  int pairs = 0, group_pairs;  // pairs of heads: all, of a group
  int segments = 1;            // of a sequence; 1: blocks hand over
  int processors = 0;
  float* states = nullptr;  // (slots, 2, 64, d_state): a slot for each block
  float* decays = nullptr;  // (slots, 2), of segments
  int* arrived = nullptr;   // number of blocks so far, then (slots, 2): the state is there

  explicit Walk(const Sizes& s) {
    cuda_runtime::check(
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, cuda_runtime::current_stream().device),
        "cudaDeviceGetAttribute");
    group_pairs = static_cast<int>((s.heads_per_group() + hopper_heads - 1) / hopper_heads);
    pairs = group_pairs * static_cast<int>(s.ngroups);
    chunks = static_cast<int>((s.length + tile_tokens - 1) / tile_tokens);
    const Index all = s.batch * pairs * chunks;
    require(all < (Index{1} << 31), "ssd: a batch of this size does not fit into one launch");
    sequences = static_cast<int>(s.batch * pairs);
    if (sequences >= processors) {
      // Whole sequences where that costs little.
      const Index even = (all + processors - 1) / processors;
      const Index whole = (Index{sequences} + processors - 1) / processors * chunks;
      share = static_cast<int>(whole * 100 <= even * 103 ? whole : even);
      return;
    }
    // Chunks that the busiest multiprocessor sees; a segment's state costs half as much as its output, the further
    // launches and what they read and write as much as some chunks more.
    double least = chunks;
    share = chunks;
    for (int count = 2; count <= 64 && count * 4 <= chunks; ++count) {
      const int of_segment = (chunks + count - 1) / count, waves = (sequences * count + processors - 1) / processors;
      const double cost = waves * (1.5 * of_segment + 3.0) + 3.0;
      if (cost < least) least = cost, segments = count, share = of_segment;
    }
    segments = (chunks + share - 1) / share;
  }
  bool hands_over() const { return segments == 1 && share % chunks != 0; }
  Index blocks() const {
    return segments > 1 ? Index{sequences} * segments : (Index{sequences} * chunks + share - 1) / share;
  }

  Index state_count(Index d_state) const { return blocks() * hopper_heads * 64 * d_state; }
  Index decay_count() const { return blocks() * hopper_heads; }
  Index arrived_count() const { return 1 + blocks() * hopper_heads; }
  std::size_t bytes(Index d_state) const {
    if (segments == 1 && !hands_over()) return 0;
    return Workspace<cuda>::bytes_of<float>(state_count(d_state)) + Workspace<cuda>::bytes_of<float>(decay_count()) +
           Workspace<cuda>::bytes_of<int>(arrived_count());
  }
  void take(Workspace<cuda>& workspace, Index d_state) {
    if (segments == 1 && !hands_over()) return;
    states = workspace.take<float>(state_count(d_state));
    decays = workspace.take<float>(decay_count());
    arrived = workspace.take<int>(arrived_count());
  }
};

/// Consecutive chunks of a sequence. source, target: the slots in which the state before and after lies; -1: none.
struct Piece {
  int sequence;
  int source, target;
  int first, last;
};

/// The k-th piece of a block; false: there is none. Without `output` the states of segments are computed.
__device__ inline bool find_piece(const Walk& walk, int block, int k, bool output, Piece& piece) {
  if (walk.segments > 1) {
    const int segment = block % walk.segments;
    piece = {block / walk.segments, output ? block : -1, output ? -1 : block, segment * walk.share,
             ::min((segment + 1) * walk.share, walk.chunks)};
    return k == 0 && (output || segment + 1 < walk.segments);
  }
  const unsigned all = static_cast<unsigned>(walk.sequences) * walk.chunks, chunks = walk.chunks;
  const unsigned begin = static_cast<unsigned>(block) * walk.share, end = ::min(begin + walk.share, all);
  const int first = static_cast<int>(begin / chunks), last = static_cast<int>(end / chunks);
  const int skipped = static_cast<int>(begin % chunks), unfinished = static_cast<int>(end % chunks);
  if (unfinished > 0) {
    if (k == 0) {
      piece = {last, -1, block, 0, unfinished};
      return true;
    }
    --k;
  }
  const int whole = first + (skipped > 0 ? 1 : 0);
  if (whole + k < last) {
    piece = {whole + k, -1, -1, 0, walk.chunks};
    return true;
  }
  piece = {first, block - 1, -1, skipped, walk.chunks};
  return skipped > 0 && whole + k == last;
}

/// Whose piece it is.
struct Place {
  Index batch;
  int group, head, heads;  // the block's first head, and how many it has
  template <class T>
  __device__ Place(const Walk& walk, const DeviceInputs<T>& in, int sequence) : batch(sequence / walk.pairs) {
    const int pair = sequence % walk.pairs, first = pair % walk.group_pairs * hopper_heads;
    group = pair / walk.group_pairs;
    head = group * in.heads_per_group + first;
    heads = ::min(hopper_heads, in.heads_per_group - first);
  }
};

struct HopperMaps {
  CUtensorMap x, B, C, out;
};

/// Shared memory of a block, in bytes from a multiple of 1024.
template <int N, bool Output>
struct HopperMemory {
  static constexpr int tile = 64 * 64 * 2, matrix = N / 64 * tile;
  static constexpr int stages = N == 128 ? 3 : 4;
  static constexpr int B = 0, x = matrix, C = x + hopper_heads * tile, stage = C + (Output ? matrix : 0);
  static constexpr int state = stages * stage, out = state + (Output ? hopper_heads * matrix : 0);
  static constexpr int decays = out + (Output ? hopper_heads * tile : 0);
  static constexpr int bytes = decays + stages * hopper_heads * 4 * 64 * 4 + 1024;
};

/// Decays of a chunk as the warpgroups use them.
struct ChunkDecays {
  float4 pair[32];    // c_j, dt_j, c_{j+1}, dt_{j+1}
  float2 to_end[32];  // 2^(c_end - c_j) dt_j
  float2 start[32];   // 2^c_j
};
static_assert(sizeof(ChunkDecays) == 4 * 64 * 4);

template <class T, int N, bool Output>
__global__ void __launch_bounds__(hopper_threads<Output>, 1)
    ssd_hopper_kernel(DeviceInputs<T> in, DeviceOutputs<T> to, Walk walk, const __grid_constant__ HopperMaps maps) {
#if defined(DIFFMAMBA_SM90A)
  using Memory = HopperMemory<N, Output>;
  using mma::swizzled;
  constexpr int Q = tile_tokens, P = 64, tile = Q * P;
  extern __shared__ unsigned char hopper_shared[];
  __shared__ std::uint64_t full[Memory::stages], empty[Memory::stages];  // of the stages
  __shared__ std::uint64_t published[hopper_heads], used[hopper_heads];  // of the 16-bit copy of a state
  __shared__ int block_index;
  unsigned char* const memory = hopper_shared + (1024 - hopper::shared_address(hopper_shared) % 1024) % 1024;
  const auto part = [&](int offset) { return reinterpret_cast<T*>(memory + offset); };
  const auto decays = [&](int stage, int head) {
    return reinterpret_cast<ChunkDecays*>(memory + Memory::decays) + stage * hopper_heads + head;
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < Memory::stages; ++i) {
      hopper::initialise(&full[i], hopper_heads * 32 + 1);
      hopper::initialise(&empty[i], hopper_heads * (Output ? 256 : 128));
    }
    for (int i = 0; i < hopper_heads; ++i) {
      hopper::initialise(&published[i], 128);
      hopper::initialise(&used[i], 128);
    }
    hopper::publish_barriers();
    // Blocks are numbered as they begin, so that the one whose state a block waits for has begun before it.
    block_index = walk.segments == 1 && walk.arrived != nullptr ? atomicAdd(walk.arrived, 1) : int(blockIdx.x);
  }
  __syncthreads();
  const int block = block_index;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128, warp = static_cast<int>(threadIdx.x) % 128 / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Piece piece;
  int stage = 0;
  unsigned parity = 0;
  const auto next_stage = [&] {
    if (++stage == Memory::stages) stage = 0, parity ^= 1;
  };
  // Fragments of a warpgroup's products: rows `row` and that + 8, columns `column` + 8 j and the next.
  const int rows = warp * 16, row = rows + lane / 4, column = 2 * (lane % 4);
  const int matrix_row = lane % 16, matrix_unit = lane / 16;  // for load_matrices and store_matrices of 16 x 16 numbers

  if (warpgroup == hopper_heads * (Output ? 2 : 1)) {
    // Copies and decays: a warp for each head, the first one starts the copies.
    if constexpr (Output) hopper::set_registers<32, false>();
    const int own = warp;
    if (own >= hopper_heads) return;
    for (int k = 0; find_piece(walk, block, k, Output, piece); ++k) {
      const Place place(walk, in, piece.sequence);
      const int head = place.head + own;
      const bool valid = own < place.heads;
      const float A = valid ? in.A[head] * 1.44269504089f : 0.0f;  // log2(e): exponentials are powers of two
      const float bias = valid && in.dt_bias != nullptr ? in.dt_bias[head] : 0.0f;
      const T* const dt = in.dt + place.batch * in.dt_batch + (valid ? head * in.dt_head : 0);
      T raw[2];
      const auto load_dt = [&](int chunk) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Index token = Index{chunk} * Q + 2 * lane + i;
          raw[i] = dt[(token < in.length ? token : 0) * in.dt_token];
        }
      };
      load_dt(piece.first);
      for (int chunk = piece.first; chunk < piece.last; ++chunk) {
        float step[2], sum[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool inside = valid && Index{chunk} * Q + 2 * lane + i < in.length;
          step[i] = inside ? discretize(static_cast<float>(raw[i]), bias, in.options) : 0.0f;
        }
        if (chunk + 1 < piece.last) load_dt(chunk + 1);
        hopper::wait(&empty[stage], parity ^ 1);
        if (own == 0 && lane == 0) {
          hopper::arrive_expecting(&full[stage], (Output ? 2 : 1) * Memory::matrix + hopper_heads * Memory::tile);
          T* const tiles = part(stage * Memory::stage);
#pragma unroll
          for (int i = 0; i < N / 64; ++i) {
            hopper::load_tile(tiles + Memory::B / 2 + i * tile, &maps.B, &full[stage], i * 64, place.group, chunk * Q,
                              static_cast<int>(place.batch));
            if (Output)
              hopper::load_tile(tiles + Memory::C / 2 + i * tile, &maps.C, &full[stage], i * 64, place.group, chunk * Q,
                                static_cast<int>(place.batch));
          }
#pragma unroll
          for (int i = 0; i < hopper_heads; ++i)
            hopper::load_tile(tiles + Memory::x / 2 + i * tile, &maps.x, &full[stage], 0, place.head + i, chunk * Q,
                              static_cast<int>(place.batch));
        }
        sum[0] = step[0] * A;
        sum[1] = sum[0] + step[1] * A;
        float before = sum[1];
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const float other = __shfl_up_sync(0xffffffffu, before, distance);
          if (lane >= distance) before += other;
        }
        const float end = __shfl_sync(0xffffffffu, before, 31);
        before -= sum[1];
        sum[0] += before;
        sum[1] += before;
        ChunkDecays* const target = decays(stage, own);
        target->pair[lane] = make_float4(sum[0], step[0], sum[1], step[1]);
        target->to_end[lane] =
            make_float2(mma::power_of_two(end - sum[0]) * step[0], mma::power_of_two(end - sum[1]) * step[1]);
        target->start[lane] = make_float2(mma::power_of_two(sum[0]), mma::power_of_two(sum[1]));
        hopper::arrive(&full[stage]);
        next_stage();
      }
    }
  } else if (warpgroup < hopper_heads) {
    // The state of a head.
    if constexpr (Output) hopper::set_registers<112, true>();
    const int own = warpgroup;
    T* const state_tile = part(Memory::state + own * Memory::matrix);
    float state[N / 2];
    unsigned turn = 1;  // the parity of the use before, of which at first there is none
    const auto publish_state = [&] {
      hopper::wait(&used[own], turn);
      turn ^= 1;
#pragma unroll
      for (int j = 0; j < N / 8; j += 2)
        hopper::store_matrices(
            state_tile + j / 8 * tile + swizzled<64>(rows + matrix_row, j % 8 + matrix_unit),
            mma::pack<T>(state[4 * j], state[4 * j + 1]), mma::pack<T>(state[4 * j + 2], state[4 * j + 3]),
            mma::pack<T>(state[4 * j + 4], state[4 * j + 5]), mma::pack<T>(state[4 * j + 6], state[4 * j + 7]));
      hopper::publish_stores();
      hopper::arrive(&published[own]);
    };
    for (int k = 0; find_piece(walk, block, k, Output, piece); ++k) {
      const Place place(walk, in, piece.sequence);
      const int head = place.head + own;
      const bool valid = own < place.heads;
      float total = 0.0f;  // of a segment, in powers of two
      {
        const float* source = nullptr;  // this lane's first element
        Index channel = N;
        if (piece.source >= 0) {
          if (walk.segments == 1) {
            if (threadIdx.x % 128 == 0) {
              const volatile int* const there = walk.arrived + 1 + Index{piece.source} * hopper_heads + own;
              while (*there == 0) __nanosleep(100);
              __threadfence();
            }
            hopper::synchronize(1 + own, 128);
          }
          source = walk.states + (Index{piece.source} * hopper_heads + own) * P * N;
        } else if (Output && in.initial_state != nullptr && valid) {
          source = in.initial_state + place.batch * in.state_batch + head * in.state_head;
          channel = in.state_channel;
        }
        if (source == nullptr) {
#pragma unroll
          for (int i = 0; i < N / 2; ++i) state[i] = 0.0f;
        } else {
          source += row * channel + column;
          const float* const below = source + 8 * channel;
#pragma unroll
          for (int i = 0; i < N / 2; ++i) state[i] = __ldcg((i % 4 < 2 ? source : below) + i / 4 * 8 + i % 2);
        }
        if constexpr (Output) publish_state();
      }
      for (int chunk = piece.first; chunk < piece.last; ++chunk) {
        const T* const tiles = part(stage * Memory::stage);
        const T *const B_tile = tiles + Memory::B / 2, *const x_tile = tiles + Memory::x / 2 + own * tile;
        const ChunkDecays& decay = *decays(stage, own);
        hopper::wait(&full[stage], parity);
        // u^T, 16 channels of each warp.
        unsigned u[Q / 16][4];
#pragma unroll
        for (int i = 0; i < Q / 16; ++i) {
          mma::load_matrices_transposed(
              u[i], x_tile + swizzled<64>(i * 16 + lane % 8 + lane / 16 * 8, rows / 8 + lane / 8 % 2));
          const float2 weights[2] = {decay.to_end[i * 8 + lane % 4], decay.to_end[i * 8 + 4 + lane % 4]};
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const float2 value = mma::unpack<T>(u[i][r]);
            u[i][r] = mma::pack<T>(value.x * weights[r / 2].x, value.y * weights[r / 2].y);
          }
        }
        const float kept = decay.start[31].y;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) state[i] *= kept;
        if (!Output) total += decay.pair[31].z;
        const auto B = hopper::Factor::columns(B_tile);
        hopper::hold(state);
        hopper::begin_products();
#pragma unroll
        for (int i = 0; i < Q / 16; ++i) hopper::multiply<T>(state, u[i], B + i * 128);
        hopper::end_products();
        hopper::wait_for_products<0>();
        hopper::hold(state);
        hopper::arrive(&empty[stage]);
        if (Output && chunk + 1 < piece.last) publish_state();
        next_stage();
      }

      // What the piece leaves behind.
      float* target = nullptr;
      Index channel = N;
      if (piece.target >= 0) {
        target = walk.states + (Index{piece.target} * hopper_heads + own) * P * N;
      } else if (Output && to.final_state != nullptr && valid && piece.last == walk.chunks) {
        target = to.final_state + place.batch * to.state_batch + head * to.state_head;
        channel = to.state_channel;
      }
      if (target != nullptr) {
        target += row * channel + column;
        float* const below = target + 8 * channel;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) (i % 4 < 2 ? target : below)[i / 4 * 8 + i % 2] = state[i];
      }
      if (piece.target >= 0) {
        if (walk.segments == 1) {
          __threadfence();
          hopper::synchronize(1 + own, 128);
          if (threadIdx.x % 128 == 0)
            *reinterpret_cast<volatile int*>(walk.arrived + 1 + Index{piece.target} * hopper_heads + own) = 1;
        } else if (threadIdx.x % 128 == 0) {
          walk.decays[Index{piece.target} * hopper_heads + own] = exp2f(total);
        }
      }
    }
  } else if constexpr (Output) {
    // The outputs of a head.
    hopper::set_registers<112, true>();
    const int own = warpgroup - hopper_heads;
    T* const state_tile = part(Memory::state + own * Memory::matrix);
    T* const out_tile = part(Memory::out + own * Memory::tile) + rows * P;  // of this warp
    float y[32] = {}, scores[32] = {};
    unsigned turn = 0;
    for (int k = 0; find_piece(walk, block, k, Output, piece); ++k) {
      const Place place(walk, in, piece.sequence);
      const int head = place.head + own;
      const bool valid = own < place.heads;
      const float D = valid && in.D != nullptr && in.D_channel == 0 ? in.D[head * in.D_head] : 0.0f;
      for (int chunk = piece.first; chunk < piece.last; ++chunk) {
        const T* const tiles = part(stage * Memory::stage);
        const T* const x_tile = tiles + Memory::x / 2 + own * tile;
        const ChunkDecays& decay = *decays(stage, own);
        const auto B = hopper::Factor::rows(tiles + Memory::B / 2), C = hopper::Factor::rows(tiles + Memory::C / 2);
        hopper::wait(&full[stage], parity);
        const float c_row[2] = {reinterpret_cast<const float2*>(decay.pair)[row].x,
                                reinterpret_cast<const float2*>(decay.pair)[row + 8].x};
        float4 c = decay.pair[lane % 4];
        hopper::begin_products();
#pragma unroll
        for (int i = 0; i < N / 16; ++i)
          hopper::multiply<T>(scores, C + (i / 4 * 512 + i % 4 * 2), B + (i / 4 * 512 + i % 4 * 2), i > 0);
        hopper::end_products();
        const auto S = hopper::Factor::rows(state_tile);
        hopper::wait(&published[own], turn);
        turn ^= 1;
        hopper::begin_products();
#pragma unroll
        for (int i = 0; i < N / 16; ++i)
          hopper::multiply<T>(y, C + (i / 4 * 512 + i % 4 * 2), S + (i / 4 * 512 + i % 4 * 2), i > 0);
        hopper::end_products();
        hopper::wait_for_products<1>();
        hopper::hold(scores);
        unsigned weighted[Q / 16][4];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float4 next = decay.pair[::min(j + 1, 7) * 4 + lane % 4];  // so that it is there when its turn comes
          float value[4] = {};
          const auto weigh = [&]<bool Masked>() {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float exponent = c_row[i / 2] - (i % 2 == 0 ? c.x : c.z);
              const float factor = mma::power_of_two(exponent) * (i % 2 == 0 ? c.y : c.w);
              value[i] = scores[4 * j + i] * factor;
              if (Masked && j * 8 + column + i % 2 > row + i / 2 * 8) value[i] = 0.0f;
            }
          };
          if (j * 8 < rows)
            weigh.template operator()<false>();
          else if (j * 8 < rows + 16)  // else above the diagonal, for the whole warp
            weigh.template operator()<true>();
          c = next;
          weighted[j / 2][j % 2 * 2] = mma::pack<T>(value[0], value[1]);
          weighted[j / 2][j % 2 * 2 + 1] = mma::pack<T>(value[2], value[3]);
        }
        const float start[2] = {reinterpret_cast<const float*>(decay.start)[row],
                                reinterpret_cast<const float*>(decay.start)[row + 8]};
        hopper::wait_for_products<0>();
        hopper::hold(y);
        hopper::arrive(&used[own]);
        // D x goes in with the first part, while the second is still to come.
        const auto add_skip = [&](auto&& weight) {
#pragma unroll
          for (int j = 0; j < 8; j += 2) {
            unsigned x[4];
            mma::load_matrices(x, x_tile + swizzled<64>(rows + matrix_row, j + matrix_unit));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float2 value = mma::unpack<T>(x[i]);
              const int at = 4 * j + 2 * i, channel = (j + i / 2) * 8 + column;
              y[at] = y[at] * start[i % 2] + weight(channel) * value.x;
              y[at + 1] = y[at + 1] * start[i % 2] + weight(channel + 1) * value.y;
            }
          }
        };
        if (in.D_channel == 0)
          add_skip([&](int) { return D; });
        else
          add_skip([&](int channel) { return valid ? in.D[head * in.D_head + channel * in.D_channel] : 0.0f; });
        const auto x_columns = hopper::Factor::columns(x_tile);
        hopper::hold(y);
        hopper::begin_products();
#pragma unroll
        for (int i = 0; i < Q / 16; ++i) hopper::multiply<T>(y, weighted[i], x_columns + i * 128);
        hopper::end_products();
        if (lane == 0) hopper::wait_for_stores_to_read();  // of the chunk before, below
        __syncwarp();
        hopper::wait_for_products<0>();
        hopper::hold(y);
        hopper::arrive(&empty[stage]);

        // The gate; then out in whole rows.
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
          if (in.z != nullptr && valid) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const Index token = Index{chunk} * Q + row + i % 2 * 8;
              if (token >= in.length) continue;
              const T* const z =
                  in.z + place.batch * in.z_batch + token * in.z_token + head * in.z_head + (j + i / 2) * 8 + column;
              const float2 gate = mma::unpack<T>(*reinterpret_cast<const unsigned*>(z));
              y[4 * j + 2 * i] *= silu(gate.x);
              y[4 * j + 2 * i + 1] *= silu(gate.y);
            }
          }
          hopper::store_matrices(out_tile + swizzled<64>(matrix_row, j + matrix_unit),
                                 mma::pack<T>(y[4 * j], y[4 * j + 1]), mma::pack<T>(y[4 * j + 2], y[4 * j + 3]),
                                 mma::pack<T>(y[4 * j + 4], y[4 * j + 5]), mma::pack<T>(y[4 * j + 6], y[4 * j + 7]));
        }
        hopper::publish_stores();
        __syncwarp();
        if (lane == 0 && valid)
          hopper::store_tile(&maps.out, out_tile, 0, head, chunk * Q + rows, static_cast<int>(place.batch));
        next_stage();
      }
    }
    if (lane == 0) hopper::wait_for_stores_to_read();
  }
#endif
}

/// Turns what each segment adds into what each begins with, in order: begin_0 = initial state, begin_{k+1} = decay_k
/// begin_k + added_k. A thread for every element of the states, grid (pieces of a state, heads of sequences).
template <class T, int N>
__global__ void ssd_hopper_states_kernel(DeviceInputs<T> in, Walk walk) {
  constexpr int size = 64 * N;
  const int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const int sequence = static_cast<int>(blockIdx.x) / hopper_heads;
  const int own = static_cast<int>(blockIdx.x % hopper_heads);
  const Place place(walk, in, sequence);
  if (own >= place.heads) return;
  float state = 0.0f;
  if (in.initial_state != nullptr)
    state = in.initial_state[place.batch * in.state_batch + (place.head + own) * in.state_head +
                             i / N * in.state_channel + i % N];
  constexpr int batch = 8;  // loads under way together
  const Index first = Index{sequence} * walk.segments;
  for (int segment = 0; segment < walk.segments; segment += batch) {
    float added[batch], decay[batch];
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      const Index slot = (first + segment + k) * hopper_heads + own;
      const bool there = segment + k + 1 < walk.segments;
      added[k] = there ? walk.states[slot * size + i] : 0.0f;
      decay[k] = there ? walk.decays[slot] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      if (segment + k < walk.segments) walk.states[((first + segment + k) * hopper_heads + own) * size + i] = state;
      state = decay[k] * state + added[k];
    }
  }
}

/// Whether the kernels have a body for the current stream's GPU and the copy engine can walk over the operands.
template <class T, int N>
bool hopper_takes(const Inputs<T, cuda>& in, const OutputViews<T, cuda>& to) {
  if (!hopper::can_map(View<const T, 4, cuda>(in.x)) || !hopper::can_map(View<const T, 4, cuda>(in.B)) ||
      !hopper::can_map(View<const T, 4, cuda>(in.C)) || !hopper::can_map(View<T, 4, cuda>(to.out)))
    return false;
  return hopper::has_body(ssd_hopper_kernel<T, N, true>);
}

template <class T, int N>
void launch_hopper(const Inputs<T, cuda>& in, const OutputViews<T, cuda>& to, const DeviceInputs<T>& inputs,
                   const DeviceOutputs<T>& outputs, Workspace<cuda>& workspace) {
  const auto stream = cuda_runtime::current_stream();
  const Sizes s = sizes(in);
  Walk walk(s);
  walk.take(workspace, N);
  require(walk.blocks() < (Index{1} << 31) / hopper_heads, "ssd: a batch of this size does not fit into one launch");
  const HopperMaps maps{hopper::tensor_map(View<const T, 4, cuda>(in.x), tile_tokens),
                        hopper::tensor_map(View<const T, 4, cuda>(in.B), tile_tokens),
                        hopper::tensor_map(View<const T, 4, cuda>(in.C), tile_tokens),
                        hopper::tensor_map(View<T, 4, cuda>(to.out), 16)};
  const unsigned blocks = static_cast<unsigned>(walk.blocks());
  const auto launch = [&](auto kernel, int threads, int bytes, const char* name) {
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute");
    kernel<<<blocks, threads, static_cast<std::size_t>(bytes), stream.handle>>>(inputs, outputs, walk, maps);
    cuda_runtime::check_launch(name);
  };
  if (walk.segments > 1) {
    launch(ssd_hopper_kernel<T, N, false>, hopper_threads<false>, HopperMemory<N, false>::bytes,
           "ssd_hopper_kernel (states)");
    const dim3 grid(static_cast<unsigned>(walk.sequences * hopper_heads), 64 * N / 256);
    ssd_hopper_states_kernel<T, N><<<grid, 256, 0, stream.handle>>>(inputs, walk);
    cuda_runtime::check_launch("ssd_hopper_states_kernel");
  } else if (walk.hands_over()) {
    cuda_runtime::check(
        cudaMemsetAsync(walk.arrived, 0, static_cast<std::size_t>(walk.arrived_count()) * sizeof(int), stream.handle),
        "cudaMemsetAsync");
  }
  launch(ssd_hopper_kernel<T, N, true>, hopper_threads<true>, HopperMemory<N, true>::bytes, "ssd_hopper_kernel");
}

}  // namespace diffmamba::ssd::detail
