// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/mma.cuh"
#include "diffmamba/ops/ssd/ssd_device.cuh"
#include "diffmamba/ops/ssd/ssd_forward_hopper.cuh"

/// SSD forward on an NVIDIA GPU.
///
/// The tensor-core path (16-bit types, headdim 64, d_state 64 or 128, rows aligned to 16 bytes): a block of four warps
/// owns a head of a sequence, or a segment of it, and walks over its chunks of 64 tokens with the state in registers
/// (in float) and one 16-bit copy of it in shared memory, so that x, B, C, dt are read once, out is written once and no
/// intermediate ever sees global memory. Per chunk, with c_i = sum of dt A up to i (in powers of two) and s = S^T:
///
///   y_i = 2^c_i C_i s  +  sum_{j <= i} 2^(c_i - c_j) dt_j (C_i . B_j) x_j  +  D x_i
///   s  <- 2^c_end s    +  sum_j 2^(c_end - c_j) dt_j B_j x_j^T
///
/// Where batch x heads alone cannot fill the GPU the length is cut into segments: a first launch computes what each
/// segment adds to the state, a second adds up, in order, what state each begins with, a third computes the outputs.
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

/// One thread has the sum of 2 tokens of dt A log2(e) up to its own: the chunk's c_i and dt_i, by one warp.
template <class T>
__device__ inline void chunk_decays(const DeviceInputs<T>& in, const T* dt, Index first, int lane, float A, float bias,
                                    float* c, float* steps) {
  float step[2], sum[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const Index token = first + 2 * lane + k;
    step[k] = token < in.length ? discretize(static_cast<float>(dt[token * in.dt_token]), bias, in.options) : 0.0f;
  }
  sum[0] = step[0] * A;
  sum[1] = sum[0] + step[1] * A;
  float before = sum[1];
  for (int distance = 1; distance < 32; distance *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane >= distance) before += other;
  }
  before -= sum[1];
  __syncwarp();  // the chunk before has been read
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    c[2 * lane + k] = before + sum[k];
    steps[2 * lane + k] = step[k];
  }
  __syncwarp();
}

/// The tensor-core path: four warps for each segment of each head of the batch. Without `Output` only the state is
/// carried, from zero, and left in segments.states together with the segment's decay.
template <class T, int N, bool Output>
__global__ void __launch_bounds__(128) ssd_segment_kernel(DeviceInputs<T> in, DeviceOutputs<T> to, Segments segments) {
  using mma::swizzled;
  constexpr int Q = tile_tokens, P = 64;
  constexpr int m_tiles = N / 64;  // of 16 rows of the state, per warp
  const int segment = static_cast<int>(blockIdx.x % segments.count);
  const Index slot = blockIdx.x, batch = slot / segments.count / in.nheads;
  const int head = static_cast<int>(slot / segments.count % in.nheads);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = head / in.heads_per_group;

  extern __shared__ __align__(128) unsigned char shared[];
  T* const tiles = reinterpret_cast<T*>(shared);
  constexpr int stage = 2 * Q * N + Q * P;                                            // C, B, x
  T* const state_tile = tiles + 2 * stage;                                            // (N, P)
  float* const decays = reinterpret_cast<float*>(state_tile + N * P) + warp * 2 * Q;  // c and dt, one copy a warp

  const T* const x = in.x + batch * in.x_batch + head * in.x_head;
  const T* const B = in.B + batch * in.B_batch + group * in.B_group;
  const T* const C = in.C + batch * in.C_batch + group * in.C_group;
  const T* const dt = in.dt + batch * in.dt_batch + head * in.dt_head;
  const float A = in.A[head] * 1.44269504089f;  // log2(e): exponentials are powers of two
  const float bias = in.dt_bias != nullptr ? in.dt_bias[head] : 0.0f;

  const int all_chunks = static_cast<int>((in.length + Q - 1) / Q);
  const int first_chunk = segment * segments.chunks;
  const int last_chunk = ::min(first_chunk + segments.chunks, all_chunks);

  const auto start_loading = [&](int chunk) {
    T* const target = tiles + (chunk & 1) * stage;
    const Index first = Index{chunk} * Q;
    for (int i = static_cast<int>(threadIdx.x); i < Q * N / 8; i += 128) {
      const int row = i / (N / 8), unit = i % (N / 8);
      const bool valid = first + row < in.length;
      const Index token = valid ? first + row : 0;
      if (Output) mma::copy_async(target + swizzled<N>(row, unit), C + token * in.C_token + unit * 8, valid);
      mma::copy_async(target + Q * N + swizzled<N>(row, unit), B + token * in.B_token + unit * 8, valid);
    }
    for (int i = static_cast<int>(threadIdx.x); i < Q * P / 8; i += 128) {
      const int row = i / (P / 8), unit = i % (P / 8);
      const bool valid = first + row < in.length;
      const Index token = valid ? first + row : 0;
      mma::copy_async(target + 2 * Q * N + swizzled<P>(row, unit), x + token * in.x_token + unit * 8, valid);
    }
    mma::commit_copies();
  };
  // The 16-bit copy of the state that the products read; this warp's rows.
  float state[m_tiles][8][4];  // rows warp * N / 4 + 16 m, columns 8 n
  const auto publish_state = [&] {
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int half_row = 0; half_row < 2; ++half_row) {
          const int row = warp * (N / 4) + m * 16 + half_row * 8 + lane / 4;
          *reinterpret_cast<unsigned*>(state_tile + swizzled<P>(row, n) + 2 * (lane % 4)) =
              mma::pack<T>(state[m][n][2 * half_row], state[m][n][2 * half_row + 1]);
        }
  };

  // The state this segment begins with: what the second launch left, or the initial one, or zero.
