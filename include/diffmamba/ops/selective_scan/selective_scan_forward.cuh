// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/selective_scan/selective_scan_device.cuh"

/// The forward scan on an NVIDIA GPU; selective_scan_device.cuh says how it is cut. Every operand is read once and the
/// output written once, except that the kernel runs twice over B, u and delta where the length is cut into segments.
/// Its limit is one exponential per token, channel and state.
namespace diffmamba::selective_scan {
namespace detail {

/// Where a kernel writes; what is absent is null.
template <class T>
struct DeviceOutputs {
  using S = accumulate_t<T>;
  RowsView<T> out;
  StatesView<S> final_state;
  S* checkpoints;  // (batch, checkpoints, d_state, channels)
  Index checkpoint_count;
};

// CUDA kernels

/// Without `Output` the states are carried from zero and left in `segments`, together with the sum of dt.
template <class T, int Lanes, bool Constants, bool Output>
__global__ void __launch_bounds__(block_threads, sizeof(accumulate_t<T>) == 4 ? 3 : 1)
    selective_scan_forward_kernel(DeviceInputs<T> in, DeviceOutputs<T> to, SegmentMemory<accumulate_t<T>> segments,
                                  SlabSums<accumulate_t<T>, 1> slabs) {
  using S = accumulate_t<T>;
  constexpr int own = tile_tokens / Lanes, N = Lanes * thread_states, tile = tile_tokens * 2 * N;
  const Place<Lanes> place(in);
  __shared__ alignas(16) S tokens[2][tile];
  __shared__ Pair<S> steps[tile_tokens][Place<Lanes>::width];  // dt, dt u

  S A[thread_states], h[thread_states];
  load_decay(in, place, A);
  if constexpr (!Output)
#pragma unroll
    for (S& state : h) state = S(0);
  else if (segments.states != nullptr)
    load_channels(segments.states + place.slot(in) * in.d_state * in.channels, in, place, h);
  else
    load_state(in.initial_state, in, place, h);
  const S bias = in.delta_bias.data != nullptr ? in.delta_bias(place.channel) : S(0);
  const S D = in.D.data != nullptr ? in.D(place.channel) : S(0);
  const ProjectionReader<S, Lanes, Constants> read(in, place, &tokens[0][0]);
  S dt_sum = 0;

  Raw<T> u_raw[own], delta_raw[own], z_raw[own];
  Activation<const T, Lanes> u_rows(in.u, place, place.begin), delta_rows(in.delta, place, place.begin),
      z_rows(in.z, place, place.begin);
  Activation<T, Lanes> out_rows(to.out, place, place.begin);
  Projections<T, Lanes> projections(in, place, place.begin);
  const auto fetch = [&](Index first) {
    const int count = static_cast<int>(::min(place.end - first, Index{tile_tokens}));
    u_rows.fetch(place.part, count, u_raw);
    delta_rows.fetch(place.part, count, delta_raw);
    if (Output && z_rows) z_rows.fetch(place.part, count, z_raw);
    projections.fetch(count - 1);
    u_rows.advance(1);
    delta_rows.advance(1);
    z_rows.advance(1);
    projections.advance(1);
  };
  if (place.begin < place.end) fetch(place.begin);
  int buffer = 0;
  for (Index first = place.begin; first < place.end; first += tile_tokens, buffer ^= 1) {
    const int count = static_cast<int>(::min(place.end - first, Index{tile_tokens}));
    projections.publish(tokens[buffer]);
    S u[own], z[own];
    __syncwarp();  // the steps of the tile before have been read
#pragma unroll
    for (int j = 0; j < own; ++j) {
      const int k = j * Lanes + place.part;
      u[j] = u_raw[j].widen();
      if (Output && z_rows) z[j] = z_raw[j].widen();
      S dt = delta_raw[j].widen() + bias;
      if (in.softplus) dt = softplus_step(dt).dt;
      if (k >= count) dt = S(0);  // such a token changes no state
      steps[k][place.local] = {dt, dt * u[j]};
      if (!Output) dt_sum += dt;
    }
    if (first + tile_tokens < place.end) fetch(first + tile_tokens);
    __syncthreads();  // this tile is there; everybody is done with the tile before
    const S* const tile_tokens_shared = read.tile + buffer * tile;
#pragma unroll
    for (int j = 0; j < own; ++j) {
      S y[Lanes];
#pragma unroll
      for (int q = 0; q < Lanes; ++q) {
        const int k = j * Lanes + q;
        const auto [dt, dt_u] = steps[k][place.local];
        S B[thread_states], C[thread_states];
        read.B(tile_tokens_shared, k, B);
        if constexpr (Output) read.C(tile_tokens_shared, k, C);
        y[q] = S(0);
#pragma unroll
        for (int e = 0; e < thread_states; ++e) {
          h[e] = element::advance(h[e], element::decay(dt, A[e]), dt_u, B[e]);
          if constexpr (Output) y[q] = element::multiply_add(h[e], C[e], y[q]);
        }
      }
      if constexpr (Output) {
        S sum = share_sums<Lanes>(y, place.part);
        const int k = j * Lanes + place.part;
        bool write = place.valid && k < count;
        if (Lanes == 8 && write && slabs.sums[0] != nullptr)
          write = slabs.complete(0, sum, (place.batch * in.length + first + k) * in.channels + place.channel);
        S out = element::multiply_add(D, u[j], sum);
        if (z_rows) out *= z[j] * gate_sigmoid(z[j]);
        if (write) *out_rows.at(j) = diffmamba::detail::narrow<T>(out);
      }
    }
    if constexpr (Output) out_rows.advance(1);
    if constexpr (Output) {
      if (to.checkpoints != nullptr && first + tile_tokens < in.length)
        store_channels(
            h, in, place,
            to.checkpoints + (place.batch * to.checkpoint_count + first / tile_tokens) * in.d_state * in.channels);
    }
  }
  if constexpr (Output) {
    if (place.segment + 1 == in.segments) store_state(h, in, place, to.final_state);
  } else {
    store_channels(h, in, place, segments.states + place.slot(in) * in.d_state * in.channels);
#pragma unroll
    for (int distance = 32 / Lanes; distance < 32; distance *= 2)
      dt_sum += __shfl_xor_sync(0xffffffffu, dt_sum, distance);
    if (place.valid && place.part == 0) segments.dt[place.slot(in) * in.channels + place.channel] = dt_sum;
  }
}

// Launchers

/// A multiprocessor holds three blocks.
template <class T>
void cut_forward(DeviceInputs<T>& in) {
  in.cut(multiprocessors(), 0.6, 0.9, 0.6);
}

}  // namespace detail

/// Bytes of workspace that forward takes: none where batch and channels fill the GPU and d_state is at most 32.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Options& options) {
  using S = accumulate_t<T>;
  check(in);
  detail::DeviceInputs<T> inputs(in, options);
  detail::cut_forward(inputs);
  return detail::SegmentMemory<S>::bytes(inputs) + detail::SlabSums<S, 1>::bytes(inputs);
}

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& to, Saved<T, cuda>* saved,
             Workspace<cuda>& workspace) {
  using S = accumulate_t<T>;
  check(in, to);
  ++forward_count().selective_scan;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  detail::DeviceInputs<T> inputs(in, options);
  const Index checkpoints = checkpoints_of<cuda>(inputs.length);
  if (saved != nullptr) {
    saved->options = options;
    reuse_or_allocate(saved->states, {inputs.batch, checkpoints, Index{inputs.d_state}, Index{inputs.channels}});
  }
  detail::cut_forward(inputs);
  const unsigned blocks = inputs.blocks();
  if (blocks == 0) return;
  const std::size_t mark = workspace.mark();
  detail::SegmentMemory<S> segments;
  segments.take(inputs, workspace);
  detail::SlabSums<S, 1> slabs;
  slabs.take(inputs, workspace);
  const detail::DeviceOutputs<T> outputs{.out = detail::RowsView<T>(to.out),
                                         .final_state = detail::StatesView<S>(to.final_state),
                                         .checkpoints = saved != nullptr ? saved->states.data() : nullptr,
                                         .checkpoint_count = checkpoints};
  detail::with_cut(inputs, [&](auto lanes, auto constants) {
    constexpr int Lanes = decltype(lanes)::value;
    constexpr bool Constants = decltype(constants)::value;
    if (inputs.segments > 1) {
      auto without_last = inputs.without_segment(inputs.segments - 1);
      for (int slab = 0; slab < inputs.slabs(); ++slab) {
        without_last.first_state = slab * detail::slab_states;
        detail::selective_scan_forward_kernel<T, Lanes, Constants, false>
            <<<without_last.blocks(), detail::block_threads, 0, stream.handle>>>(without_last, outputs, segments,
                                                                                 slabs);
        cuda_runtime::check_launch("selective_scan_forward_kernel (states)");
      }
      const Index states = inputs.batch * inputs.d_state * inputs.channels;
      detail::selective_scan_segments_kernel<false>
          <<<static_cast<unsigned>((states + 255) / 256), 256, 0, stream.handle>>>(inputs, inputs.initial_state,
                                                                                   segments);
      cuda_runtime::check_launch("selective_scan_segments_kernel");
    }
    for (int slab = 0; slab < inputs.slabs(); ++slab) {
      inputs.first_state = slab * detail::slab_states;
      slabs.first = slab == 0;
      slabs.last = slab + 1 == inputs.slabs();
      detail::selective_scan_forward_kernel<T, Lanes, Constants, true>
          <<<blocks, detail::block_threads, 0, stream.handle>>>(inputs, outputs, segments, slabs);
      cuda_runtime::check_launch("selective_scan_forward_kernel");
    }
  });
  workspace.reset(mark);
}

}  // namespace diffmamba::selective_scan
