// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_forward.cuh"

/// What both paths of the backward pass of SSD on a GPU share (steps and decays of chunks, sums over the batch), and
/// the general path: any type, any size, every option, products by plain multiply-adds. The formulas and their names
/// are those at the head of ssd_backward.hpp.
///
/// The general path in four launches: states of chunk starts and, backwards, their gradients (a thread per element of a
/// state, walking through time); dy, and dz where there is a gate (a block per chunk and head); all gradients of a
/// chunk (a block per chunk and group, over the heads of the group in order); sums over chunks and batch. Everything is
/// kept in accumulate_t<T>, and da is added up in rectangles, without cancellation, as on the CPU.
namespace diffmamba::ssd {
namespace detail {

inline constexpr int general_tokens = 64;  // tokens of a chunk on the general path

/// Where the kernels write; absent ones are null.
template <class T>
struct DeviceGradients {
  using Real = accumulate_t<T>;
  T *dx, *ddt, *dB, *dC, *dz;
  Real *dA, *dD, *dD_per_channel, *ddt_bias, *dinitial_state;
  Real* dlog_decay = nullptr;  // (batch, length, nheads), of ssd::minimal
  Index dx_batch, dx_token, dx_head, ddt_batch, ddt_token, ddt_head, dB_batch, dB_token, dB_group;
  Index dC_batch, dC_token, dC_group, dz_batch, dz_token, dz_head, state_batch, state_head, state_channel;
  Index dA_head, dD_head, dD_per_channel_head, ddt_bias_head;
  bool add;

  DeviceGradients(const GradientViews<T, cuda>& to, GradientMode mode)
      : dx(to.dx.data()),
        ddt(to.ddt.data()),
        dB(to.dB.data()),
        dC(to.dC.data()),
        dz(to.dz.data()),
        dA(to.dA.data()),
        dD(to.dD.data()),
        dD_per_channel(to.dD_per_channel.data()),
        ddt_bias(to.ddt_bias.data()),
        dinitial_state(to.dinitial_state.data()),
        dx_batch(to.dx.stride(0)),
        dx_token(to.dx.stride(1)),
        dx_head(to.dx.stride(2)),
        ddt_batch(to.ddt.stride(0)),
        ddt_token(to.ddt.stride(1)),
        ddt_head(to.ddt.stride(2)),
        dB_batch(to.dB.stride(0)),
        dB_token(to.dB.stride(1)),
        dB_group(to.dB.stride(2)),
        dC_batch(to.dC.stride(0)),
        dC_token(to.dC.stride(1)),
        dC_group(to.dC.stride(2)),
        dz_batch(to.dz.stride(0)),
        dz_token(to.dz.stride(1)),
        dz_head(to.dz.stride(2)),
        state_batch(to.dinitial_state.stride(0)),
        state_head(to.dinitial_state.stride(1)),
        state_channel(to.dinitial_state.stride(2)),
        dA_head(to.dA.stride(0)),
        dD_head(to.dD.stride(0)),
        dD_per_channel_head(to.dD_per_channel.stride(0)),
        ddt_bias_head(to.ddt_bias.stride(0)),
        add(mode == GradientMode::add) {}
};

/// dL/d(output); absent ones are null.
template <class T>
struct DeviceUpstream {
  const T* dout;
  const accumulate_t<T>* dfinal_state;
  Index dout_batch, dout_token, dout_head, state_batch, state_head, state_channel;

