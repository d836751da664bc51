// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min, std::max

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/mma.cuh"  // copy_async
#include "diffmamba/device/pack.cuh"
#include "diffmamba/math/sigmoid.cuh"
#include "diffmamba/ops/causal_conv1d/causal_conv1d.hpp"
#include "diffmamba/tensor/takes_packs.hpp"

// How the GPU cuts a convolution, forward and backward: a warp takes a strip of 64 or 128 neighbouring channels and
// walks along a run of tokens with the last width - 1 inputs in registers, a few channels a lane. The rows come through
// shared memory, by asynchronous copies of 16 bytes where the addresses allow it, one stage of tokens ahead of the
// sums, so that enough of them are in flight without a register being held for them. A block is four runs of one strip,
// whose weights lie in shared memory with the channels side by side.
namespace diffmamba::causal_conv1d::detail {

using namespace diffmamba::detail;

inline constexpr int block_runs = 4, block_threads = 32 * block_runs;
/// Channels of a lane and of a strip; tokens that are copied at once.
template <class T>
inline constexpr int lane_channels = sizeof(T) == 8 ? 2 : 4;
template <class T>
inline constexpr int strip_channels = 32 * lane_channels<T>;
template <class T>
inline constexpr int stage_tokens = sizeof(T) == 2 ? 8 : 4;

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
  int run_tokens;                    // of a warp
  unsigned strips;                   // across the channels
  unsigned runs_per_sequence, runs;  // over all sequences
  unsigned groups;                   // blocks along the runs
  unsigned blocks() const { return groups * strips; }

  Tiling(Index strip, Index channels, Index batch, Index length, Index tokens) : run_tokens(static_cast<int>(tokens)) {
    const Index across = (channels + strip - 1) / strip, per_sequence = (length + tokens - 1) / tokens;
    const Index all = batch * per_sequence, along = (all + block_runs - 1) / block_runs;
    require(along * across < Index{1} << 31, "causal_conv1d: ", batch, " sequences of ", length, " tokens and ",
            channels, " channels are more than one launch takes");
    strips = static_cast<unsigned>(across);
    runs_per_sequence = static_cast<unsigned>(per_sequence);
    runs = static_cast<unsigned>(all);
    groups = static_cast<unsigned>(along);
  }

  /// Long runs read fewer inputs twice, but there must be warps enough for a GPU.
  static Index tokens(Index strip, Index channels, Index batch, Index length, Index most) {
    constexpr Index wanted_runs = 4096;
    const Index across = (channels + strip - 1) / strip;
    Index result = 8;
    while (result < most && across * batch * (length / (2 * result)) >= wanted_runs) result *= 2;
    return result;
  }
};

/// The place of a lane in a tiling.
template <class T>
struct Place {
  int lane, warp;
  unsigned run;        // of the warp
  int first_channel;   // of the block
  int channel, count;  // the lane's first one, and how many there are from it on, at most lane_channels
  bool active;         // otherwise beyond the last channel or run
  Index batch, first;  // the run's sequence and first token
  int tokens;
  __device__ Place(const Tiling& tiling, Index length, int channels) {
    constexpr int V = lane_channels<T>;
    lane = static_cast<int>(threadIdx.x) % 32;
    warp = static_cast<int>(threadIdx.x) / 32;
    run = blockIdx.x / tiling.strips * block_runs + static_cast<unsigned>(warp);
    first_channel = static_cast<int>(blockIdx.x % tiling.strips) * strip_channels<T>;
    channel = first_channel + lane * V;
    count = ::min(V, channels - channel);
    active = run < tiling.runs && count > 0;
    batch = run / tiling.runs_per_sequence;
    first = Index{run % tiling.runs_per_sequence} * tiling.run_tokens;
    tokens = static_cast<int>(::min(Index{tiling.run_tokens}, length - first));
  }
};

/// The weights of a block's channels, then their bias, in lines of a strip; 0 beyond the last channel.
template <int Width, class T>
__device__ void stage_weights(const DeviceInputs<T>& in, int first_channel, accumulate_t<T>* shared) {
  using A = accumulate_t<T>;
  constexpr int line = strip_channels<T>;
  const int strip = ::min(line, in.channels - first_channel);
  for (int i = static_cast<int>(threadIdx.x); i < line * Width; i += block_threads)
    shared[i % Width * line + i / Width] =
        i / Width < strip ? in.weight[(first_channel + i / Width) * in.weight_channel + i % Width] : A(0);
  for (int c = static_cast<int>(threadIdx.x); c < line; c += block_threads)
    shared[Width * line + c] = c < strip && in.bias != nullptr ? in.bias[first_channel + c] : A(0);
  __syncthreads();
}

/// Rows of one tensor on their way into shared memory: those of a warp's run and strip. Rows and channels that do not
/// exist are 0. Packs: addresses and channels are multiples of 16 bytes.
template <class T, bool Packs>
struct Rows {
  const T* from;  // first token of the run, first channel of the strip
  Index token;    // from row to row
  int tokens;     // that exist, from the run's first on
  int channels;   // that exist, from the strip's first on

  /// Starts copies of the stage that begins at token `t` of the run.
  __device__ void fetch(T* stage, int t, int lane) const {
    constexpr int strip = strip_channels<T>;
    constexpr int step = Packs ? pack_size<T> : 1, per_row = strip / step;
#pragma unroll 4
    for (int i = 0; i < stage_tokens<T> * per_row / 32; ++i) {
      const int row = (i * 32 + lane) / per_row, column = (i * 32 + lane) % per_row * step;
      const bool valid = t + row < tokens && column < channels;
      const T* source = from + (t + row) * token + column;
      if constexpr (Packs)
        mma::copy_async(stage + row * strip + column, valid ? source : from, valid);
      else
        stage[row * strip + column] = valid ? *source : T{};
    }
  }
};

/// The inputs before token `first` of a run: from x, from the initial state, or 0.
template <int Width, class T>
__device__ void inputs_before(const DeviceInputs<T>& in, const Place<T>& place,
                              accumulate_t<T> (&window)[Width - 1][lane_channels<T>]) {
  using A = accumulate_t<T>;
#pragma unroll
  for (int w = 0; w < Width - 1; ++w)
#pragma unroll
    for (int i = 0; i < lane_channels<T>; ++i)
      window[w][i] = i < place.count ? in.input(place.batch, place.first - (Width - 1) + w, place.channel + i) : A(0);
}

/// A lane's channels of a row.
template <bool Packs, class T>
__device__ void store_row(T* to, const accumulate_t<T> (&values)[lane_channels<T>], int count) {
  if constexpr (Packs) {
    store_pack<lane_channels<T>>(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < lane_channels<T>; ++i)
      if (i < count) to[i] = narrow<T>(values[i]);
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
