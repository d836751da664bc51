// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/mma.cuh"
#include "diffmamba/ops/ssd/ssd_device.cuh"
#include "diffmamba/ops/ssd/ssd_forward_hopper.cuh"
#include "diffmamba/ops/ssd/ssd_state_tile.cuh"

/// SSD forward on an NVIDIA GPU.
///
/// The tensor-core path (16-bit types and float, headdim 64, d_state 64 or 128, rows aligned to 16 bytes): a block of
/// four warps owns a head of a sequence, or a segment of it, and walks over its chunks of 64 tokens with the state in
/// registers (in float) and a copy of it in the inputs' type in shared memory, so that x, B, C, dt are read once, out
/// is written once and no intermediate ever sees global memory. Per chunk, with c_i = sum of dt A up to i (in powers of
/// two) and s = S^T:
///
///   y_i = 2^c_i C_i s  +  sum_{j <= i} 2^(c_i - c_j) dt_j (C_i . B_j) x_j  +  D x_i
///   s  <- 2^c_end s    +  sum_j 2^(c_end - c_j) dt_j B_j x_j^T
///
/// Where batch x heads alone cannot fill the GPU the length is cut into segments: a first launch computes what each
/// segment adds to the state, a second adds up, in order, what state each begins with, a third computes the outputs.
///
/// Floats are multiplied on tensor cores as three products of tf32 (device/mma.cuh), and exponents are differences of
/// sums in double: out errs by 1e-7 to 2e-7 of its norm, as with multiply-adds in float.
///
/// The general path (any type, any size) is the recurrence itself, channels side by side, with the state in registers.
namespace diffmamba::ssd {
namespace detail {

/// How the length is cut, and the memory in which segments meet: (batch, nheads, segments, d_state, 64) states and
/// (batch, nheads, segments) decays.
struct Segments {
  int count = 1, chunks = 1;  // segments of a sequence; chunks of a segment
  float* states = nullptr;
  float* decays = nullptr;
};

// CUDA kernels
// ---------------------------------------------------------------------------------------------------------

/// A running sum whose differences are exponents, in two floats: as exact as the exponents are, however long it is.
struct TwoFloats {
  float high, low;
};
template <class Real>
__device__ inline void assign(Real& to, Real value) {
  to = value;
}
__device__ inline void assign(TwoFloats& to, double value) {
  to.high = static_cast<float>(value);
  to.low = static_cast<float>(value - static_cast<double>(to.high));
}
__device__ inline float difference(float a, float b) {
  return a - b;
}
__device__ inline float difference(TwoFloats a, TwoFloats b) {
  return (a.high - b.high) + (a.low - b.low);
}
__device__ inline float rounded(float a) {
  return a;
}
__device__ inline float rounded(TwoFloats a) {
  return a.high;
}
/// What the tensor-core paths keep of such a sum: beside the rounding of 16-bit types, that of a float is nothing.
template <class T>
using decay_sum_t = std::conditional_t<sizeof(T) == 2, float, TwoFloats>;

/// One thread has the sum of 2 tokens of dt A log2(e) up to its own: the chunk's c_i and dt_i, by one warp.
template <class T>
__device__ inline void chunk_decays(const DeviceInputs<T>& in, const T* dt, Index first, int lane, float A, float bias,
                                    decay_sum_t<T>* c, float* steps) {
  using Sum = std::conditional_t<sizeof(T) == 2, float, double>;
  float step[2];
  Sum sum[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const Index token = first + 2 * lane + k;
    step[k] = token < in.length ? discretize(static_cast<float>(dt[token * in.dt_token]), bias, in.options) : 0.0f;
  }
  const Sum rate = A * static_cast<Sum>(1.4426950408889634);  // log2(e): exponentials are powers of two
  sum[0] = step[0] * rate;
  sum[1] = sum[0] + step[1] * rate;
  Sum before = sum[1];
  for (int distance = 1; distance < 32; distance *= 2) {
    const Sum other = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane >= distance) before += other;
  }
  before -= sum[1];
  __syncwarp();  // the chunk before has been read
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    assign(c[2 * lane + k], before + sum[k]);
    steps[2 * lane + k] = step[k];
  }
  __syncwarp();
}

