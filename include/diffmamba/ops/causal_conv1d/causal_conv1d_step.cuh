// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/overlap.cuh"
#include "diffmamba/device/pack.cuh"
#include "diffmamba/math/sigmoid.cuh"
#include "diffmamba/ops/causal_conv1d/causal_conv1d.hpp"
#include "diffmamba/tensor/takes_packs.hpp"

/// New tokens against a kept state, on an NVIDIA GPU: a thread per channel of a sequence. The outputs come first, then
/// the state moves on, so that the thread may write where it has read.
namespace diffmamba::causal_conv1d {
namespace detail {

using namespace diffmamba::detail;

template <class T>
struct DeviceStep {
  using A = accumulate_t<T>;
  const T* x;
  T* out;
  const A *weight, *bias;
  A* state;
  const Index *cache_seqlens, *slots;
  Index x_batch, x_token, out_batch, out_token, weight_channel, state_slot, state_channel, state_slots;
  Index tokens, channels;
  unsigned channel_blocks;  // blocks of one sequence
  int width, size;          // size: columns of a state
  bool silu;
};

// CUDA kernels

/// Decoding as our models do it: one token, width 4 and a state of four columns, both read in one access.
template <class T>
__global__ void causal_conv1d_step_one_kernel(DeviceStep<T> in) {
  using A = accumulate_t<T>;
  const Index channel = Index{blockIdx.x % in.channel_blocks} * blockDim.x + threadIdx.x;
  const Index batch = blockIdx.x / in.channel_blocks;
  if (channel >= in.channels) return;
  cuda_runtime::let_next_kernel_begin();
  if constexpr (sizeof(A) == 4) {  // while the kernel before still computes x
    cuda_runtime::prefetch_to_l2(in.weight + channel * in.weight_channel, 16);
    if (in.slots == nullptr)
      cuda_runtime::prefetch_to_l2(in.state + batch * in.state_slot + channel * in.state_channel, 16);
  }
  cuda_runtime::wait_for_earlier_kernels();
  const Index slot = in.slots != nullptr ? in.slots[batch] : batch;
  T& out = in.out[batch * in.out_batch + channel];
  if (slot < 0 || slot >= in.state_slots) {
    out = narrow<T>(A(0));
    return;
  }
  A* const place = in.state + slot * in.state_slot + channel * in.state_channel;
  A weight[4], state[4];
  if constexpr (sizeof(A) == 4) {
    load_pack<4>(in.weight + channel * in.weight_channel).widen(weight);
    load_pack<4>(place).widen(state);
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) weight[w] = in.weight[channel * in.weight_channel + w], state[w] = place[w];
  }
  const A now = static_cast<A>(in.x[batch * in.x_batch + channel]);
  A sum = weight[3] * now + (in.bias != nullptr ? in.bias[channel] : A(0));
#pragma unroll
  for (int w = 0; w < 3; ++w) sum += weight[w] * state[w + 1], state[w] = state[w + 1];
  state[3] = now;
  if constexpr (sizeof(A) == 4) {
    store_pack<4>(place, state);
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) place[w] = state[w];
  }
  if (in.silu) sum *= sigmoid_for<T>(sum);
  out = narrow<T>(sum);
}

