// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/causal_conv1d/causal_conv1d_tile.cuh"

/// Backward of the convolution on an NVIDIA GPU; the equations stand in causal_conv1d_backward.hpp. A run walks forward
/// with the last width - 1 inputs and the last width - 1 rows of g in registers: row g_t completes dx_{t - (width -
/// 1)}. It looks width - 1 tokens past its end, whose g the next run computes again. What a thread adds to dweight and
/// dbias stays in registers for its run, is summed over the runs of its block in their order, and over the blocks,
/// again in a fixed order, by a second launch.
namespace diffmamba::causal_conv1d {
namespace detail {

/// What backward reads and writes besides the inputs; null where absent.
template <class T>
struct DeviceGradients {
  using A = accumulate_t<T>;
  const T* dout;
  const A* dfinal;
  T* dx;
  A* partial;  // (groups, width + 1, channels): dweight with the channels side by side, dbias
  Index dout_batch, dout_token, dfinal_batch, dfinal_channel, dx_batch, dx_token;

  DeviceGradients(const OutputGradients<T, cuda>& upstream, const GradientViews<T, cuda>& gradients, A* sums)
      : dout(upstream.dout.data()),
        dfinal(upstream.dfinal_state.data()),
        dx(gradients.dx.data()),
        partial(sums),
        dout_batch(upstream.dout.stride(0)),
        dout_token(upstream.dout.stride(1)),
        dfinal_batch(upstream.dfinal_state.stride(0)),
        dfinal_channel(upstream.dfinal_state.stride(1)),
        dx_batch(gradients.dx.stride(0)),
        dx_token(gradients.dx.stride(1)) {}
};

/// g = dout act'(p) for results that are rounded to T.
template <class T>
__device__ accumulate_t<T> gradient_before(accumulate_t<T> dout, accumulate_t<T> p, bool silu) {
  using A = accumulate_t<T>;
  if (!silu) return dout;
  const A s = sigmoid_for<T>(p);
  return dout * s * (A(1) + p * (A(1) - s));
}

/// g_t of one channel, for any width; 0 without dout and past the end.
template <class T>
__device__ accumulate_t<T> gradient_at(const DeviceInputs<T>& in, const DeviceGradients<T>& d, Index batch, Index t,
                                       int channel) {
  using A = accumulate_t<T>;
  if (d.dout == nullptr || t >= in.length) return A(0);
  const A dout = static_cast<A>(d.dout[batch * d.dout_batch + t * d.dout_token + channel]);
  return gradient_before<T>(dout, in.silu ? in.sum(batch, t, channel) : A(0), in.silu);
}

/// What a lane keeps while its warp walks along a run.
template <class T, int Width>
struct Walk {
  using A = accumulate_t<T>;
  static constexpr int V = lane_channels<T>, state = Width - 1;
  A weight[Width][V], bias[V];
  A window[state][V], g_window[state][V];  // x and g of the tokens before
  A dweight[Width][V], dbias[V];