/// How the tensor-core path uses shared memory. Floats leave room for one buffer, and for a second block beside this
/// one.
template <class T, int N>
struct SegmentMemory {
  static constexpr int Q = tile_tokens, P = 64;
  static constexpr int stages = sizeof(T) == 2 ? 2 : 1;  // buffers for a chunk's tiles
  static constexpr int copies = stages == 1 ? 1 : 4;     // of decays: where no barrier ends a chunk, one for each warp
  static constexpr int stage = 2 * Q * N + Q * P;        // C, B, x
  static constexpr int bytes = (stages * stage + N * P) * static_cast<int>(sizeof(T)) +
                               copies * Q * static_cast<int>(sizeof(decay_sum_t<T>) + sizeof(float));
};

/// The tensor-core path: four warps for each segment of each head of the batch. Without `Output` only the state is
/// carried, from zero, and left in segments.states together with the segment's decay.
template <class T, int N, bool Output>
__global__ void __launch_bounds__(128) ssd_segment_kernel(DeviceInputs<T> in, DeviceOutputs<T> to, Segments segments) {
  using mma::pair_at, mma::pair_t, mma::unit_at;
  constexpr int Q = tile_tokens, P = 64, per_unit = 16 / static_cast<int>(sizeof(T));
  using Memory = SegmentMemory<T, N>;
  constexpr int stages = Memory::stages, stage = Memory::stage;
  constexpr int unrolled = sizeof(T) == 2 ? N / 16 : 2;  // steps of products: those in float take more registers
  const int segment = static_cast<int>(blockIdx.x % segments.count);
  const Index slot = blockIdx.x, batch = slot / segments.count / in.nheads;
  const int head = static_cast<int>(slot / segments.count % in.nheads);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = head / in.heads_per_group;

  extern __shared__ __align__(128) unsigned char shared[];
  T* const tiles = reinterpret_cast<T*>(shared);
  T* const state_tile = tiles + stages * stage;  // (N, P)
  using Sum = decay_sum_t<T>;
  Sum* const all_sums = reinterpret_cast<Sum*>(state_tile + N * P);
  Sum* const c = all_sums + warp % Memory::copies * Q;
  float* const steps = reinterpret_cast<float*>(all_sums + Memory::copies * Q) + warp % Memory::copies * Q;

  const T* const x = in.x + batch * in.x_batch + head * in.x_head;
  const T* const B = in.B + batch * in.B_batch + group * in.B_group;
  const T* const C = in.C + batch * in.C_batch + group * in.C_group;
  const T* const dt = in.dt + batch * in.dt_batch + head * in.dt_head;
  const float A = in.A[head], bias = in.dt_bias != nullptr ? in.dt_bias[head] : 0.0f;

  const int all_chunks = static_cast<int>((in.length + Q - 1) / Q);
  const int first_chunk = segment * segments.chunks;
  const int last_chunk = ::min(first_chunk + segments.chunks, all_chunks);

  const auto start_loading = [&](int chunk) {
    T* const target = tiles + (chunk % stages) * stage;
    const Index first = Index{chunk} * Q;
    for (int i = static_cast<int>(threadIdx.x); i < Q * N / per_unit; i += 128) {
      const int row = i / (N / per_unit), unit = i % (N / per_unit);
      const bool valid = first + row < in.length;
      const Index token = valid ? first + row : 0;
      T* const place = target + unit_at<T, N>(row, unit);
      if (Output) mma::copy_async(place, C + token * in.C_token + unit * per_unit, valid);
      mma::copy_async(place + Q * N, B + token * in.B_token + unit * per_unit, valid);
    }
    for (int i = static_cast<int>(threadIdx.x); i < Q * P / per_unit; i += 128) {
      const int row = i / (P / per_unit), unit = i % (P / per_unit);
      const bool valid = first + row < in.length;
      const Index token = valid ? first + row : 0;
      mma::copy_async(target + 2 * Q * N + unit_at<T, P>(row, unit), x + token * in.x_token + unit * per_unit, valid);
    }
    mma::commit_copies();
  };

  // The state this segment begins with: what the second launch left, or the initial one, or zero. The products read a
  // copy of it in T.
  StateTile<T, N> state(warp, lane);
  state.for_each([&](int row, int column, float& value) {
    value = 0.0f;
    if constexpr (Output) {
      if (segments.states != nullptr)
        value = segments.states[(slot * N + row) * P + column];
      else if (in.initial_state != nullptr)
        value = in.initial_state[batch * in.state_batch + head * in.state_head + column * in.state_channel + row];
    }
  });
  float total = 0.0f;  // of the segment, in powers of two

  const auto compute_decays = [&](int chunk) {
    if (warp < Memory::copies) chunk_decays(in, dt, Index{chunk} * Q, lane, A, bias, c, steps);
  };

  if (first_chunk < last_chunk) {
    start_loading(first_chunk);
    compute_decays(first_chunk);
  }
  if constexpr (Output) state.store(state_tile);
  for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
    mma::wait_for_copies<0>();
    __syncthreads();  // this chunk's tiles and state are there; the other buffer is free
    if (stages > 1 && chunk + 1 < last_chunk) start_loading(chunk + 1);
    T* const C_tile = tiles + (chunk % stages) * stage;
    const T* const B_tile = C_tile + Q * N;
    const T* const x_tile = B_tile + Q * N;
    const Sum c_end = c[Q - 1];

    if constexpr (Output) {
      const int row = warp * 16 + lane / 4;  // and row + 8
      const Sum c_row[2] = {c[row], c[row + 8]};
      float y[8][4] = {};
      // y = C s: the state before this chunk.
#pragma unroll unrolled
      for (int k = 0; k < N / 16; ++k) {
        const auto a = mma::load_left<T, N>(C_tile, warp * 16, k * 16, lane);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          mma::Right<T> b[2];
          mma::load_right_rows<T, P>(b, state_tile, k * 16, n * 8, lane);
          mma::multiply_add(y + n, a, b);
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) y[n][k] *= exp2f(rounded(c_row[k / 2]));
      // Tokens of this chunk, 16 at a time up to the diagonal: scores, decays, and the product with x.
      for (int block = 0; block <= warp; ++block) {
        float scores[2][4] = {};
#pragma unroll unrolled
        for (int k = 0; k < N / 16; ++k) {
          mma::Right<T> b[2];
          mma::load_right<T, N>(b, B_tile, block * 16, k * 16, lane);
          mma::multiply_add(scores, mma::load_left<T, N>(C_tile, warp * 16, k * 16, lane), b);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int j = block * 16 + n * 8 + 2 * (lane % 4) + k % 2, i = row + (k / 2) * 8;
            scores[n][k] = j <= i ? scores[n][k] * exp2f(difference(c_row[k / 2], c[j])) * steps[j] : 0.0f;
          }
        const auto a = mma::left_of<T>(scores);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          mma::Right<T> b[2];
          mma::load_right_rows<T, P>(b, x_tile, block * 16, n * 8, lane);
          mma::multiply_add(y + n, a, b);
        }
      }
      // D x and the gate; then out in whole rows, through the warp's own rows of C, which have served.
      __syncwarp();
      T* const rows = C_tile + warp * 16 * N;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int half_row = 0; half_row < 2; ++half_row) {
          const int i = row + half_row * 8, column = n * 8 + 2 * (lane % 4);
          float first = y[n][2 * half_row], second = y[n][2 * half_row + 1];
          if (in.D != nullptr) {
            const float2 value =
                mma::unpack<T>(*reinterpret_cast<const pair_t<T>*>(x_tile + pair_at<T, P>(i, n, lane % 4)));
            const accumulate_t<T>* D = in.D + head * in.D_head + column * in.D_channel;
            first += D[0] * value.x;
            second += D[in.D_channel] * value.y;
          }
          const Index token = Index{chunk} * Q + i;
          if (in.z != nullptr && token < in.length) {
            const T* z = in.z + batch * in.z_batch + token * in.z_token + head * in.z_head + column;
            const float2 gate = mma::unpack<T>(*reinterpret_cast<const pair_t<T>*>(z));
            first *= silu(gate.x);
            second *= silu(gate.y);
          }
          *reinterpret_cast<pair_t<T>*>(rows + pair_at<T, P>(lane / 4 + half_row * 8, n, lane % 4)) =
              mma::pack<T>(first, second);
        }
      __syncwarp();
      for (int i = lane; i < 16 * P / per_unit; i += 32) {
        const int r = i / (P / per_unit), unit = i % (P / per_unit);
        const Index token = Index{chunk} * Q + warp * 16 + r;
        if (token < in.length)
          *reinterpret_cast<uint4*>(to.out + batch * to.out_batch + token * to.out_token + head * to.out_head +
                                    unit * per_unit) = *reinterpret_cast<const uint4*>(rows + unit_at<T, P>(r, unit));
      }
    }

    // The state after this chunk.
    state.scale(exp2f(rounded(c_end)));
    state.template add_products<Q>(B_tile, x_tile, [&](int j) { return exp2f(difference(c_end, c[j])) * steps[j]; });
    total += rounded(c_end);
    if (Output || stages == 1) __syncthreads();  // nobody reads the old state, or the only buffer, any more
    if (stages == 1 && chunk + 1 < last_chunk) start_loading(chunk + 1);
    if (chunk + 1 < last_chunk) compute_decays(chunk + 1);
    if constexpr (Output) state.store(state_tile);
  }

  // What the segment leaves behind.
  const bool to_final = Output && to.final_state != nullptr && segment + 1 == segments.count;
  if (!Output || to_final)
    state.for_each([&](int row, int column, float& value) {
      if (to_final)
        to.final_state[batch * to.state_batch + head * to.state_head + column * to.state_channel + row] = value;
      else
        segments.states[(slot * N + row) * P + column] = value;
    });
  if (!Output && threadIdx.x == 0) segments.decays[slot] = exp2f(total);
}