  explicit DeviceUpstream(const OutputGradients<T, cuda>& from)
      : dout(from.dout.data()),
        dfinal_state(from.dfinal_state.data()),
        dout_batch(from.dout.stride(0)),
        dout_token(from.dout.stride(1)),
        dout_head(from.dout.stride(2)),
        state_batch(from.dfinal_state.stride(0)),
        state_head(from.dfinal_state.stride(1)),
        state_channel(from.dfinal_state.stride(2)) {}
};

/// What the launches of one call leave for one another. Chunks of a sequence are counted from 0 to `chunks`; `steps`
/// and `sums` are (batch, chunks, nheads, tokens of a chunk), states (batch, chunks, nheads, d_state, headdim), and the
/// three sums (batch, chunks, nheads[, channels]).
template <class A, class Sum>
struct ChunkMemory {
  int chunks = 0;
  A* steps = nullptr;                     // dt as the recurrence uses it
  Sum* sums = nullptr;                    // running sums of dt A from the chunk's start
  A *to_end = nullptr, *start = nullptr;  // 2^(end - sum) dt and 2^sum, where sums are powers of two
  A *dA = nullptr, *ddt_bias = nullptr, *dD = nullptr;
  int channels = 1;  // of dD
};

// CUDA kernels, shared
// -------------------------------------------------------------------------------------------------

/// steps and sums, and if sums are float to_end and start: a block of 256 threads has 8 heads (grid.y) of a chunk.
/// `unit` scales A: 1, or log2(e) for decays that are powers of two.
template <class T, int Tokens, class Sum>
__global__ void __launch_bounds__(256)
    ssd_chunk_decays_kernel(DeviceInputs<T> in, ChunkMemory<accumulate_t<T>, Sum> memory, double unit) {
  using A = accumulate_t<T>;
  using Wide = std::conditional_t<std::is_same_v<Sum, float>, float, double>;
  constexpr int per_lane = Tokens / 32;
  __shared__ A tile[8][Tokens + 1];
  const Index batch = blockIdx.x / memory.chunks, chunk = blockIdx.x % memory.chunks;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first = static_cast<int>(blockIdx.y) * 8;
#pragma unroll
  for (int i = thread; i < 8 * Tokens; i += 256) {
    const int head = first + i % 8;
    const Index token = chunk * Tokens + i / 8;
    A step = 0;
    if (head < in.nheads && token < in.length)
      step = in.log_decay != nullptr
                 ? in.log_decay[batch * in.log_batch + token * in.log_token + head * in.log_head]
                 : discretize(static_cast<A>(in.dt[batch * in.dt_batch + token * in.dt_token + head * in.dt_head]),
                              in.dt_bias != nullptr ? in.dt_bias[head] : A(0), in.options);
    tile[i % 8][i / 8] = step;
  }
  __syncthreads();
  const int head = first + warp;
  if (head >= in.nheads) return;
  const Wide rate = static_cast<Wide>(in.log_decay != nullptr ? 1.0 : in.A[head]) * static_cast<Wide>(unit);
  A step[per_lane];
  Wide sum[per_lane], total = 0;
#pragma unroll
  for (int k = 0; k < per_lane; ++k) {
    step[k] = tile[warp][lane * per_lane + k];
    sum[k] = total += step[k] * rate;
  }
  Wide before = total;
  for (int distance = 1; distance < 32; distance *= 2) {
    const Wide other = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane >= distance) before += other;
  }
  const Wide end = __shfl_sync(0xffffffffu, before, 31);
  before -= total;
  const Index place = (Index{blockIdx.x} * in.nheads + head) * Tokens + lane * per_lane;
#pragma unroll
  for (int k = 0; k < per_lane; ++k) {
    sum[k] += before;
    if constexpr (!std::is_same_v<Sum, float>) {
      const bool unit_step = in.log_decay != nullptr && chunk * Tokens + lane * per_lane + k < in.length;
      memory.steps[place + k] = unit_step ? A(1) : step[k];
      assign(memory.sums[place + k], sum[k]);
    }
  }
  if constexpr (std::is_same_v<Sum, float>) {
    const auto four = [&](float* array, auto&& value) {
      *reinterpret_cast<float4*>(array + place) = make_float4(value(0), value(1), value(2), value(3));
    };
    static_assert(per_lane == 4);
    four(memory.steps, [&](int k) { return step[k]; });
    four(memory.sums, [&](int k) { return sum[k]; });
    four(memory.to_end, [&](int k) { return mma::power_of_two(end - sum[k]) * step[k]; });
    four(memory.start, [&](int k) { return mma::power_of_two(sum[k]); });
  }
}

/// sum over batch and chunks of what blocks left, in double and in an order that follows from the shapes; one block of
/// 256 threads per head.
template <class T, class Sum>
__global__ void __launch_bounds__(256) ssd_parameter_sums_kernel(DeviceGradients<T> to, int nheads, Index parts,
                                                                 ChunkMemory<accumulate_t<T>, Sum> memory) {
  using A = accumulate_t<T>;
  __shared__ double shared[256];
  const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x);
  const auto sum = [&](const A* values, Index stride, Index count) {
    double mine = 0;
    for (Index i = thread; i < count; i += 256) mine += static_cast<double>(values[i * stride]);
    __syncthreads();
    shared[thread] = mine;
    for (int half = 128; half > 0; half /= 2) {
      __syncthreads();
      if (thread < half) shared[thread] += shared[thread + half];
    }
    __syncthreads();
    return shared[0];
  };
  const auto put = [&](A* place, double value) {
    if (thread == 0) *place = static_cast<A>(to.add ? static_cast<double>(*place) + value : value);
  };
  if (to.dA != nullptr) put(to.dA + head * to.dA_head, sum(memory.dA + head, nheads, parts));
  if (to.ddt_bias != nullptr) put(to.ddt_bias + head * to.ddt_bias_head, sum(memory.ddt_bias + head, nheads, parts));
  if (to.dD == nullptr && to.dD_per_channel == nullptr) return;
  double whole = 0;
  for (int channel = 0; channel < memory.channels; ++channel) {
    const double value =
        sum(memory.dD + Index{head} * memory.channels + channel, Index{nheads} * memory.channels, parts);
    if (to.dD_per_channel != nullptr) put(to.dD_per_channel + head * to.dD_per_channel_head + channel, value);
    whole += value;
  }
  if (to.dD != nullptr) put(to.dD + head * to.dD_head, whole);
}

