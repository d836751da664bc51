// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/selective_scan/selective_scan_device.cuh"
#include "diffmamba/tensor/takes_packs.hpp"

/// One token of the recurrence on an NVIDIA GPU, the state in place. A few neighbouring threads share a channel, each
/// with four neighbouring states at a time where rows lie on 16 bytes: reading and writing the state is the cost.
namespace diffmamba::selective_scan {
namespace detail {

/// Strides of a tensor (batch, nheads, headdim).
template <class T>
struct HeadsView {
  T* data;
  Index batch, head, channel;
  explicit HeadsView(const View<T, 3, cuda>& view)
      : data(view.data()), batch(view.stride(0)), head(view.stride(1)), channel(view.stride(2)) {}
  __device__ T& operator()(Index b, Index h, Index i) const { return data[b * batch + h * head + i * channel]; }
};

template <class T>
struct DeviceStep {
  using S = accumulate_t<T>;
  HeadsView<const T> x, dt, z;
  HeadsView<const T> B, C;  // (batch, ngroups, d_state)
  const S *A, *D, *dt_bias;
  Index A_head, A_channel, A_state, D_head, D_channel, bias_head, bias_channel;
  const Index* slots;
  Index slots_step;
  S* state;
  Index state_slot, state_head, state_channel;
  HeadsView<T> out;
  unsigned rows;
  int nheads, headdim, d_state, heads_per_group, lanes;
  bool softplus;