  /// Takes x_t and dout_t, adds g_t to the sums of the parameters if it is `counted`, and completes the dx of the token
  /// `state` before.
  template <bool Always = false>
  __device__ __forceinline__ void advance(const T* x, const T* dout, bool silu, bool counted, A (&dx)[V]) {
    A now[V], g[V];
    load_pack<V>(x).widen(now);
    load_pack<V>(dout).widen(g);  // 0 past the end, and so is g
    if (silu) {
      A p[V];
      weighted_sum<Width>(weight, bias, window, now, p);
#pragma unroll
      for (int i = 0; i < V; ++i) g[i] = gradient_before<T>(g[i], p[i], true);
    }
    if (Always || counted) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
#pragma unroll
        for (int w = 0; w < state; ++w) dweight[w][i] += g[i] * window[w][i];
        dweight[state][i] += g[i] * now[i];
        dbias[i] += g[i];
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      dx[i] = weight[0][i] * g[i];
#pragma unroll
      for (int w = 1; w < Width; ++w) dx[i] += weight[w][i] * g_window[state - w][i];
    }
    push(window, now);
    push(g_window, g);
  }
};

// CUDA kernels

template <class T, int Width, bool Packs>
__global__ void __launch_bounds__(block_threads, 3)
    causal_conv1d_backward_kernel(DeviceInputs<T> in, DeviceGradients<T> d, Tiling tiling) {
  using A = accumulate_t<T>;
  constexpr int V = lane_channels<T>, S = stage_tokens<T>, strip = strip_channels<T>, state = Width - 1;
  // The weights, and after the run one line of sums for every run of the block.
  __shared__ __align__(16) A shared[(Width + 1 > block_runs ? Width + 1 : block_runs) * strip];
  __shared__ __align__(16) T stages[block_runs][2][2][S * strip];
  const Place<T> place(tiling, in.length, in.channels);
  stage_weights<Width>(in, place.first_channel, shared);
  Walk<T, Width> walk;
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int w = 0; w < Width; ++w) {
      walk.weight[w][i] = shared[w * strip + place.lane * V + i];
      walk.dweight[w][i] = A(0);
    }
    walk.bias[i] = shared[Width * strip + place.lane * V + i];
    walk.dbias[i] = A(0);
#pragma unroll
    for (int w = 0; w < state; ++w) walk.g_window[w][i] = A(0);
  }
  if (place.run < tiling.runs) {
    const int total = place.tokens + state;                                          // rows of g, and those that
    const int exist = static_cast<int>(::min(Index{total}, in.length - place.first));  // are not 0
    const int channels = in.channels - place.first_channel;
    const Rows<T, Packs> x{in.x + place.batch * in.x_batch + place.first * in.x_token + place.first_channel, in.x_token,
                           exist, channels};
    const Rows<T, Packs> dout{
        d.dout != nullptr ? d.dout + place.batch * d.dout_batch + place.first * d.dout_token + place.first_channel
                          : in.x,
        d.dout_token, d.dout != nullptr ? exist : 0, channels};
    auto* const buffers = stages[place.warp];
    x.fetch(buffers[0][0], 0, place.lane);
    dout.fetch(buffers[0][1], 0, place.lane);
    mma::commit_copies();
    inputs_before<Width>(in, place, walk.window);
    T* to = d.dx + place.batch * d.dx_batch + (place.first - state) * d.dx_token + place.channel;
    const A* const dfinal = d.dfinal + place.batch * d.dfinal_batch + place.channel * d.dfinal_channel;
    for (int t = 0, stage = 0; t < total; t += S, stage ^= 1) {
      x.fetch(buffers[stage ^ 1][0], t + S, place.lane);
      dout.fetch(buffers[stage ^ 1][1], t + S, place.lane);
      mma::commit_copies();
      mma::wait_for_copies<1>();
      __syncwarp();
      const T* const x_rows = buffers[stage][0] + place.lane * V;
      const T* const dout_rows = buffers[stage][1] + place.lane * V;
      // The last inputs are the final state, too. first_kept counts from the run's first token.
      const Index first_kept = in.length - state - place.first;
      A dx[V];
      if (Packs && channels >= strip && d.dx != nullptr && t >= state && t + S <= place.tokens &&
          (d.dfinal == nullptr || t + S - state <= first_kept)) {  // most stages: no questions in them
#pragma unroll
        for (int u = 0; u < S; ++u, to += d.dx_token) {
          walk.template advance<true>(x_rows + u * strip, dout_rows + u * strip, in.silu, true, dx);
          store_pack<V>(to, dx);
        }
      } else {
#pragma unroll 1
        for (int u = 0; u < S && t + u < total; ++u, to += d.dx_token) {
          walk.advance(x_rows + u * strip, dout_rows + u * strip, in.silu, t + u < place.tokens, dx);
          const int s = t + u - state;  // the token, from the run's first
          if (s < 0 || d.dx == nullptr || !place.active) continue;
          if (d.dfinal != nullptr && s >= first_kept) {
#pragma unroll
            for (int i = 0; i < V; ++i)
              if (i < place.count) dx[i] += dfinal[i * d.dfinal_channel + s - first_kept];
          }
          store_row<Packs>(to, dx, place.count);
        }
      }
      __syncwarp();
    }
  }
  if (d.partial == nullptr) return;

  const Index group = blockIdx.x / tiling.strips;