/// Turns what each segment adds into what each begins with, in order: begin_0 = initial state, begin_{k+1} = decay_k
/// begin_k + added_k. A block for each head of the batch.
template <class T, int N>
__global__ void ssd_segment_states_kernel(DeviceInputs<T> in, Segments segments) {
  constexpr int P = 64;
  const Index batch = blockIdx.x / in.nheads, first = Index{blockIdx.x} * segments.count;
  const int head = static_cast<int>(blockIdx.x % in.nheads);
  for (int i = static_cast<int>(threadIdx.x); i < N * P; i += static_cast<int>(blockDim.x)) {
    float state = 0.0f;
    if (in.initial_state != nullptr)
      state = in.initial_state[batch * in.state_batch + head * in.state_head + i % P * in.state_channel + i / P];
    for (int segment = 0; segment < segments.count; ++segment) {
      float& place = segments.states[(first + segment) * N * P + i];
      const float added = place;
      place = state;
      state = segments.decays[first + segment] * state + added;
    }
  }
}

/// dt of a token as the recurrence uses it and what the state keeps.
template <class T>
__device__ inline void time_step(const DeviceInputs<T>& in, Index batch, Index token, int head, accumulate_t<T>& step,
                                 accumulate_t<T>& kept) {
  using A = accumulate_t<T>;
  if (in.log_decay != nullptr) {
    step = A(1);
    kept = std::exp(in.log_decay[batch * in.log_batch + token * in.log_token + head * in.log_head]);
    return;
  }
  step = discretize(static_cast<A>(in.dt[batch * in.dt_batch + token * in.dt_token + head * in.dt_head]),
                    in.dt_bias != nullptr ? in.dt_bias[head] : A(0), in.options);
  kept = decay(step, in.A[head]);
}