// CUDA kernels of the general path
// -------------------------------------------------------------------------------------------------

/// The running sums are double: their differences are the exponents of decays.
template <class A>
struct GeneralMemory : ChunkMemory<A, double> {
  A *states = nullptr, *dstates = nullptr;  // before each chunk; the gradient of the state after it
  A* dy = nullptr;                          // (batch, length, nheads, headdim)
  A *dB = nullptr, *dC = nullptr;           // (batch, chunks, ngroups, tokens of a chunk, d_state)
};

/// Walks through time, one thread for each element of a state: grid.x counts 256 elements, then heads, then the batch.
/// The state itself, or (`Reverse`) its gradient from the end.
template <class T, bool Reverse>
__global__ void __launch_bounds__(256)
    ssd_general_walk_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, DeviceGradients<T> to,
                            GeneralMemory<accumulate_t<T>> memory) {
  using A = accumulate_t<T>;
  constexpr int Q = general_tokens;
  __shared__ A kept[Q], steps[Q];
  const int elements = in.d_state * in.headdim, blocks = (elements + 255) / 256;
  const int element = static_cast<int>(blockIdx.x % blocks) * 256 + static_cast<int>(threadIdx.x);
  const Index pair = blockIdx.x / blocks, batch = pair / in.nheads;
  const int head = static_cast<int>(pair % in.nheads), group = head / in.heads_per_group;
  const bool mine = element < elements;
  const int n = mine ? element / in.headdim : 0, p = mine ? element % in.headdim : 0;
  A state = 0;
  if constexpr (Reverse) {
    if (upstream.dfinal_state != nullptr)
      state =
          upstream
              .dfinal_state[batch * upstream.state_batch + head * upstream.state_head + p * upstream.state_channel + n];
  } else if (in.initial_state != nullptr) {
    state = in.initial_state[batch * in.state_batch + head * in.state_head + p * in.state_channel + n];
  }
  for (int k = 0; k < memory.chunks; ++k) {
    const int chunk = Reverse ? memory.chunks - 1 - k : k;
    const Index place = (batch * memory.chunks + chunk) * in.nheads + head, begin = Index{chunk} * Q;
    const int tokens = static_cast<int>(::min(Index{Q}, in.length - begin));
    __syncthreads();
    if (threadIdx.x < Q) {
      steps[threadIdx.x] = memory.steps[place * Q + threadIdx.x];
      if (in.log_decay != nullptr) {
        kept[threadIdx.x] =
            static_cast<int>(threadIdx.x) < tokens
                ? std::exp(
                      in.log_decay[batch * in.log_batch + (begin + threadIdx.x) * in.log_token + head * in.log_head])
                : A(1);
      } else {
        kept[threadIdx.x] = decay(steps[threadIdx.x], in.A[head]);
      }
    }
    __syncthreads();
    if (!mine) continue;
    (Reverse ? memory.dstates : memory.states)[place * elements + element] = state;
    if constexpr (Reverse) {
      const A* dy = memory.dy + ((batch * in.length + begin) * in.nheads + head) * in.headdim + p;
      const T* C = in.C + batch * in.C_batch + begin * in.C_token + group * in.C_group + n;
      for (int t = tokens - 1; t >= 0; --t)
        state = kept[t] * (state + static_cast<A>(C[t * in.C_token]) * dy[Index{t} * in.nheads * in.headdim]);
    } else {
      const T* x = in.x + batch * in.x_batch + begin * in.x_token + head * in.x_head + p;
      const T* B = in.B + batch * in.B_batch + begin * in.B_token + group * in.B_group + n;
      for (int t = 0; t < tokens; ++t)
        state = kept[t] * state + steps[t] * static_cast<A>(x[t * in.x_token]) * static_cast<A>(B[t * in.B_token]);
    }
  }
  if constexpr (Reverse)
    if (mine && to.dinitial_state != nullptr)
      to.dinitial_state[batch * to.state_batch + head * to.state_head + p * to.state_channel + n] = state;
}

