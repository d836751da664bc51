// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::uintptr_t

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/overlap.cuh"
#include "diffmamba/device/pack.cuh"
#include "diffmamba/math/sigmoid.cuh"
#include "diffmamba/ops/ssd/ssd.hpp"

/// Decoding on an NVIDIA GPU: memory is what it costs, so every state is read and written once, whatever the number of
/// tokens. A row of the state (a channel of a head) lies in the registers of some lanes of a warp, 16 bytes each, while
/// its tokens pass, in float also where memory has 16 bits; B and C come out of the first-level cache. How many rows a
/// warp owns follows from the batch: one keeps all multiprocessors busy for a single sequence, four or eight have more
/// loads in flight.
namespace diffmamba::ssd {
namespace detail {

using namespace diffmamba::detail;

/// What the kernels need: pointers and strides, in elements. S: of the states in memory.
template <class T, class S>
struct StepOperands {
  const T *x, *dt, *B, *C, *z;
  const accumulate_t<T>*A, *D, *dt_bias;
  const Index* slots;  // or null
  S* state;
  T* out;
  Index x_batch, x_token, x_head, dt_batch, dt_token, dt_head, B_batch, B_token, B_group, C_batch, C_token, C_group;
  Index z_batch, z_token, z_head, D_head, D_channel, state_slot, state_head, state_channel, out_batch, out_token,
      out_head;
  Index slot_count, rows;  // rows: of all states that are touched
  int tokens, nheads, headdim, d_state, heads_per_group;
  Options options;

  StepOperands(const StepInputs<T, cuda>& in, const View<S, 4, cuda>& ssm_state, const Options& how,
               const View<T, 4, cuda>& to)
      : x(in.x.data()),
        dt(in.dt.data()),
        B(in.B.data()),
        C(in.C.data()),
        z(in.z.data()),
        A(in.A.data()),
        D(in.D ? in.D.data() : in.D_per_channel.data()),
        dt_bias(in.dt_bias.data()),
        slots(in.state_indices.data()),
        state(ssm_state.data()),
        out(to.data()),
        x_batch(in.x.stride(0)),
        x_token(in.x.stride(1)),
        x_head(in.x.stride(2)),
        dt_batch(in.dt.stride(0)),
        dt_token(in.dt.stride(1)),
        dt_head(in.dt.stride(2)),
        B_batch(in.B.stride(0)),
        B_token(in.B.stride(1)),
        B_group(in.B.stride(2)),
        C_batch(in.C.stride(0)),
        C_token(in.C.stride(1)),
        C_group(in.C.stride(2)),
        z_batch(in.z.stride(0)),
        z_token(in.z.stride(1)),
        z_head(in.z.stride(2)),
        D_head(in.D ? in.D.stride(0) : in.D_per_channel.stride(0)),
        D_channel(in.D ? 0 : in.D_per_channel.stride(1)),
        state_slot(ssm_state.stride(0)),
        state_head(ssm_state.stride(1)),
        state_channel(ssm_state.stride(2)),
        out_batch(to.stride(0)),
        out_token(to.stride(1)),
        out_head(to.stride(2)),
        slot_count(ssm_state.extent(0)),
        rows(in.x.extent(0) * in.x.extent(2) * in.x.extent(3)),
        tokens(static_cast<int>(in.x.extent(1))),
        nheads(static_cast<int>(in.x.extent(2))),
        headdim(static_cast<int>(in.x.extent(3))),
        d_state(static_cast<int>(in.B.extent(3))),
        heads_per_group(static_cast<int>(in.x.extent(2) / in.B.extent(2))),
        options(how) {}