#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int row = warp * (N / 4) + m * 16 + (k / 2) * 8 + lane / 4, column = n * 8 + 2 * (lane % 4) + k % 2;
        float value = 0.0f;
        if constexpr (Output) {
          if (segments.states != nullptr)
            value = segments.states[(slot * N + row) * P + column];
          else if (in.initial_state != nullptr)
            value = in.initial_state[batch * in.state_batch + head * in.state_head + column * in.state_channel + row];
        }
        state[m][n][k] = value;
      }
  float total = 0.0f;  // of the segment, in powers of two

  if (first_chunk < last_chunk) start_loading(first_chunk);
  if constexpr (Output) publish_state();
  float* const c = decays;
  float* const steps = decays + Q;
  for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
    chunk_decays(in, dt, Index{chunk} * Q, lane, A, bias, c, steps);
    mma::wait_for_copies<0>();
    __syncthreads();  // this chunk's tiles and state are there; the other buffers are free
    if (chunk + 1 < last_chunk) start_loading(chunk + 1);
    T* const C_tile = tiles + (chunk & 1) * stage;
    const T* const B_tile = C_tile + Q * N;
    const T* const x_tile = B_tile + Q * N;
    const float c_end = c[Q - 1];

    if constexpr (Output) {
      const int row = warp * 16 + lane / 4;  // and row + 8
      const float c_row[2] = {c[row], c[row + 8]};
      float y[8][4] = {};
      // y = C s: the state before this chunk.
#pragma unroll
      for (int k = 0; k < N / 16; ++k) {
        unsigned a[4];
        mma::load_matrices(a, C_tile + swizzled<N>(warp * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          unsigned b[4];
          mma::load_matrices_transposed(b, state_tile + swizzled<P>(k * 16 + lane % 16, n + lane / 16));
          mma::multiply_add<T>(y[n], a, b[0], b[1]);
          mma::multiply_add<T>(y[n + 1], a, b[2], b[3]);
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) y[n][k] *= exp2f(c_row[k / 2]);
      // Tokens of this chunk, 16 at a time up to the diagonal: scores, decays, and the product with x.
      for (int block = 0; block <= warp; ++block) {
        float scores[2][4] = {};
#pragma unroll
        for (int k = 0; k < N / 16; ++k) {
          unsigned a[4], b[4];
          mma::load_matrices(a, C_tile + swizzled<N>(warp * 16 + lane % 16, 2 * k + lane / 16));
          mma::load_matrices(b, B_tile + swizzled<N>(block * 16 + lane % 16, 2 * k + lane / 16));
          mma::multiply_add<T>(scores[0], a, b[0], b[2]);
          mma::multiply_add<T>(scores[1], a, b[1], b[3]);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int j = block * 16 + n * 8 + 2 * (lane % 4) + k % 2, i = row + (k / 2) * 8;
            scores[n][k] = j <= i ? scores[n][k] * exp2f(c_row[k / 2] - c[j]) * steps[j] : 0.0f;
          }
        const unsigned a[4] = {mma::pack<T>(scores[0][0], scores[0][1]), mma::pack<T>(scores[0][2], scores[0][3]),
                               mma::pack<T>(scores[1][0], scores[1][1]), mma::pack<T>(scores[1][2], scores[1][3])};
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          unsigned b[4];
          mma::load_matrices_transposed(b, x_tile + swizzled<P>(block * 16 + lane % 16, n + lane / 16));
          mma::multiply_add<T>(y[n], a, b[0], b[1]);
          mma::multiply_add<T>(y[n + 1], a, b[2], b[3]);
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
                mma::unpack<T>(*reinterpret_cast<const unsigned*>(x_tile + swizzled<P>(i, n) + 2 * (lane % 4)));
            const accumulate_t<T>* D = in.D + head * in.D_head + column * in.D_channel;
            first += D[0] * value.x;
            second += D[in.D_channel] * value.y;
          }
          const Index token = Index{chunk} * Q + i;
          if (in.z != nullptr && token < in.length) {
            const T* z = in.z + batch * in.z_batch + token * in.z_token + head * in.z_head + column;
            const float2 gate = mma::unpack<T>(*reinterpret_cast<const unsigned*>(z));
            first *= silu(gate.x);
            second *= silu(gate.y);
          }
          *reinterpret_cast<unsigned*>(rows + swizzled<P>(lane / 4 + half_row * 8, n) + 2 * (lane % 4)) =
              mma::pack<T>(first, second);
        }
      __syncwarp();
      for (int i = lane; i < 16 * P / 8; i += 32) {
        const int r = i / (P / 8), unit = i % (P / 8);
        const Index token = Index{chunk} * Q + warp * 16 + r;
        if (token < in.length)
          *reinterpret_cast<uint4*>(to.out + batch * to.out_batch + token * to.out_token + head * to.out_head +
                                    unit * 8) = *reinterpret_cast<const uint4*>(rows + swizzled<P>(r, unit));
      }
    }

    // The state after this chunk.
    const float kept = exp2f(c_end);
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) state[m][n][k] *= kept;
#pragma unroll
    for (int k = 0; k < Q / 16; ++k) {
      const int j = k * 16 + 2 * (lane % 4);
      const float weight[4] = {exp2f(c_end - c[j]) * steps[j], exp2f(c_end - c[j + 1]) * steps[j + 1],
                               exp2f(c_end - c[j + 8]) * steps[j + 8], exp2f(c_end - c[j + 9]) * steps[j + 9]};
      unsigned a[m_tiles][4];
#pragma unroll
      for (int m = 0; m < m_tiles; ++m) {
        // Rows of B are tokens: transposed, they are the columns of the state's left factor.
        mma::load_matrices_transposed(a[m], B_tile + swizzled<N>(k * 16 + lane % 8 + (lane / 16) * 8,
                                                                 (warp * (N / 4) + m * 16) / 8 + lane / 8 % 2));
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float2 value = mma::unpack<T>(a[m][r]);
          a[m][r] = mma::pack<T>(value.x * weight[r / 2 * 2], value.y * weight[r / 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        unsigned b[4];
        mma::load_matrices_transposed(b, x_tile + swizzled<P>(k * 16 + lane % 16, n + lane / 16));
#pragma unroll
        for (int m = 0; m < m_tiles; ++m) {
          mma::multiply_add<T>(state[m][n], a[m], b[0], b[1]);
          mma::multiply_add<T>(state[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
    total += c_end;
    if constexpr (Output) {
      __syncthreads();  // nobody reads the old state any more
      publish_state();
    }
  }

  // What the segment leaves behind.
  const bool to_final = Output && to.final_state != nullptr && segment + 1 == segments.count;
  if (!Output || to_final)
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int row = warp * (N / 4) + m * 16 + (k / 2) * 8 + lane / 4, column = n * 8 + 2 * (lane % 4) + k % 2;
          if (to_final)
            to.final_state[batch * to.state_batch + head * to.state_head + column * to.state_channel + row] =
                state[m][n][k];
          else
            segments.states[(slot * N + row) * P + column] = state[m][n][k];
        }
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

/// Whether the tensor-core path can take the inputs.
template <class T>
bool tensor_cores_take(const Inputs<T, cuda>& in, const OutputViews<T, cuda>& to) {
  if constexpr (!std::is_same_v<T, bfloat16> && !std::is_same_v<T, half>) {
    return false;
  } else {
    const auto aligned = [](const auto& view) {
      if (!view) return true;
      bool good = reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
      for (int axis = 0; axis < 3; ++axis) good = good && (view.extent(axis) == 1 || view.stride(axis) % 8 == 0);
      return good;
    };
    const Index n = in.B.extent(3);
    return in.x.extent(1) > 0 && in.x.extent(3) == 64 && (n == 64 || n == 128) &&
           aligned(View<const T, 4, cuda>(in.x)) && aligned(View<const T, 4, cuda>(in.B)) &&
           aligned(View<const T, 4, cuda>(in.C)) && aligned(in.z) && aligned(View<T, 4, cuda>(to.out));
  }
}

/// How a tensor-core launch cuts the length. Two blocks fit on a multiprocessor. A segment repeats a third of the work,
/// so they are few and not short.
inline Segments cut(const Sizes& s) {
  constexpr Index Q = tile_tokens;
  int processors = 0;
  cuda_runtime::check(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, cuda_runtime::current_stream().device),
      "cudaDeviceGetAttribute");
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
  constexpr int Q = tile_tokens, P = 64;
  constexpr std::size_t bytes = (2 * (2 * Q * N + Q * P) + N * P) * sizeof(T) + 4 * 2 * Q * sizeof(float);
  Segments segments = cut(s);
  const Index blocks = s.batch * s.nheads * segments.count;
  require(blocks < (Index{1} << 31), "ssd: a batch of this size does not fit into one launch");
  const unsigned grid = static_cast<unsigned>(blocks);
  if (segments.count > 1) {
    segments.states = workspace.template take<float>(blocks * N * P);
    segments.decays = workspace.template take<float>(blocks);
    const auto kernel = ssd_segment_kernel<T, N, false>;
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{bytes}),
                        "cudaFuncSetAttribute");
    kernel<<<grid, 128, bytes, stream.handle>>>(in, to, segments);
    cuda_runtime::check_launch("ssd_segment_kernel (states)");
    ssd_segment_states_kernel<T, N><<<static_cast<unsigned>(s.batch * s.nheads), 256, 0, stream.handle>>>(in, segments);
    cuda_runtime::check_launch("ssd_segment_states_kernel");
  }
  const auto kernel = ssd_segment_kernel<T, N, true>;
  cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{bytes}),
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
  if constexpr (sizeof(T) != 2) {
    return 0;
  } else {
    const Sizes s = sizes(in);
    if (s.headdim != 64 || (s.d_state != 64 && s.d_state != 128) || s.batch * s.length * s.nheads == 0) return 0;
    const Index slots = s.batch * s.nheads * detail::cut(s).count;
    const std::size_t general =
        Workspace<cuda>::bytes_of<float>(slots * s.headdim * s.d_state) + Workspace<cuda>::bytes_of<float>(slots);
    const std::size_t hopper = detail::Walk(s).bytes(s.d_state);
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
    if constexpr (std::is_same_v<T, bfloat16> || std::is_same_v<T, half>) {
      if (detail::tensor_cores_take(in, to)) {
        if (s.d_state == 64)
          return detail::hopper_takes<T, 64>(in, to) ? detail::launch_hopper<T, 64>(in, to, inputs, outputs, workspace)
                                                     : detail::launch_segments<T, 64>(inputs, outputs, s, workspace);
        return detail::hopper_takes<T, 128>(in, to) ? detail::launch_hopper<T, 128>(in, to, inputs, outputs, workspace)
                                                    : detail::launch_segments<T, 128>(inputs, outputs, s, workspace);
      }
    }
    detail::launch_recurrence(inputs, outputs, s);
  };
  launch();
  workspace.reset(mark);
}

}  // namespace diffmamba::ssd