#pragma unroll
  for (int w = 0; w <= Width; ++w) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < V; ++i)
      shared[place.warp * strip + place.lane * V + i] = w < Width ? walk.dweight[w % Width][i] : walk.dbias[i];
    __syncthreads();
#pragma unroll
    for (int c = static_cast<int>(threadIdx.x); c < strip; c += block_threads) {
      if (place.first_channel + c >= in.channels) break;
      A sum = shared[c];
#pragma unroll
      for (int r = 1; r < block_runs; ++r) sum += shared[r * strip + c];
      d.partial[(group * (Width + 1) + w) * in.channels + place.first_channel + c] = sum;
    }
  }
}

/// Any width: a block of 64 channels by one run, one channel a thread. The last rows of g and the sums of dweight lie
/// in lines of 64 in shared memory, or in `memory` where a filter is too wide for that.
inline constexpr int any_width_threads = 64;
template <class T>
__global__ void causal_conv1d_backward_any_width_kernel(DeviceInputs<T> in, DeviceGradients<T> d, int strips,
                                                        int run_tokens, unsigned runs_per_sequence,
                                                        accumulate_t<T>* memory) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(16) unsigned char dynamic[];
  const int state = in.width - 1;
  const unsigned run = blockIdx.x / static_cast<unsigned>(strips);
  const int channel =
      static_cast<int>(blockIdx.x % static_cast<unsigned>(strips)) * any_width_threads + static_cast<int>(threadIdx.x);
  if (channel >= in.channels) return;
  A* const lines =
      memory != nullptr ? memory + Index{blockIdx.x} * 2 * in.width * any_width_threads : reinterpret_cast<A*>(dynamic);
  const auto ring = [&](Index t) -> A& { return lines[t % in.width * any_width_threads + threadIdx.x]; };
  const auto dweight = [&](int w) -> A& { return lines[(in.width + w) * any_width_threads + threadIdx.x]; };
  for (int w = 0; w < in.width; ++w) ring(w) = dweight(w) = A(0);
  A dbias = 0;

  const Index batch = run / runs_per_sequence, first = Index{run % runs_per_sequence} * run_tokens;
  const Index end = ::min(in.length, first + run_tokens);
  for (Index t = first; t < end + state; ++t) {
    const A g = gradient_at(in, d, batch, t, channel);
    ring(t) = g;
    if (t < end) {
      dbias += g;
      for (int w = 0; w < in.width; ++w) dweight(w) += g * in.input(batch, t - state + w, channel);
    }
    const Index s = t - state;
    if (s < first || d.dx == nullptr) continue;
    A sum = 0;
    for (int w = 0; w < in.width; ++w) sum += in.weight[channel * in.weight_channel + w] * ring(s + state - w);
    const Index column = s - (in.length - state);
    if (d.dfinal != nullptr && column >= 0)
      sum += d.dfinal[batch * d.dfinal_batch + channel * d.dfinal_channel + column];
    d.dx[batch * d.dx_batch + s * d.dx_token + channel] = narrow<T>(sum);
  }
  if (d.partial == nullptr) return;
  A* const partial = d.partial + Index{run} * (in.width + 1) * in.channels + channel;
  for (int w = 0; w < in.width; ++w) partial[Index{w} * in.channels] = dweight(w);
  partial[Index{in.width} * in.channels] = dbias;
}