  /// Slot of a row of the batch; -1: padding, as is an index that names no slot.
  __device__ Index slot(Index b) const {
    if (slots == nullptr) return b;
    const Index index = slots[b];
    return 0 <= index && index < slot_count ? index : -1;
  }
  __device__ accumulate_t<T> skip(int h, int p) const {
    return D != nullptr ? D[h * D_head + p * D_channel] : accumulate_t<T>(0);
  }
  __device__ T gate(Index b, int t, int h, int p) const {
    return z != nullptr ? z[b * z_batch + t * z_token + h * z_head + p] : T{};
  }
  __device__ T gated(accumulate_t<T> y, T gate) const {
    const auto value = static_cast<accumulate_t<T>>(gate);
    return narrow<T>(z != nullptr ? y * value * sigmoid_for<T>(value) : y);
  }
};

/// Elements of a row that a lane holds.
template <class S>
inline constexpr int step_lane = pack_size<S>;

// CUDA kernels

/// d_state = Lanes * step_lane: `Lanes` lanes hold a row, a warp owns Rows times 32 / Lanes rows of one head, which lie
/// apart by 32 / Lanes. grid: warps over (batch, nheads, pieces of a head).
template <class T, class S, int Lanes, int Rows>
__global__ void __launch_bounds__(128) ssd_step_kernel(StepOperands<T, S> in) {
  constexpr int side_by_side = 32 / Lanes, each = step_lane<S>;
  const int lane = static_cast<int>(threadIdx.x) % 32, part = lane % Lanes;
  const int pieces = (in.headdim + Rows * side_by_side - 1) / (Rows * side_by_side);
  const Index item = Index{blockIdx.x} * 4 + threadIdx.x / 32;
  const Index sequence = item / pieces, b = sequence / in.nheads;
  const int h = static_cast<int>(sequence % in.nheads), group = h / in.heads_per_group;
  if (sequence >= in.rows / in.headdim) return;
  const int first = static_cast<int>(item % pieces) * Rows * side_by_side + lane / Lanes;
  cuda_runtime::let_next_kernel_begin();
  if (in.slots == nullptr && part == 0) {  // while the kernel before still computes x, B and C
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      if (const int p = first + r * side_by_side; p < in.headdim)
        cuda_runtime::prefetch_to_l2(in.state + b * in.state_slot + h * in.state_head + p * in.state_channel,
                                     Lanes * 16);
  }
  if (lane == 0) {
    cuda_runtime::touch(in.A + h);
    if (in.dt_bias != nullptr) cuda_runtime::touch(in.dt_bias + h);
    if (in.D != nullptr) cuda_runtime::touch(in.D + h * in.D_head);
  }
  cuda_runtime::wait_for_earlier_kernels();
  const Index slot = in.slot(b);
  float state[Rows][each];
  S* const place = in.state + (slot < 0 ? 0 : slot) * in.state_slot + h * in.state_head + part * each;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    const int p = first + r * side_by_side;
    const bool there = slot >= 0 && p < in.headdim;
    (there ? load_pack<each>(place + p * in.state_channel) : zero_pack<each, S>()).widen(state[r]);
  }
  const float A = in.A[h], bias = in.dt_bias != nullptr ? in.dt_bias[h] : 0.0f;
  // In the end every lane has the sums of all rows; the first ones write one each.
  static_assert(Rows <= Lanes);
  const int own = first + part * side_by_side;
  const bool owns = part < Rows && own < in.headdim;
  const float skip = owns ? in.skip(h, own) : 0.0f;
  for (int t = 0; t < in.tokens; ++t) {
    const T gate = owns ? in.gate(b, t, h, own) : T{};
    const float dt =
        discretize(static_cast<float>(in.dt[b * in.dt_batch + t * in.dt_token + h * in.dt_head]), bias, in.options);
    const float kept = decay(dt, A);
    float B[each], C[each];
    load_pack<each>(in.B + b * in.B_batch + t * in.B_token + group * in.B_group + part * each).widen(B);
    load_pack<each>(in.C + b * in.C_batch + t * in.C_token + group * in.C_group + part * each).widen(C);
    float value[Rows], y[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const int p = first + r * side_by_side;
      value[r] = p < in.headdim ? static_cast<float>(in.x[b * in.x_batch + t * in.x_token + h * in.x_head + p]) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const float input = dt * value[r];
      y[r] = 0;
#pragma unroll
      for (int e = 0; e < each; e += 4) {
        float* const s = state[r] + e;
#pragma unroll
        for (int i = 0; i < 4; ++i) s[i] = kept * s[i] + input * B[e + i];
        const float sum = (s[0] * C[e] + s[1] * C[e + 1]) + (s[2] * C[e + 2] + s[3] * C[e + 3]);
        y[r] = e == 0 ? sum : y[r] + sum;
      }
    }
#pragma unroll
    for (int distance = Lanes / 2; distance > 0; distance /= 2)
#pragma unroll
      for (int r = 0; r < Rows; ++r) y[r] += __shfl_xor_sync(0xffffffffu, y[r], distance);
    float sum = y[0], own_value = value[0];
#pragma unroll
    for (int r = 1; r < Rows; ++r)
      if (part == r) sum = y[r], own_value = value[r];
    if (owns)
      in.out[b * in.out_batch + t * in.out_token + h * in.out_head + own] =
          slot >= 0 ? in.gated(sum + skip * own_value, gate) : T{};
  }
  if (slot < 0) return;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    const int p = first + r * side_by_side;
    if (p < in.headdim) store_pack<each>(place + p * in.state_channel, state[r]);
  }
}