/// The general path, sequential in time: 16 lanes for four channels of a head, each with `States` elements of their
/// states in registers (d_state <= 16 States); a block has 32 channels and brings tiles of 16 tokens into shared
/// memory. Grid: pieces of 32 channels of every head of the batch.
template <class T, int States>
__global__ void __launch_bounds__(128) ssd_recurrence_kernel(DeviceInputs<T> in, DeviceOutputs<T> to) {
  using A = accumulate_t<T>;
  constexpr int tokens = 16, channels = 32, padded_state = 16 * States;
  extern __shared__ __align__(128) unsigned char shared[];
  A* const x_tile = reinterpret_cast<A*>(shared);  // (tokens, channels)
  A* const y_tile = x_tile + tokens * channels;
  A* const B_tile = y_tile + tokens * channels;  // (tokens, padded_state), zeros at the end of a row
  A* const C_tile = B_tile + tokens * padded_state;
  A* const steps = C_tile + tokens * padded_state;
  A* const kept = steps + tokens;

  const int pieces = (in.headdim + channels - 1) / channels;
  const Index sequence = blockIdx.x / pieces, batch = sequence / in.nheads;
  const int head = static_cast<int>(sequence % in.nheads), group = head / in.heads_per_group;
  const int first = static_cast<int>(blockIdx.x % pieces) * channels;
  const int thread = static_cast<int>(threadIdx.x), part = thread % 16, own = thread / 16 * 4;  // of the channels
  const T* const x = in.x + batch * in.x_batch + head * in.x_head + first;
  const T* const B = in.B + batch * in.B_batch + group * in.B_group;
  const T* const C = in.C + batch * in.C_batch + group * in.C_group;
  const int width = ::min(channels, in.headdim - first);

  A state[4][States];
#pragma unroll
  for (int p = 0; p < 4; ++p)
#pragma unroll
    for (int i = 0; i < States; ++i) {
      const int n = part + 16 * i;
      const bool given = in.initial_state != nullptr && own + p < width && n < in.d_state;
      state[p][i] = given ? in.initial_state[batch * in.state_batch + head * in.state_head +
                                             (first + own + p) * in.state_channel + n]
                          : A(0);
    }
  for (Index begin = 0; begin < in.length; begin += tokens) {
    const int count = in.length - begin < tokens ? static_cast<int>(in.length - begin) : tokens;
    for (int i = thread; i < tokens * channels; i += 128) {
      const int t = i / channels, p = i % channels;
      x_tile[i] = t < count && p < width ? static_cast<A>(x[(begin + t) * in.x_token + p]) : A(0);
    }
    for (int i = thread; i < tokens * padded_state; i += 128) {
      const int t = i / padded_state, n = i % padded_state;
      const bool there = t < count && n < in.d_state;
      B_tile[i] = there ? static_cast<A>(B[(begin + t) * in.B_token + n]) : A(0);
      C_tile[i] = there ? static_cast<A>(C[(begin + t) * in.C_token + n]) : A(0);
    }
    if (thread < count) time_step(in, batch, begin + thread, head, steps[thread], kept[thread]);
    __syncthreads();
    for (int t = 0; t < count; ++t) {
      A input[4], y[4] = {};
#pragma unroll
      for (int p = 0; p < 4; ++p) input[p] = steps[t] * x_tile[t * channels + own + p];
      const A keep = kept[t];
#pragma unroll
      for (int i = 0; i < States; ++i) {
        const A b = B_tile[t * padded_state + part + 16 * i], c = C_tile[t * padded_state + part + 16 * i];
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          state[p][i] = keep * state[p][i] + input[p] * b;
          y[p] += state[p][i] * c;
        }
      }
      // Sums over 16 lanes of four numbers: each exchange halves how many a lane has; then it has one.
      const bool high = (part & 8) != 0, odd = (part & 4) != 0;
      const A low_pair[2] = {high ? y[0] : y[2], high ? y[1] : y[3]};  // given away
      A pair[2] = {high ? y[2] : y[0], high ? y[3] : y[1]};
#pragma unroll
      for (int i = 0; i < 2; ++i) pair[i] += __shfl_xor_sync(0xffffffffu, low_pair[i], 8);
      A sum = (odd ? pair[1] : pair[0]) + __shfl_xor_sync(0xffffffffu, odd ? pair[0] : pair[1], 4);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      if (part % 4 == 0) y_tile[t * channels + own + part / 4] = sum;
    }
    __syncthreads();
    for (int i = thread; i < count * channels; i += 128) {
      const int t = i / channels, p = i % channels;
      if (p >= width) continue;
      A y = y_tile[i];
      if (in.D != nullptr) y += in.D[head * in.D_head + (first + p) * in.D_channel] * x_tile[i];
      if (in.z != nullptr)
        y *= silu(static_cast<A>(in.z[batch * in.z_batch + (begin + t) * in.z_token + head * in.z_head + first + p]));
      to.out[batch * to.out_batch + (begin + t) * to.out_token + head * to.out_head + first + p] = static_cast<T>(y);
    }
    __syncthreads();
  }
  if (to.final_state == nullptr) return;