/// dy = dout silu(z) into memory of its own (dx may be that of dout) and dz: a block per head of a chunk.
template <class T>
__global__ void __launch_bounds__(256)
    ssd_general_gate_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, DeviceGradients<T> to,
                            GeneralMemory<accumulate_t<T>> memory) {
  using A = accumulate_t<T>;
  constexpr int Q = general_tokens;
  __shared__ A mixing[Q][Q + 1];
  const Index place = blockIdx.x, batch = place / in.nheads / memory.chunks;
  const int head = static_cast<int>(place % in.nheads), group = head / in.heads_per_group;
  const Index begin = place / in.nheads % memory.chunks * Q;
  const int tokens = static_cast<int>(::min(Index{Q}, in.length - begin));
  const double* sums = memory.sums + place * Q;
  const A* steps = memory.steps + place * Q;
  const T* x = in.x + batch * in.x_batch + begin * in.x_token + head * in.x_head;
  const T* B = in.B + batch * in.B_batch + begin * in.B_token + group * in.B_group;
  const T* C = in.C + batch * in.C_batch + begin * in.C_token + group * in.C_group;
  if (in.z != nullptr && to.dz != nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < Q * Q; i += 256) {
      const int t = i / Q, s = i % Q;
      if (s > t || t >= tokens) continue;
      A score = 0;
      for (int n = 0; n < in.d_state; ++n)
        score += static_cast<A>(C[t * in.C_token + n]) * static_cast<A>(B[s * in.B_token + n]);
      mixing[t][s] = score * std::exp(static_cast<A>(sums[t] - sums[s])) * steps[s];
    }
    __syncthreads();
  }
  const A* state = memory.states + place * in.d_state * in.headdim;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * in.headdim; i += 256) {
    const int t = i / in.headdim, p = i % in.headdim;
    const Index token = begin + t;
    A dy = 0;
    if (upstream.dout != nullptr)
      dy = static_cast<A>(
          upstream.dout[batch * upstream.dout_batch + token * upstream.dout_token + head * upstream.dout_head + p]);
    if (in.z != nullptr) {
      const A z = static_cast<A>(in.z[batch * in.z_batch + token * in.z_token + head * in.z_head + p]);
      if (to.dz != nullptr) {
        A y = 0;
        for (int n = 0; n < in.d_state; ++n)
          y += static_cast<A>(C[t * in.C_token + n]) * state[Index{n} * in.headdim + p];
        y *= std::exp(static_cast<A>(sums[t]));
        for (int s = 0; s <= t; ++s) y += mixing[t][s] * static_cast<A>(x[s * in.x_token + p]);
        if (in.D != nullptr) y += in.D[head * in.D_head + p * in.D_channel] * static_cast<A>(x[t * in.x_token + p]);
        to.dz[batch * to.dz_batch + token * to.dz_token + head * to.dz_head + p] =
            static_cast<T>(dy * y * silu_derivative(z));
      }
      dy *= silu(z);
    }
    memory.dy[((batch * in.length + token) * in.nheads + head) * in.headdim + p] = dy;
  }
}