/// Adds up the blocks' sums. A block of 32 x 8 threads takes 32 elements; row r adds up groups r, r + 8, ...
template <class A>
__global__ void causal_conv1d_sum_kernel(const A* partial, Index groups, int channels, int width,
                                         View<A, 2, cuda> dweight, View<A, 1, cuda> dbias, GradientMode mode) {
  __shared__ A sums[8][32];
  const Index count = Index{channels} * (width + 1), element = Index{blockIdx.x} * 32 + threadIdx.x;
  A sum = 0;
  if (element < count)
#pragma unroll 4
    for (Index group = threadIdx.y; group < groups; group += 8) sum += partial[group * count + element];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || element >= count) return;
  for (int r = 1; r < 8; ++r) sum += sums[r][threadIdx.x];
  const Index w = element / channels, c = element % channels;
  A* const to = w == width ? (dbias ? dbias.pointer(c) : nullptr) : (dweight ? dweight.pointer(c, w) : nullptr);
  if (to != nullptr) *to = mode == GradientMode::add ? *to + sum : sum;
}

/// One thread an element of the initial state: dx_s for s < 0.
template <class T>
__global__ void causal_conv1d_initial_state_kernel(DeviceInputs<T> in, DeviceGradients<T> d,
                                                   View<accumulate_t<T>, 3, cuda> dinitial_state) {
  using A = accumulate_t<T>;
  const int state = in.width - 1;
  const Index size = dinitial_state.size();
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += Index{gridDim.x} * blockDim.x) {
    const Index row = i / state, batch = row / in.channels;
    const int j = static_cast<int>(i % state), channel = static_cast<int>(row % in.channels);
    A sum = 0;
    for (int w = 0; w <= j; ++w)  // s = j - state, so that weight_w meets g_{j - w}
      sum += in.weight[channel * in.weight_channel + w] * gradient_at(in, d, batch, j - w, channel);
    const Index column = j - in.length;
    if (d.dfinal != nullptr && column >= 0)
      sum += d.dfinal[batch * d.dfinal_batch + channel * d.dfinal_channel + column];
    dinitial_state(batch, channel, j) = sum;
  }
}

// Launchers

inline bool has_own_kernel(Index width) {
  return 2 <= width && width <= 4;
}

/// How the runs of backward lie.
template <class T>
Tiling backward_tiling(Index batch, Index length, Index channels) {
  constexpr Index strip = strip_channels<T>;
  return {strip, channels, batch, length, Tiling::tokens(strip, channels, batch, length, 128)};
}
/// Of the general path: blocks of 64 channels by one run.
struct AnyWidth {
  static constexpr Index run_tokens = 64;
  Index strips, runs_per_sequence, runs;
  bool in_memory;  // the lines are too long for shared memory
  std::size_t line_bytes;
  template <class A>
  AnyWidth(A, Index batch, Index length, Index channels, Index width)
      : strips((channels + any_width_threads - 1) / any_width_threads),
        runs_per_sequence((length + run_tokens - 1) / run_tokens),
        runs(batch * runs_per_sequence),
        line_bytes(static_cast<std::size_t>(2 * width * any_width_threads) * sizeof(A)) {
    in_memory = line_bytes > 48 * 1024;
  }
};

template <class T, bool Packs>
void launch_backward(const DeviceInputs<T>& in, const DeviceGradients<T>& d, const Tiling& tiling) {
  if (tiling.blocks() == 0) return;
  const auto launch = [&](auto kernel) {
    kernel<<<tiling.blocks(), block_threads, 0, cuda_runtime::current_stream().handle>>>(in, d, tiling);
    cuda_runtime::check_launch("causal_conv1d_backward_kernel");
  };
  if (in.width == 4) return launch(causal_conv1d_backward_kernel<T, 4, Packs>);
  if (in.width == 3) return launch(causal_conv1d_backward_kernel<T, 3, Packs>);
  launch(causal_conv1d_backward_kernel<T, 2, Packs>);
}

}  // namespace detail