#pragma unroll
  for (int p = 0; p < 4; ++p)
#pragma unroll
    for (int i = 0; i < States; ++i) {
      const int n = part + 16 * i;
      if (own + p < width && n < in.d_state)
        to.final_state[batch * to.state_batch + head * to.state_head + (first + own + p) * to.state_channel + n] =
            state[p][i];
    }
}

/// Larger states: a warp for each channel, whose state lies in shared memory. Grid: pieces of four channels.
template <class T>
__global__ void __launch_bounds__(128) ssd_large_state_kernel(DeviceInputs<T> in, DeviceOutputs<T> to) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int pieces = (in.headdim + 3) / 4;
  const Index sequence = blockIdx.x / pieces, batch = sequence / in.nheads;
  const int head = static_cast<int>(sequence % in.nheads), group = head / in.heads_per_group;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int p = static_cast<int>(blockIdx.x % pieces) * 4 + warp;
  if (p >= in.headdim) return;
  A* const state = reinterpret_cast<A*>(shared) + warp * in.d_state;
  for (int n = lane; n < in.d_state; n += 32)
    state[n] = in.initial_state != nullptr
                   ? in.initial_state[batch * in.state_batch + head * in.state_head + p * in.state_channel + n]
                   : A(0);
  const A skip = in.D != nullptr ? in.D[head * in.D_head + p * in.D_channel] : A(0);
  for (Index t = 0; t < in.length; ++t) {
    A step, kept;
    time_step(in, batch, t, head, step, kept);
    const A x = static_cast<A>(in.x[batch * in.x_batch + t * in.x_token + head * in.x_head + p]);
    const T* B = in.B + batch * in.B_batch + t * in.B_token + group * in.B_group;
    const T* C = in.C + batch * in.C_batch + t * in.C_token + group * in.C_group;
    A y = 0;
    for (int n = lane; n < in.d_state; n += 32) {
      state[n] = kept * state[n] + step * x * static_cast<A>(B[n]);
      y += state[n] * static_cast<A>(C[n]);
    }
    for (int distance = 16; distance > 0; distance /= 2) y += __shfl_xor_sync(0xffffffffu, y, distance);
    if (lane != 0) continue;
    y += skip * x;
    if (in.z != nullptr) y *= silu(static_cast<A>(in.z[batch * in.z_batch + t * in.z_token + head * in.z_head + p]));
    to.out[batch * to.out_batch + t * to.out_token + head * to.out_head + p] = static_cast<T>(y);
  }
  if (to.final_state == nullptr) return;
  for (int n = lane; n < in.d_state; n += 32)
    to.final_state[batch * to.state_batch + head * to.state_head + p * to.state_channel + n] = state[n];
}