/// Any type, size and alignment: a warp for each row, lanes over d_state.
template <class T, class S>
__global__ void __launch_bounds__(128) ssd_step_any_kernel(StepOperands<T, S> in) {
  using Real = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Index item = Index{blockIdx.x} * 4 + threadIdx.x / 32;
  if (item >= in.rows) return;
  const int p = static_cast<int>(item % in.headdim), h = static_cast<int>(item / in.headdim % in.nheads);
  const Index b = item / in.headdim / in.nheads, slot = in.slot(b);
  const int group = h / in.heads_per_group;
  S* const state = in.state + (slot < 0 ? 0 : slot) * in.state_slot + h * in.state_head + p * in.state_channel;
  const Real A = in.A[h], bias = in.dt_bias != nullptr ? in.dt_bias[h] : Real(0);
  for (int t = 0; t < in.tokens; ++t) {
    T* const out = in.out + b * in.out_batch + t * in.out_token + h * in.out_head + p;
    if (slot < 0) {
      if (lane == 0) *out = static_cast<T>(Real(0));
      continue;
    }
    const Real dt =
        discretize(static_cast<Real>(in.dt[b * in.dt_batch + t * in.dt_token + h * in.dt_head]), bias, in.options);
    const Real kept = decay(dt, A);
    const Real value = static_cast<Real>(in.x[b * in.x_batch + t * in.x_token + h * in.x_head + p]);
    const T* const B = in.B + b * in.B_batch + t * in.B_token + group * in.B_group;
    const T* const C = in.C + b * in.C_batch + t * in.C_token + group * in.C_group;
    Real y = 0;
    for (int n = lane; n < in.d_state; n += 32) {
      const Real next = kept * static_cast<Real>(state[n]) + dt * value * static_cast<Real>(B[n]);
      state[n] = static_cast<S>(next);
      y += next * static_cast<Real>(C[n]);
    }
    for (int distance = 16; distance > 0; distance /= 2) y += __shfl_xor_sync(0xffffffffu, y, distance);
    if (lane == 0) *out = in.gated(y + in.skip(h, p) * value, in.gate(b, t, h, p));
  }
}

// Launchers

inline unsigned step_blocks(Index warps) {
  const Index blocks = (warps + 3) / 4;
  require(blocks < (Index{1} << 31), "ssd::step: a batch of this size does not fit into one launch");
  return static_cast<unsigned>(blocks);
}