/// All gradients of a chunk and group: grid.x counts groups, then chunks, then the batch; 256 threads.
template <class T>
__global__ void __launch_bounds__(256) ssd_general_backward_kernel(DeviceInputs<T> in, DeviceGradients<T> to,
                                                                   GeneralMemory<accumulate_t<T>> memory, int groups) {
  using A = accumulate_t<T>;
  constexpr int Q = general_tokens, row = Q + 1, warps = 8;
  extern __shared__ __align__(16) unsigned char bytes[];
  double* const sums = reinterpret_cast<double*>(bytes);
  A* const scores = reinterpret_cast<A*>(sums + Q);  // G, and below dG, M, E: (t, s) at t * row + s
  A *const dscores = scores + Q * row, *const mixing = dscores + Q * row, *const passed = mixing + Q * row;
  A *const steps = passed + Q * row, *const x_du = steps + Q, *const through_end = x_du + Q;
  A *const from_start = through_end + Q, *const dA_terms = from_start + Q, *const ddt_terms = dA_terms + Q;
  A* const warp_sums = ddt_terms + Q;

  const int group = static_cast<int>(blockIdx.x % groups);
  const Index chunk_of_batch = blockIdx.x / groups, batch = chunk_of_batch / memory.chunks;
  const Index begin = chunk_of_batch % memory.chunks * Q;
  const int tokens = static_cast<int>(::min(Index{Q}, in.length - begin));
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int P = in.headdim, N = in.d_state;
  const T* B = in.B + batch * in.B_batch + begin * in.B_token + group * in.B_group;
  const T* C = in.C + batch * in.C_batch + begin * in.C_token + group * in.C_group;
  A* const dB = memory.dB + Index{blockIdx.x} * Q * N;
  A* const dC = memory.dC + Index{blockIdx.x} * Q * N;
  const auto add_lanes = [](A value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
  };

  for (int i = thread; i < Q * Q; i += 256) {
    const int t = i / Q, s = i % Q;
    A score = 0;
    if (s <= t && t < tokens)
      for (int n = 0; n < N; ++n)
        score += static_cast<A>(C[t * in.C_token + n]) * static_cast<A>(B[s * in.B_token + n]);
    scores[t * row + s] = score;
    dscores[t * row + s] = 0;
  }
  for (int t = warp; t < tokens; t += warps)
    for (int n = lane; n < N; n += 32) dB[Index{t} * N + n] = dC[Index{t} * N + n] = 0;
  for (int head = group * in.heads_per_group; head < (group + 1) * in.heads_per_group; ++head) {
    const Index place = chunk_of_batch * in.nheads + head;
    const A *state = memory.states + place * N * P, *dstate = memory.dstates + place * N * P;
    const T* x = in.x + batch * in.x_batch + begin * in.x_token + head * in.x_head;
    const A* dy = memory.dy + ((batch * in.length + begin) * in.nheads + head) * P;
    const Index dy_token = Index{in.nheads} * P;
    __syncthreads();
    if (thread < Q) sums[thread] = memory.sums[place * Q + thread], steps[thread] = memory.steps[place * Q + thread];
    __syncthreads();
    const double end = sums[Q - 1];

    // Within the chunk: dM, and from it M, dG and E.
    for (int i = thread; i < Q * Q; i += 256) {
      const int t = i / Q, s = i % Q, at = t * row + s;
      A kept = 0, product = 0;
      if (s <= t && t < tokens) {
        for (int p = 0; p < P; ++p) product += dy[t * dy_token + p] * static_cast<A>(x[s * in.x_token + p]);
        kept = std::exp(static_cast<A>(sums[t] - sums[s]));
      }
      const A dscore = product * kept * steps[s];
      mixing[at] = kept * scores[at];
      dscores[at] += dscore;
      passed[at] = s < t ? dscore * scores[at] : A(0);
    }
    // <S, dS'>, by warps.
    A whole = 0;
    for (Index i = thread; i < Index{N} * P; i += 256) whole += state[i] * dstate[i];
    whole = add_lanes(whole);
    if (lane == 0) warp_sums[warp] = whole;
    __syncthreads();

    // du, dx: a warp per token, lanes over channels. dB, dC of this head: lanes over the state.
    for (int s = warp; s < tokens; s += warps) {
      const A to_end = std::exp(static_cast<A>(end - sums[s])), start = std::exp(static_cast<A>(sums[s])),
              step = steps[s];
      A all = 0, later = 0;
      for (int p = lane; p < P; p += 32) {
        A inside = 0, outside = 0;
        for (int t = s; t < tokens; ++t) inside += mixing[t * row + s] * dy[t * dy_token + p];
        for (int n = 0; n < N; ++n) outside += static_cast<A>(B[s * in.B_token + n]) * dstate[Index{n} * P + p];
        outside *= to_end;
        const A x_p = static_cast<A>(x[s * in.x_token + p]), du = inside + outside;
        all += x_p * du;
        later += x_p * outside;
        const A skip = in.D != nullptr ? in.D[head * in.D_head + p * in.D_channel] : A(0);
        if (to.dx != nullptr)
          to.dx[batch * to.dx_batch + (begin + s) * to.dx_token + head * to.dx_head + p] =
              static_cast<T>(step * du + skip * dy[s * dy_token + p]);
      }
      all = add_lanes(all);
      later = add_lanes(later);
      A earlier = 0;
      for (int n = lane; n < N; n += 32) {
        A to_B = 0, to_C = 0;
        for (int p = 0; p < P; ++p) {
          to_B += static_cast<A>(x[s * in.x_token + p]) * dstate[Index{n} * P + p];
          to_C += dy[s * dy_token + p] * state[Index{n} * P + p];
        }
        to_B *= step * to_end;
        to_C *= start;
        earlier += to_C * static_cast<A>(C[s * in.C_token + n]);
        const Index at = Index{s} * N + n;
        dB[at] += to_B;
        dC[at] += to_C;
      }
      earlier = add_lanes(earlier);
      if (lane == 0) x_du[s] = all, through_end[s] = step * later, from_start[s] = earlier;
    }
    // What passes over step t inside the chunk: sums over later rows, then over earlier columns.
    if (thread < Q) {
      A below = 0;
      for (int t = tokens - 1; t >= 0; --t) passed[t * row + thread] = below += passed[t * row + thread];
    }
    for (int p = thread; p < P; p += 256) {
      A dD = 0;
      for (int t = 0; t < tokens; ++t) dD += static_cast<A>(x[t * in.x_token + p]) * dy[t * dy_token + p];
      memory.dD[place * P + p] = dD;
    }
    __syncthreads();
    if (thread < Q) {
      A dA = 0, ddt = 0;
      if (thread < tokens) {
        A da = 0;
        for (int k = 0; k < warps; ++k) da += warp_sums[k];
        da *= std::exp(static_cast<A>(end));
        for (int s = 0; s < thread; ++s) da += passed[thread * row + s] + through_end[s];
        for (int t = thread; t < tokens; ++t) da += from_start[t];
        if (in.log_decay != nullptr) {
          to.dlog_decay[(batch * in.length + begin + thread) * in.nheads + head] = da;
        } else {
          const A raw = static_cast<A>(in.dt[batch * in.dt_batch + (begin + thread) * in.dt_token + head * in.dt_head]);
          dA = steps[thread] * da;
          ddt = (x_du[thread] + in.A[head] * da) *
                discretize_derivative(raw, in.dt_bias != nullptr ? in.dt_bias[head] : A(0), in.options);
          if (to.ddt != nullptr)
            to.ddt[batch * to.ddt_batch + (begin + thread) * to.ddt_token + head * to.ddt_head] = static_cast<T>(ddt);
        }
      }
      dA_terms[thread] = dA;
      ddt_terms[thread] = ddt;
    }
    __syncthreads();
    if (warp == 0) {
      const A dA = add_lanes(dA_terms[lane] + dA_terms[lane + 32]);
      const A ddt = add_lanes(ddt_terms[lane] + ddt_terms[lane + 32]);
      if (lane == 0) memory.dA[place] = dA, memory.ddt_bias[place] = ddt;
    }
  }

  // Through the scores, once for the group.
  for (int t = warp; t < tokens; t += warps)
    for (int n = lane; n < N; n += 32) {
      A to_B = dB[Index{t} * N + n], to_C = dC[Index{t} * N + n];
      for (int s = 0; s <= t; ++s) to_C += dscores[t * row + s] * static_cast<A>(B[s * in.B_token + n]);
      for (int s = t; s < tokens; ++s) to_B += dscores[s * row + t] * static_cast<A>(C[s * in.C_token + n]);
      if (to.dB != nullptr)
        to.dB[batch * to.dB_batch + (begin + t) * to.dB_token + group * to.dB_group + n] = static_cast<T>(to_B);
      if (to.dC != nullptr)
        to.dC[batch * to.dC_batch + (begin + t) * to.dC_token + group * to.dC_group + n] = static_cast<T>(to_C);
    }
}