// Launchers
// ------------------------------------------------------------------------------------------------------------

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  cuda_runtime::check(cudaDeviceGetAttribute(&value, attribute, cuda_runtime::current_stream().device),
                      "cudaDeviceGetAttribute");
  return value;
}

/// Whether the tensor-core path can take the inputs.
template <class T>
bool tensor_cores_take(const Inputs<T, cuda>& in, const OutputViews<T, cuda>& to) {
  if constexpr (std::is_same_v<T, double>) {
    return false;
  } else {
    const auto aligned = [](const auto& view) {
      if (!view) return true;
      bool good = reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
      for (int axis = 0; axis < 3; ++axis)
        good = good && (view.extent(axis) == 1 || view.stride(axis) % Index{16 / sizeof(T)} == 0);
      return good;
    };
    const Index n = in.B.extent(3);
    const int bytes = n == 64 ? SegmentMemory<T, 64>::bytes : SegmentMemory<T, 128>::bytes;
    return in.x.extent(1) > 0 && in.x.extent(3) == 64 && (n == 64 || n == 128) &&
           bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
           aligned(View<const T, 4, cuda>(in.x)) && aligned(View<const T, 4, cuda>(in.B)) &&
           aligned(View<const T, 4, cuda>(in.C)) && aligned(in.z) && aligned(View<T, 4, cuda>(to.out));
  }
}

