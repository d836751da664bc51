// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/causal_conv1d/causal_conv1d_tile.cuh"

/// The convolution on an NVIDIA GPU; see causal_conv1d_tile.cuh. Widths 2, 3 and 4 keep their inputs in registers; any
/// other width reads them again for every output, from the caches.
namespace diffmamba::causal_conv1d {
namespace detail {

// CUDA kernels

template <class T, int Width, int V, int Ahead, int Blocks>
__global__ void __launch_bounds__(block_threads, Blocks)
    causal_conv1d_forward_kernel(DeviceInputs<T> in, T* out, Index out_batch, Index out_token, Tiling tiling) {
  using A = accumulate_t<T>;
  __shared__ __align__(16) A staged[(Width + 1) * most_lanes * V];
  const Place<V> place(tiling);
  stage_weights<Width, V>(in, tiling, place.first_channel, staged);
  if (place.channel >= in.channels || place.run >= tiling.runs) return;

  A weight[Width][V], bias[V];
#pragma unroll
  for (int w = 0; w < Width; ++w)
#pragma unroll
    for (int i = 0; i < V; ++i) weight[w][i] = staged[w * most_lanes * V + place.lane * V + i];
#pragma unroll
  for (int i = 0; i < V; ++i) bias[i] = staged[Width * most_lanes * V + place.lane * V + i];

  const Index batch = place.run / tiling.runs_per_sequence;
  const Index first = Index{place.run % tiling.runs_per_sequence} * tiling.run_tokens;
  const int tokens = static_cast<int>(min(Index{tiling.run_tokens}, in.length - first));
  A window[Width - 1][V];
  inputs_before<Width>(in, batch, first, place.channel, window);
  const T* x = in.x + batch * in.x_batch + first * in.x_token + place.channel;
  T* y = out + batch * out_batch + first * out_token + place.channel;
  for (int t = 0; t < tokens; t += Ahead) {
    Pack<T, V> loaded[Ahead];
#pragma unroll
    for (int u = 0; u < Ahead; ++u, x += in.x_token)
      if (t + u < tokens) loaded[u] = load_pack<V>(x);
#pragma unroll
    for (int u = 0; u < Ahead; ++u, y += out_token) {
      if (t + u >= tokens) break;
      A now[V], sum[V];
      loaded[u].widen(now);
      weighted_sum<Width>(weight, bias, window, now, sum);
      push(window, now);
      if (in.silu)
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] *= sigmoid_for<T>(sum[i]);
      store_pack<V>(y, sum);
    }
  }
}

/// Any width.
template <class T>
__global__ void causal_conv1d_forward_any_width_kernel(DeviceInputs<T> in, T* out, Index out_batch, Index out_token,
                                                       Tiling tiling) {
  using A = accumulate_t<T>;
  const Place<1> place(tiling);
  if (place.channel >= in.channels || place.run >= tiling.runs) return;
  const Index batch = place.run / tiling.runs_per_sequence;
  const Index first = Index{place.run % tiling.runs_per_sequence} * tiling.run_tokens;
  for (Index t = first; t < min(first + tiling.run_tokens, in.length); ++t) {
    A sum = in.sum(batch, t, place.channel);
    if (in.silu) sum *= sigmoid_for<T>(sum);
    out[batch * out_batch + t * out_token + place.channel] = narrow<T>(sum);
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

template <class T, int Width, int V>
void launch_forward(const DeviceInputs<T>& in, const View<T, 3, cuda>& out, Index run_tokens) {
  const Tiling tiling((in.channels + V - 1) / V, out.extent(0), in.length, run_tokens);
  if (tiling.blocks() == 0) return;
  causal_conv1d_forward_kernel<T, Width, V, 4, 2>
      <<<tiling.blocks(), block_threads, 0, cuda_runtime::current_stream().handle>>>(in, out.data(), out.stride(0),
                                                                                     out.stride(1), tiling);
  cuda_runtime::check_launch("causal_conv1d_forward_kernel");
}

template <class T, int V>
void launch_forward(const DeviceInputs<T>& in, const View<T, 3, cuda>& out) {
  const Index batch = out.extent(0), packs = (in.channels + V - 1) / V;
  const Index run_tokens = Tiling::tokens(packs, batch, in.length, 8, 32);
  if (in.width == 4) return launch_forward<T, 4, V>(in, out, run_tokens);
  if (in.width == 3) return launch_forward<T, 3, V>(in, out, run_tokens);
  if (in.width == 2) return launch_forward<T, 2, V>(in, out, run_tokens);
  const Tiling tiling(in.channels, batch, in.length, run_tokens);
  if (tiling.blocks() == 0) return;
  causal_conv1d_forward_any_width_kernel<T>
      <<<tiling.blocks(), block_threads, 0, cuda_runtime::current_stream().handle>>>(in, out.data(), out.stride(0),
                                                                                     out.stride(1), tiling);
  cuda_runtime::check_launch("causal_conv1d_forward_any_width_kernel");
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
      detail::launch_forward<T, V>(inputs, outputs.out);
    else
      detail::launch_forward<T, 1>(inputs, outputs.out);
  }
  if (!outputs.final_state || outputs.final_state.size() == 0) return;
  detail::causal_conv1d_final_state_kernel<T>
      <<<cuda_runtime::blocks_for(outputs.final_state.size(), 256), 256, 0, stream.handle>>>(inputs,
                                                                                             outputs.final_state);
  cuda_runtime::check_launch("causal_conv1d_final_state_kernel");
}

}  // namespace diffmamba::causal_conv1d