/// Any width, state and number of tokens; a state that is shifted or a ring.
template <class T>
__global__ void causal_conv1d_step_kernel(DeviceStep<T> in) {
  using A = accumulate_t<T>;
  const Index channel = Index{blockIdx.x % in.channel_blocks} * blockDim.x + threadIdx.x;
  const Index batch = blockIdx.x / in.channel_blocks;
  if (channel >= in.channels) return;
  const Index slot = in.slots != nullptr ? in.slots[batch] : batch;
  const bool padding = slot < 0 || slot >= in.state_slots;
  const bool ring = in.cache_seqlens != nullptr;
  const Index count = ring ? in.cache_seqlens[batch] : 0;  // inputs before the first token
  const T* const x = in.x + batch * in.x_batch + channel;
  T* const out = in.out + batch * in.out_batch + channel;
  A* const state = padding ? nullptr : in.state + slot * in.state_slot + channel * in.state_channel;
  const A* const weight = in.weight + channel * in.weight_channel;
  for (Index t = 0; t < in.tokens; ++t) {
    if (padding) {
      out[t * in.out_token] = narrow<T>(A(0));
      continue;
    }
    A sum = weight[in.width - 1] * static_cast<A>(x[t * in.x_token]);
    if (in.bias != nullptr) sum += in.bias[channel];
    for (int w = 0; w + 1 < in.width; ++w) {
      const Index s = t - (in.width - 1) + w;  // before 0 in the state: column size + s, or that of input count + s
      A value;
      if (s >= 0)
        value = static_cast<A>(x[s * in.x_token]);
      else
        value = state[ring ? (count + s + in.size) % in.size : in.size + s];
      sum += weight[w] * value;
    }
    if (in.silu) sum *= sigmoid_for<T>(sum);
    out[t * in.out_token] = narrow<T>(sum);
  }
  if (padding) return;
  if (ring) {
    for (Index t = in.tokens > in.size ? in.tokens - in.size : 0; t < in.tokens; ++t)
      state[(count + t) % in.size] = static_cast<A>(x[t * in.x_token]);
  } else {
    for (int j = 0; j < in.size; ++j) {
      const Index from = j + in.tokens;
      state[j] = from < in.size ? state[from] : static_cast<A>(x[(from - in.size) * in.x_token]);
    }
  }
}

}  // namespace detail

template <class T>
void step(const StepInputs<T, cuda>& in, const std::type_identity_t<View<accumulate_t<T>, 3, cuda>>& conv_state,
          const Options& options, const std::type_identity_t<View<T, 3, cuda>>& out) {
  using A = accumulate_t<T>;
  check(in, conv_state, out);
  require(!in.cache_seqlens || conv_state.extent(2) > 0, "causal_conv1d::step: a ring of no columns holds no input");
  if (in.x.size() == 0) return;
  constexpr int threads = 128;
  const Index batch = in.x.extent(0), channels = in.x.extent(2), channel_blocks = (channels + threads - 1) / threads;
  require(batch * channel_blocks < Index{1} << 31, "causal_conv1d::step: x is ", in.x.extents(),
          ", more than one launch takes");
  const detail::DeviceStep<T> arguments{.x = in.x.data(),
                                        .out = out.data(),
                                        .weight = in.weight.data(),
                                        .bias = in.bias.data(),
                                        .state = conv_state.data(),
                                        .cache_seqlens = in.cache_seqlens.data(),
                                        .slots = in.conv_state_indices.data(),
                                        .x_batch = in.x.stride(0),
                                        .x_token = in.x.stride(1),
                                        .out_batch = out.stride(0),
                                        .out_token = out.stride(1),
                                        .weight_channel = in.weight.stride(0),
                                        .state_slot = conv_state.stride(0),
                                        .state_channel = conv_state.stride(1),
                                        .state_slots = conv_state.extent(0),
                                        .tokens = in.x.extent(1),
                                        .channels = channels,
                                        .channel_blocks = static_cast<unsigned>(channel_blocks),
                                        .width = static_cast<int>(in.weight.extent(1)),
                                        .size = static_cast<int>(conv_state.extent(2)),
                                        .silu = options.activation == Activation::silu};
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const unsigned blocks = static_cast<unsigned>(batch * channel_blocks);
  const bool one = arguments.tokens == 1 && arguments.width == 4 && arguments.size == 4 && !in.cache_seqlens &&
                   (sizeof(A) != 4 || (detail::takes_packs<4>(View<const A, 2, cuda>(in.weight)) &&
                                       detail::takes_packs<4>(View<A, 3, cuda>(conv_state))));
  if (one && blocks <= 1024) {  // all of them on the GPU at once, and room for the next kernel's
    cuda_runtime::launch_overlapped("causal_conv1d_step_one_kernel", detail::causal_conv1d_step_one_kernel<T>, blocks,
                                    threads, 0, stream.handle, arguments);
    return;
  }
  if (one)
    detail::causal_conv1d_step_one_kernel<T><<<blocks, threads, 0, stream.handle>>>(arguments);
  else
    detail::causal_conv1d_step_kernel<T><<<blocks, threads, 0, stream.handle>>>(arguments);
  cuda_runtime::check_launch("causal_conv1d_step_kernel");
}

}  // namespace diffmamba::causal_conv1d