/// How a tensor-core launch cuts the length. Two blocks fit on a multiprocessor. A segment repeats a third of the work,
/// so they are few and not short.
inline Segments cut(const Sizes& s) {
  constexpr Index Q = tile_tokens;
  const int processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const Index chunks = (s.length + Q - 1) / Q, sequences = s.batch * s.nheads;
  const Index wanted = 2 * processors / (sequences > 0 ? sequences : 1);
  Segments segments;
  segments.count = static_cast<int>(wanted <= 1 ? 1 : wanted < chunks / 8 ? wanted : chunks / 8 > 1 ? chunks / 8 : 1);
  segments.chunks = static_cast<int>((chunks + segments.count - 1) / segments.count);
  segments.count = static_cast<int>((chunks + segments.chunks - 1) / segments.chunks);
  return segments;
}

template <class T, int N>
void launch_segments(const DeviceInputs<T>& in, const DeviceOutputs<T>& to, const Sizes& s,
                     Workspace<cuda>& workspace) {
  const auto stream = cuda_runtime::current_stream();
  constexpr int P = 64, bytes = SegmentMemory<T, N>::bytes;
  Segments segments = cut(s);
  const Index blocks = s.batch * s.nheads * segments.count;
  require(blocks < (Index{1} << 31), "ssd: a batch of this size does not fit into one launch");
  const unsigned grid = static_cast<unsigned>(blocks);
  if (segments.count > 1) {
    segments.states = workspace.template take<float>(blocks * N * P);
    segments.decays = workspace.template take<float>(blocks);
    const auto kernel = ssd_segment_kernel<T, N, false>;
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute");
    kernel<<<grid, 128, bytes, stream.handle>>>(in, to, segments);
    cuda_runtime::check_launch("ssd_segment_kernel (states)");
    ssd_segment_states_kernel<T, N><<<static_cast<unsigned>(s.batch * s.nheads), 256, 0, stream.handle>>>(in, segments);
    cuda_runtime::check_launch("ssd_segment_states_kernel");
  }
  const auto kernel = ssd_segment_kernel<T, N, true>;
  cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                      "cudaFuncSetAttribute");
  kernel<<<grid, 128, bytes, stream.handle>>>(in, to, segments);
  cuda_runtime::check_launch("ssd_segment_kernel");
}