template <class T, class S, int Lanes, int Rows>
void launch_step_rows(const StepOperands<T, S>& in, CUstream_st* stream) {
  constexpr int rows = Rows * 32 / Lanes;
  const Index pieces = (in.headdim + rows - 1) / rows;
  const unsigned blocks = step_blocks(in.rows / in.headdim * pieces);
  const auto kernel = ssd_step_kernel<T, S, Lanes, Rows>;
  if (blocks <= 1024) {  // all of them on the GPU at once, and room for the next kernel's
    cuda_runtime::launch_overlapped("ssd_step_kernel", kernel, blocks, 128, 0, stream, in);
  } else {
    kernel<<<blocks, 128, 0, stream>>>(in);
    cuda_runtime::check_launch("ssd_step_kernel");
  }
}

template <int State, class T, class S>
void launch_step(const StepOperands<T, S>& in, CUstream_st* stream) {
  // About 16 warps of one row each for every multiprocessor of the largest GPUs: then several rows a warp.
  constexpr int lanes = State / step_lane<S>;
  const Index warps = in.rows * lanes / 32;
  if (warps <= 4096)
    launch_step_rows<T, S, lanes, 1>(in, stream);
  else if (warps <= 32768)
    launch_step_rows<T, S, lanes, (lanes < 4 ? lanes : 4)>(in, stream);
  else
    launch_step_rows<T, S, lanes, (lanes < 8 ? (lanes < 4 ? lanes : 4) : 8)>(in, stream);
}

/// Whether rows of states can be read by 16 bytes, and those of B and C by as many elements.
template <class T, class S>
bool step_is_aligned(const StepOperands<T, S>& in) {
  constexpr int each = step_lane<S>;
  const auto aligned = [](const void* data, std::size_t unit) {
    return reinterpret_cast<std::uintptr_t>(data) % unit == 0;
  };
  bool good = aligned(in.state, 16) && aligned(in.B, each * sizeof(T)) && aligned(in.C, each * sizeof(T));
  // The stride of an axis of one element says nothing.
  const bool groups = in.nheads > in.heads_per_group, tokens = in.tokens > 1;
  const Index strides[] = {in.state_slot,
                           in.state_head,
                           in.state_channel,
                           in.B_batch,
                           in.C_batch,
                           tokens ? in.B_token : 0,
                           tokens ? in.C_token : 0,
                           groups ? in.B_group : 0,
                           groups ? in.C_group : 0};
  for (const Index stride : strides) good = good && stride % each == 0;
  return good;
}

template <class T, class S>
void step_on_gpu(const StepInputs<T, cuda>& in, const View<S, 4, cuda>& ssm_state, const Options& options,
                 const View<T, 4, cuda>& out) {
  check(in, ssm_state, options, out);
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const StepOperands<T, S> operands(in, ssm_state, options, out);
  if (operands.rows == 0 || operands.tokens == 0) return;
  if constexpr (!std::is_same_v<T, double>) {
    if (step_is_aligned(operands)) {
      if (operands.d_state == 128) return launch_step<128>(operands, stream.handle);
      if (operands.d_state == 64) return launch_step<64>(operands, stream.handle);
      if (operands.d_state == 32) return launch_step<32>(operands, stream.handle);
      if (operands.d_state == 16) return launch_step<16>(operands, stream.handle);
    }
  }
  ssd_step_any_kernel<<<step_blocks(operands.rows), 128, 0, stream.handle>>>(operands);
  cuda_runtime::check_launch("ssd_step_any_kernel");
}

}  // namespace detail

/// Advances the states in place and writes the outputs of the new tokens. Throws Error.
template <class T>
void step(const StepInputs<T, cuda>& in, const std::type_identity_t<View<accumulate_t<T>, 4, cuda>>& ssm_state,
          const Options& options, const std::type_identity_t<View<T, 4, cuda>>& out) {
  detail::step_on_gpu<T, accumulate_t<T>>(in, ssm_state, options, out);
}
template <class T>
requires(sizeof(T) == 2) void step(const StepInputs<T, cuda>& in,
                                   const std::type_identity_t<View<T, 4, cuda>>& ssm_state, const Options& options,
                                   const std::type_identity_t<View<T, 4, cuda>>& out) {
  detail::step_on_gpu<T, T>(in, ssm_state, options, out);
}

}  // namespace diffmamba::ssd
