// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/causal_conv1d/causal_conv1d_tile.cuh"

/// The convolution on an NVIDIA GPU; see causal_conv1d_tile.cuh. Widths 2, 3 and 4 keep their inputs in registers; any
/// other width reads them again for every output, from the caches.
namespace diffmamba::causal_conv1d {
namespace detail {

// CUDA kernels

template <class T, int Width, bool Packs>
__global__ void __launch_bounds__(block_threads)
    causal_conv1d_forward_kernel(DeviceInputs<T> in, T* out, Index out_batch, Index out_token, Tiling tiling) {
  using A = accumulate_t<T>;
  constexpr int V = lane_channels<T>, S = stage_tokens<T>, strip = strip_channels<T>;
  __shared__ __align__(16) A weights[(Width + 1) * strip];
  __shared__ __align__(16) T stages[block_runs][2][S * strip];
  const Place<T> place(tiling, in.length, in.channels);
  stage_weights<Width>(in, place.first_channel, weights);
  if (place.run >= tiling.runs) return;

  const Rows<T, Packs> x{in.x + place.batch * in.x_batch + place.first * in.x_token + place.first_channel, in.x_token,
                         place.tokens, in.channels - place.first_channel};
  x.fetch(stages[place.warp][0], 0, place.lane);
  mma::commit_copies();
  A weight[Width][V], bias[V], window[Width - 1][V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int w = 0; w < Width; ++w) weight[w][i] = weights[w * strip + place.lane * V + i];
    bias[i] = weights[Width * strip + place.lane * V + i];
  }
  inputs_before<Width>(in, place, window);
  T* y = out + place.batch * out_batch + place.first * out_token + place.channel;
  for (int t = 0, stage = 0; t < place.tokens; t += S, stage ^= 1) {
    x.fetch(stages[place.warp][stage ^ 1], t + S, place.lane);
    mma::commit_copies();
    mma::wait_for_copies<1>();
    __syncwarp();
    const T* const rows = stages[place.warp][stage] + place.lane * V;
#pragma unroll
    for (int u = 0; u < S; ++u, y += out_token) {
      A now[V], sum[V];
      load_pack<V>(rows + u * strip).widen(now);
      weighted_sum<Width>(weight, bias, window, now, sum);
      push(window, now);
      if (in.silu)
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] *= sigmoid_for<T>(sum[i]);
      if (place.active && t + u < place.tokens) store_row<Packs>(y, sum, place.count);
    }
    __syncwarp();
  }
}

/// Any width: a warp as above, its lanes over the channels of the strip.
template <class T>
__global__ void causal_conv1d_forward_any_width_kernel(DeviceInputs<T> in, T* out, Index out_batch, Index out_token,
                                                       Tiling tiling) {
  using A = accumulate_t<T>;
  const Place<T> place(tiling, in.length, in.channels);
  if (place.run >= tiling.runs) return;
  const int end = ::min(in.channels, place.first_channel + strip_channels<T>);
  for (Index t = place.first; t < place.first + place.tokens; ++t)
    for (int channel = place.first_channel + place.lane; channel < end; channel += 32) {
      A sum = in.sum(place.batch, t, channel);
      if (in.silu) sum *= sigmoid_for<T>(sum);
      out[place.batch * out_batch + t * out_token + channel] = narrow<T>(sum);
    }
}

/// One thread an element of the final state.
template <class T>
__global__ void causal_conv1d_final_state_kernel(DeviceInputs<T> in, View<accumulate_t<T>, 3, cuda> final_state) {
  const int state = in.width - 1;
  const Index size = final_state.size();
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += Index{gridDim.x} * blockDim.x) {
    const Index row = i / state, batch = row / in.channels;
    const int j = static_cast<int>(i % state), channel = static_cast<int>(row % in.channels);
    final_state(batch, channel, j) = in.input(batch, in.length - state + j, channel);
  }
}

// Launchers

template <class T, bool Packs>
void launch_forward(const DeviceInputs<T>& in, const View<T, 3, cuda>& out) {
  constexpr int strip = strip_channels<T>;
  const Index batch = out.extent(0);
  const Tiling tiling(strip, in.channels, batch, in.length, Tiling::tokens(strip, in.channels, batch, in.length, 32));
  if (tiling.blocks() == 0) return;
  const auto launch = [&](auto kernel) {
    kernel<<<tiling.blocks(), block_threads, 0, cuda_runtime::current_stream().handle>>>(in, out.data(), out.stride(0),
                                                                                         out.stride(1), tiling);
    cuda_runtime::check_launch("causal_conv1d_forward_kernel");
  };
  if (in.width == 4) return launch(causal_conv1d_forward_kernel<T, 4, Packs>);
  if (in.width == 3) return launch(causal_conv1d_forward_kernel<T, 3, Packs>);
  if (in.width == 2) return launch(causal_conv1d_forward_kernel<T, 2, Packs>);
  launch(causal_conv1d_forward_any_width_kernel<T>);
}

}  // namespace detail

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved, Workspace<cuda>&) {
  check(in, outputs);
  ++forward_count().causal_conv1d;
  if (saved) saved->options = options;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const detail::DeviceInputs<T> inputs(in, options);
  constexpr int V = detail::pack_size<T>;
  if (inputs.channels > 0) {
    if (detail::takes_packs<V>(View<const T, 3, cuda>(in.x)) && detail::takes_packs<V>(View<T, 3, cuda>(outputs.out)))
      detail::launch_forward<T, true>(inputs, outputs.out);
    else
      detail::launch_forward<T, false>(inputs, outputs.out);
  }
  if (!outputs.final_state || outputs.final_state.size() == 0) return;
  detail::causal_conv1d_final_state_kernel<T>
      <<<cuda_runtime::blocks_for(outputs.final_state.size(), 256), 256, 0, stream.handle>>>(inputs,
                                                                                             outputs.final_state);
  cuda_runtime::check_launch("causal_conv1d_final_state_kernel");
}

}  // namespace diffmamba::causal_conv1d