// Launchers
// -------------------------------------------------------------------------------------------------

/// Cuts the general path's memory from a workspace, or (null) only counts its bytes.
template <class A>
GeneralMemory<A> general_memory(const Sizes& s, Workspace<cuda>* workspace, std::size_t* bytes) {
  GeneralMemory<A> m;
  const auto take = [&]<class Element>(Element*& place, Index count) {
    if (bytes != nullptr) *bytes += Workspace<cuda>::bytes_of<Element>(count);
    if (workspace != nullptr) place = workspace->template take<Element>(count);
  };
  const Index chunks = (s.length + general_tokens - 1) / general_tokens, places = s.batch * chunks * s.nheads;
  m.chunks = static_cast<int>(chunks);
  m.channels = static_cast<int>(s.headdim);
  take(m.steps, places * general_tokens);
  take(m.sums, places * general_tokens);
  take(m.dA, places);
  take(m.ddt_bias, places);
  take(m.dD, places * s.headdim);
  take(m.states, places * s.d_state * s.headdim);
  take(m.dstates, places * s.d_state * s.headdim);
  take(m.dy, s.batch * s.length * s.nheads * s.headdim);
  take(m.dB, s.batch * chunks * s.ngroups * general_tokens * s.d_state);
  take(m.dC, s.batch * chunks * s.ngroups * general_tokens * s.d_state);
  return m;
}