/// Bytes of workspace that forward or backward takes at most.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in) {
  using A = accumulate_t<T>;
  const Index batch = in.x.extent(0), length = in.x.extent(1), channels = in.x.extent(2), width = in.weight.extent(1);
  const Index line = (width + 1) * channels;
  if (!detail::has_own_kernel(width)) {
    const detail::AnyWidth tiles(A{}, batch, length, channels, width);
    return Workspace<cuda>::bytes_of<A>(tiles.runs * line) +
           (tiles.in_memory ? static_cast<std::size_t>(tiles.runs * tiles.strips) * tiles.line_bytes + 64 : 0);
  }
  return Workspace<cuda>::bytes_of<A>(detail::backward_tiling<T>(batch, length, channels).groups * line);
}

template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  using A = accumulate_t<T>;
  check(in, upstream, gradients);
  const Index batch = in.x.extent(0), length = in.x.extent(1), channels = in.x.extent(2), width = in.weight.extent(1);
  if (channels == 0) return;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const auto mark = workspace.mark();
  const detail::DeviceInputs<T> inputs(in, saved.options);
  const bool parameters = gradients.dweight || gradients.dbias, runs = gradients.dx || parameters;
  const auto sums = [&](Index groups) {
    return parameters ? workspace.take<A>(groups * (width + 1) * channels) : nullptr;
  };
  Index groups = 0;
  const A* partial = nullptr;
  if (runs && detail::has_own_kernel(width)) {
    constexpr int V = detail::pack_size<T>;
    const bool packs = detail::takes_packs<V>(View<const T, 3, cuda>(in.x)) && detail::takes_packs<V>(upstream.dout) &&
                       detail::takes_packs<V>(gradients.dx);
    const detail::Tiling tiling = detail::backward_tiling<T>(batch, length, channels);
    groups = tiling.groups;
    const detail::DeviceGradients<T> d(upstream, gradients, sums(groups));
    partial = d.partial;
    if (packs)
      detail::launch_backward<T, true>(inputs, d, tiling);
    else
      detail::launch_backward<T, false>(inputs, d, tiling);
  } else if (runs) {
    const detail::AnyWidth tiles(A{}, batch, length, channels, width);
    require(tiles.runs * tiles.strips < Index{1} << 31, "causal_conv1d: x is ", in.x.extents(),
            ", more than one launch takes");
    groups = tiles.runs;
    const detail::DeviceGradients<T> d(upstream, gradients, sums(groups));
    partial = d.partial;
    A* memory = nullptr;
    if (tiles.in_memory)
      memory = workspace.take<A>(tiles.runs * tiles.strips * static_cast<Index>(tiles.line_bytes / sizeof(A)));
    if (tiles.runs > 0) {
      detail::causal_conv1d_backward_any_width_kernel<T>
          <<<static_cast<unsigned>(tiles.runs * tiles.strips), detail::any_width_threads,
             tiles.in_memory ? 0 : tiles.line_bytes, stream.handle>>>(
              inputs, d, static_cast<int>(tiles.strips), static_cast<int>(tiles.run_tokens),
              static_cast<unsigned>(tiles.runs_per_sequence), memory);
      cuda_runtime::check_launch("causal_conv1d_backward_any_width_kernel");
    }
  }
  if (parameters) {
    const Index elements = (width + 1) * channels;
    detail::causal_conv1d_sum_kernel<A><<<static_cast<unsigned>((elements + 31) / 32), dim3(32, 8), 0, stream.handle>>>(
        partial, groups, inputs.channels, inputs.width, gradients.dweight, gradients.dbias, mode);
    cuda_runtime::check_launch("causal_conv1d_sum_kernel");
  }
  if (gradients.dinitial_state && gradients.dinitial_state.size() > 0) {
    const detail::DeviceGradients<T> d(upstream, gradients, nullptr);
    detail::causal_conv1d_initial_state_kernel<T>
        <<<cuda_runtime::blocks_for(gradients.dinitial_state.size(), 256), 256, 0, stream.handle>>>(
            inputs, d, gradients.dinitial_state);
    cuda_runtime::check_launch("causal_conv1d_initial_state_kernel");
  }
  workspace.reset(mark);
}

}  // namespace diffmamba::causal_conv1d