template <class T>
void launch_recurrence(const DeviceInputs<T>& in, const DeviceOutputs<T>& to, const Sizes& s) {
  const auto launch = [&](auto kernel, Index channels, Index elements, const char* name) {
    const Index blocks = s.batch * s.nheads * ((s.headdim + channels - 1) / channels);
    const Index bytes = elements * static_cast<Index>(sizeof(accumulate_t<T>));
    require(blocks < (Index{1} << 31), "ssd: a batch of this size does not fit into one launch");
    require(bytes <= (Index{96} << 10), "ssd: d_state ", s.d_state, " is too large for a GPU");
    cuda_runtime::check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
    kernel<<<static_cast<unsigned>(blocks), 128, static_cast<std::size_t>(bytes),
             cuda_runtime::current_stream().handle>>>(in, to);
    cuda_runtime::check_launch(name);
  };
  const auto tiles = [](Index states) { return 16 * (2 * 32 + 2 * 16 * states + 2); };
  if (s.d_state <= 16)
    launch(ssd_recurrence_kernel<T, 1>, 32, tiles(1), "ssd_recurrence_kernel");
  else if (s.d_state <= 64)
    launch(ssd_recurrence_kernel<T, 4>, 32, tiles(4), "ssd_recurrence_kernel");
  else if (s.d_state <= 128)
    launch(ssd_recurrence_kernel<T, 8>, 32, tiles(8), "ssd_recurrence_kernel");
  else
    launch(ssd_large_state_kernel<T>, 4, 4 * s.d_state, "ssd_large_state_kernel");
}

}  // namespace detail

/// Bytes of workspace that forward takes on the current stream's GPU.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Options&) {
  if constexpr (std::is_same_v<T, double>) {
    return 0;
  } else {
    const Sizes s = sizes(in);
    if (s.headdim != 64 || (s.d_state != 64 && s.d_state != 128) || s.batch * s.length * s.nheads == 0) return 0;
    const Index slots = s.batch * s.nheads * detail::cut(s).count;
    const std::size_t general =
        Workspace<cuda>::bytes_of<float>(slots * s.headdim * s.d_state) + Workspace<cuda>::bytes_of<float>(slots);
    const std::size_t hopper = sizeof(T) == 2 ? detail::Walk(s).bytes(s.d_state) : 0;
    return general > hopper ? general : hopper;
  }
}

/// Writes into the caller's memory, on the current stream. Throws Error.
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const std::type_identity_t<OutputViews<T, cuda>>& to,
             std::type_identity_t<Saved<T, cuda>>* saved, Workspace<cuda>& workspace) {
  check(in, options, to);
  const Sizes s = sizes(in);
  ++forward_count().ssd;
  if (saved != nullptr) saved->options = options;
  if (s.batch * s.nheads * s.headdim == 0) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const auto mark = workspace.mark();
  const detail::DeviceInputs<T> inputs(in, options);
  const detail::DeviceOutputs<T> outputs(to);
  const auto launch = [&] {
    if constexpr (!std::is_same_v<T, double>) {
      const auto on_tensor_cores = [&]<int N>(std::integral_constant<int, N>) {
        if constexpr (sizeof(T) == 2)
          if (detail::hopper_takes<T, N>(in, to))
            return detail::launch_hopper<T, N>(in, to, inputs, outputs, workspace);
        detail::launch_segments<T, N>(inputs, outputs, s, workspace);
      };
      if (detail::tensor_cores_take(in, to))
        return s.d_state == 64 ? on_tensor_cores(std::integral_constant<int, 64>())
                               : on_tensor_cores(std::integral_constant<int, 128>());
    }
    detail::launch_recurrence(inputs, outputs, s);
  };
  launch();
  workspace.reset(mark);
}

}  // namespace diffmamba::ssd