/// The number of blocks of a launch whose blocks are counted along one axis.
inline unsigned grid_of(Index blocks) {
  require(blocks <= 0x7fffffff, "ssd: ", blocks, " blocks are more than a launch can have");
  return static_cast<unsigned>(blocks);
}

template <class T>
void launch_general_backward(const DeviceInputs<T>& in, const DeviceUpstream<T>& upstream, const DeviceGradients<T>& to,
                             const Sizes& s, Workspace<cuda>& workspace) {
  using A = accumulate_t<T>;
  const auto stream = cuda_runtime::current_stream().handle;
  const GeneralMemory<A> memory = general_memory<A>(s, &workspace, nullptr);
  const unsigned blocks = grid_of(s.batch * memory.chunks), heads = grid_of(s.batch * memory.chunks * s.nheads);
  const unsigned groups = grid_of(s.batch * memory.chunks * s.ngroups);
  const unsigned elements = grid_of(s.batch * s.nheads * ((s.d_state * s.headdim + 255) / 256));
  if (heads > 0) {
    ssd_chunk_decays_kernel<T, general_tokens, double>
        <<<dim3(blocks, static_cast<unsigned>((s.nheads + 7) / 8)), 256, 0, stream>>>(in, memory, 1.0);
    cuda_runtime::check_launch("ssd_chunk_decays_kernel");
  }
  if (blocks > 0 && elements > 0) {
    ssd_general_walk_kernel<T, false><<<elements, 256, 0, stream>>>(in, upstream, to, memory);
    cuda_runtime::check_launch("ssd_general_walk_kernel");
  }
  if (heads > 0) {
    ssd_general_gate_kernel<<<heads, 256, 0, stream>>>(in, upstream, to, memory);
    cuda_runtime::check_launch("ssd_general_gate_kernel");
  }
  if (elements > 0) {
    ssd_general_walk_kernel<T, true><<<elements, 256, 0, stream>>>(in, upstream, to, memory);
    cuda_runtime::check_launch("ssd_general_walk_kernel (reverse)");
  }
  if (groups > 0) {
    constexpr int bytes =
        general_tokens * 8 + (4 * general_tokens * (general_tokens + 1) + 6 * general_tokens + 8) * int{sizeof(A)};
    const auto kernel = ssd_general_backward_kernel<T>;
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute");
    kernel<<<groups, 256, bytes, stream>>>(in, to, memory, static_cast<int>(s.ngroups));
    cuda_runtime::check_launch("ssd_general_backward_kernel");
  }
  if (s.nheads > 0) {
    ssd_parameter_sums_kernel<<<grid_of(s.nheads), 256, 0, stream>>>(
        to, static_cast<int>(s.nheads), s.batch * memory.chunks, ChunkMemory<A, double>(memory));
    cuda_runtime::check_launch("ssd_parameter_sums_kernel");
  }
}

}  // namespace detail
}  // namespace diffmamba::ssd
