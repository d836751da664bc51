// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min, std::max

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/pack.cuh"
#include "diffmamba/math/sigmoid.cuh"
#include "diffmamba/ops/causal_conv1d/causal_conv1d.hpp"

// How the GPU cuts a convolution, forward and backward: a thread owns a pack of neighbouring channels (16 bytes of x
// where the addresses allow it, else one channel) and walks along a run of tokens with the last width - 1 inputs in
// registers. A block of 256 threads is a strip of up to 32 packs by 8 runs or more, so that a warp reads 512 bytes in
// a row, and its weights lie in shared memory with the channels side by side.
namespace diffmamba::causal_conv1d::detail {

using namespace diffmamba::detail;

inline constexpr int block_threads = 256;
/// Packs of channels side by side in a block, at most.
inline constexpr int most_lanes = 32;

/// The inputs as a kernel sees them; strides in elements.
template <class T>
struct DeviceInputs {
  using A = accumulate_t<T>;
  const T* x;
  const A *weight, *bias, *state;  // bias and initial state may be null
  Index x_batch, x_token, weight_channel, state_batch, state_channel;
  Index length;
  int channels, width;
  bool silu;

  DeviceInputs(const Inputs<T, cuda>& in, const Options& options)
      : x(in.x.data()),
        weight(in.weight.data()),
        bias(in.bias.data()),
        state(in.initial_state.data()),
        x_batch(in.x.stride(0)),
        x_token(in.x.stride(1)),
        weight_channel(in.weight.stride(0)),
        state_batch(in.initial_state.stride(0)),
        state_channel(in.initial_state.stride(1)),
        length(in.x.extent(1)),
        channels(static_cast<int>(in.x.extent(2))),
        width(static_cast<int>(in.weight.extent(1))),
        silu(options.activation == Activation::silu) {
    require(in.x.extent(2) < Index{1} << 30 && in.weight.extent(1) < Index{1} << 30, "causal_conv1d: x is ",
            in.x.extents(), ", weight ", in.weight.extents(), "; a GPU takes fewer than 2^30 channels");
  }

  /// x_t of one channel; before the beginning from the initial state.
  __device__ A input(Index batch, Index t, int channel) const {
    if (t >= 0) return static_cast<A>(x[batch * x_batch + t * x_token + channel]);
    return state != nullptr ? state[batch * state_batch + channel * state_channel + t + width - 1] : A(0);
  }
  /// bias + sum_w weight_w x_{t - (width - 1) + w}, for any width.
  __device__ A sum(Index batch, Index t, int channel) const {
    A result = bias != nullptr ? bias[channel] : A(0);
    for (int w = 0; w < width; ++w)
      result += weight[channel * weight_channel + w] * input(batch, t - (width - 1) + w, channel);
    return result;
  }
};

/// Which block takes what. Follows from the shape alone.
struct Tiling {
  int log_lanes, strips;             // packs in a block, blocks across the channels
  int run_tokens;                    // of a thread
  unsigned runs_per_sequence, runs;  // over all sequences
  unsigned groups;                   // blocks along the runs
  DIFFMAMBA_HOST_DEVICE int lanes() const { return 1 << log_lanes; }
  DIFFMAMBA_HOST_DEVICE int rows() const { return block_threads >> log_lanes; }
  unsigned blocks() const { return groups * static_cast<unsigned>(strips); }

  Tiling(Index packs, Index batch, Index length, Index tokens) : run_tokens(static_cast<int>(tokens)) {
    log_lanes = 0;
    while (lanes() < most_lanes && lanes() < packs) ++log_lanes;
    strips = static_cast<int>((packs + lanes() - 1) / lanes());
    const Index per_sequence = (length + tokens - 1) / tokens, all = batch * per_sequence;
    require((all / rows() + 1) * strips < Index{1} << 31, "causal_conv1d: ", batch, " sequences of ", length,
            " tokens are more than one launch takes");
    runs_per_sequence = static_cast<unsigned>(per_sequence);
    runs = static_cast<unsigned>(all);
    groups = static_cast<unsigned>((all + rows() - 1) / rows());
  }

  /// Long runs read fewer inputs twice, but there must be threads enough for a GPU.
  static Index tokens(Index packs, Index batch, Index length, Index least, Index most) {
    constexpr Index wanted_threads = 131072;
    Index result = least;
    while (result < most && packs * batch * (length / (2 * result)) >= wanted_threads) result *= 2;
    return result;
  }
};

/// A thread's place in a tiling.
template <int V>
struct Place {
  int lane, first_channel, channel;  // first_channel is the block's
  unsigned run;
  __device__ explicit Place(const Tiling& tiling) {
    const int strip = static_cast<int>(blockIdx.x % static_cast<unsigned>(tiling.strips));
    lane = static_cast<int>(threadIdx.x) & (tiling.lanes() - 1);
    first_channel = strip * tiling.lanes() * V;
    channel = first_channel + lane * V;
    run = blockIdx.x / static_cast<unsigned>(tiling.strips) * static_cast<unsigned>(tiling.rows()) +
          (threadIdx.x >> tiling.log_lanes);
  }
};

/// The weights of a block's channels, then their bias: line w at shared + w * most_lanes * V.
template <int Width, int V, class T>
__device__ void stage_weights(const DeviceInputs<T>& in, const Tiling& tiling, int first_channel,
                              accumulate_t<T>* shared) {
  using A = accumulate_t<T>;
  constexpr int line = most_lanes * V;
  const int strip = min(tiling.lanes() * V, in.channels - first_channel);
  for (int i = static_cast<int>(threadIdx.x); i < strip * Width; i += block_threads)
    shared[i % Width * line + i / Width] = in.weight[(first_channel + i / Width) * in.weight_channel + i % Width];
  for (int c = static_cast<int>(threadIdx.x); c < strip; c += block_threads)
    shared[Width * line + c] = in.bias != nullptr ? in.bias[first_channel + c] : A(0);
  __syncthreads();
}

/// The inputs before token `first` of a run: from x, from the initial state, or 0.
template <int Width, int V, class T>
__device__ void inputs_before(const DeviceInputs<T>& in, Index batch, Index first, int channel,
                              accumulate_t<T> (&window)[Width - 1][V]) {
#pragma unroll
  for (int w = 0; w < Width - 1; ++w) {
    const Index t = first - (Width - 1) + w;
    if (t >= 0) {
      load_pack<V>(in.x + batch * in.x_batch + t * in.x_token + channel).widen(window[w]);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) window[w][i] = in.input(batch, t, channel + i);
    }
  }
}

/// The sum before the activation, from the window and the present input.
template <int Width, int V, class A>
__device__ void weighted_sum(const A (&weight)[Width][V], const A (&bias)[V], const A (&window)[Width - 1][V],
                             const A (&now)[V], A (&sum)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    A s = bias[i];
#pragma unroll
    for (int w = 0; w < Width - 1; ++w) s += weight[w][i] * window[w][i];
    sum[i] = s + weight[Width - 1][i] * now[i];
  }
}

/// The window moves on by one token.
template <int Lines, int V, class A>
__device__ void push(A (&window)[Lines][V], const A (&now)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int w = 0; w + 1 < Lines; ++w) window[w][i] = window[w + 1][i];
    window[Lines - 1][i] = now[i];
  }
}

}  // namespace diffmamba::causal_conv1d::detail