  DeviceStep(const HeadStepInputs<T, cuda>& in, const View<S, 4, cuda>& to_state, const Options& options,
             const View<T, 3, cuda>& to)
      : x(in.x),
        dt(in.dt),
        z(in.z),
        B(in.B),
        C(in.C),
        A(in.A.data()),
        D(in.D.data()),
        dt_bias(in.dt_bias.data()),
        A_head(in.A.stride(0)),
        A_channel(in.A.stride(1)),
        A_state(in.A.stride(2)),
        D_head(in.D.stride(0)),
        D_channel(in.D.stride(1)),
        bias_head(in.dt_bias.stride(0)),
        bias_channel(in.dt_bias.stride(1)),
        slots(in.state_batch_indices.data()),
        slots_step(in.state_batch_indices.stride(0)),
        state(to_state.data()),
        state_slot(to_state.stride(0)),
        state_head(to_state.stride(1)),
        state_channel(to_state.stride(2)),
        out(to),
        rows(static_cast<unsigned>(in.x.size())),
        nheads(static_cast<int>(in.x.extent(1))),
        headdim(static_cast<int>(in.x.extent(2))),
        d_state(static_cast<int>(in.A.extent(2))),
        heads_per_group(nheads / static_cast<int>(in.B.extent(1))),
        softplus(options.delta_softplus) {}
};

// CUDA kernels

/// `lanes` threads for every channel, `Pack` states at a time.
template <class T, int Pack>
__global__ void __launch_bounds__(128) selective_scan_step_kernel(DeviceStep<T> in) {
  using S = accumulate_t<T>;
  const unsigned index =
      blockIdx.x * (128u / static_cast<unsigned>(in.lanes)) + threadIdx.x / static_cast<unsigned>(in.lanes);
  const int lane = static_cast<int>(threadIdx.x) % in.lanes;
  const bool there = index < in.rows;
  const unsigned row = there ? index : in.rows - 1;
  const int i = static_cast<int>(row % static_cast<unsigned>(in.headdim));
  const unsigned outer = row / static_cast<unsigned>(in.headdim);
  const int head = static_cast<int>(outer % static_cast<unsigned>(in.nheads));
  const Index b = outer / static_cast<unsigned>(in.nheads);
  const Index slot = in.slots != nullptr ? in.slots[b * in.slots_step] : b;
  const bool active = there && slot >= 0;

  const S x = static_cast<S>(in.x(b, head, i));
  S dt = static_cast<S>(in.dt(b, head, i));
  if (in.dt_bias != nullptr) dt += in.dt_bias[head * in.bias_head + i * in.bias_channel];
  if (in.softplus) dt = softplus_step(dt).dt;
  const S dt_u = dt * x;
  const T* const B = &in.B(b, head / in.heads_per_group, 0);
  const T* const C = &in.C(b, head / in.heads_per_group, 0);
  const S* const A = in.A + head * in.A_head + i * in.A_channel;
  S* const state = in.state + slot * in.state_slot + head * in.state_head + i * in.state_channel;
  S y = 0;
  if (active)
    for (int n = lane * Pack; n < in.d_state; n += in.lanes * Pack) {
      const auto before = diffmamba::detail::load_pack<Pack>(state + n);
      diffmamba::detail::Pack<S, Pack> after;
#pragma unroll
      for (int k = 0; k < Pack; ++k) {
        const S decay = element::decay(dt, A[(n + k) * in.A_state] * S(element::log2e));
        after.elements[k] = element::advance(before.elements[k], decay, dt_u, static_cast<S>(B[n + k]));
        y = element::multiply_add(after.elements[k], static_cast<S>(C[n + k]), y);
      }
      *reinterpret_cast<diffmamba::detail::Pack<S, Pack>*>(state + n) = after;
    }
  for (int distance = in.lanes / 2; distance > 0; distance /= 2) y += __shfl_xor_sync(0xffffffffu, y, distance);
  if (!there || lane != 0) return;
  if (in.D != nullptr) y = element::multiply_add(in.D[head * in.D_head + i * in.D_channel], x, y);
  if (in.z.data != nullptr) {
    const S z = static_cast<S>(in.z(b, head, i));
    y *= z * gate_sigmoid(z);
  }
  in.out(b, head, i) = diffmamba::detail::narrow<T>(active ? y : S(0));
}

}  // namespace detail

// Launchers

template <class T>
void step(const HeadStepInputs<T, cuda>& in, const View<accumulate_t<T>, 4, cuda>& state, const Options& options,
          const View<T, 3, cuda>& out) {
  using S = accumulate_t<T>;
  check(in, state, out);
  if (in.x.size() == 0) return;
  require(in.x.size() < (Index{1} << 31), "selective_scan::step: x, ", in.x.extents(), ", is too large for a GPU");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  detail::DeviceStep<T> inputs(in, state, options, out);
  constexpr int pack = 16 / static_cast<int>(sizeof(S));
  const bool packs = diffmamba::detail::takes_packs<pack>(state);
  const int wanted = packs ? inputs.d_state / pack : inputs.d_state;
  inputs.lanes = 1;
  while (inputs.lanes < wanted && inputs.lanes < 32) inputs.lanes *= 2;
  const unsigned rows_per_block = 128u / static_cast<unsigned>(inputs.lanes);
  const unsigned blocks = (inputs.rows + rows_per_block - 1) / rows_per_block;
  if (packs)
    detail::selective_scan_step_kernel<T, pack><<<blocks, 128, 0, stream.handle>>>(inputs);
  else
    detail::selective_scan_step_kernel<T, 1><<<blocks, 128, 0, stream.handle>>>(inputs);
  cuda_runtime::check_launch("selective_scan_step_kernel");
}

/// The Mamba-1 form is the other one with a head for each group of B and C.
template <class T>
void step(const StepInputs<T, cuda>& in, const View<accumulate_t<T>, 3, cuda>& state, const Options& options,
          const View<T, 2, cuda>& out) {
  const HeadStepInputs<T, cuda> heads = as_heads(in);
  const Index groups = in.B.extent(1);
  require_shape("selective_scan::step", "out", out, in.u.extents());
  step<T>(heads, as_heads(state, in.u.extent(1), groups, in.A.extent(1)), options,
          detail::rows_as_heads<T, cuda>(out, groups));
}

}  // namespace diffmamba::selective_scan
