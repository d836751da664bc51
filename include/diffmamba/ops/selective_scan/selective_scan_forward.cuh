// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/selective_scan/selective_scan_device.cuh"

/// The forward scan on an NVIDIA GPU; selective_scan_device.cuh says how it is cut. Every operand is read once and the
/// output written once, except that the kernel runs twice over B, u and delta where the length is cut into segments.
/// Its limits are one exponential and four operations per token, channel and state.
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

/// The tile of one block. Tensor cores sum the states of bfloat16's outputs: cut to tf32 (2^-10, below the rounding of
/// the output), with C exact.
template <class T, int Lanes, bool Constants>
struct ForwardShared {
  using S = accumulate_t<T>;
  static constexpr bool products = std::is_same_v<T, bfloat16> && Lanes == 4 && !Constants;
  using Place = detail::Place<Lanes, products>;
  static constexpr int tile = tile_tokens * 2 * Lanes * thread_states;
  Stage<T, Place, 3> staged[2];  // u, delta, z
  typename Projections<T, Place>::Shared projections;
  alignas(16) S tokens[2][tile];
  Pair<S> steps[tile_tokens][Place::width + 16 / sizeof(S)];  // dt, dt u; the padding as in Stage
};

/// Without `Output` the states are carried from zero and left in `segments`, together with the sum of dt.
template <class T, int Lanes, bool Constants, bool Output>
__global__ void __launch_bounds__(block_threads, sizeof(accumulate_t<T>) == 4 ? 2 : 1)
    selective_scan_forward_kernel(DeviceInputs<T> in, StagedRows<T, 3> rows, DeviceOutputs<T> to,
                                  SegmentMemory<accumulate_t<T>> segments, SlabSums<accumulate_t<T>, 1> slabs) {
  using S = accumulate_t<T>;
  using Shared = ForwardShared<T, Lanes, Constants>;
  using Place = typename Shared::Place;
  constexpr int own = Place::own;
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Place place(in);

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
  const ProjectionReader<S, Place, Constants> read(in, place, shared.tokens[0]);
  S dt_sum = 0;

  ResultRows<T, Place> out_rows(to.out, place, place.begin);
  Projections<T, Place> projections(in, place, place.begin, shared.projections);
  const auto fetch = [&](int tile) {
    start_stage<Output ? 3 : 2>(shared.staged[tile % 2], rows, in, place, tile);
    projections.start(in, shared.projections, place.count(tile), 1);
    mma::commit_copies();
  };
  // Of this thread, after the tile.
  S* checkpoint = nullptr;
  if (Output && to.checkpoints != nullptr)
    checkpoint = to.checkpoints +
                 (place.batch * to.checkpoint_count + place.begin / tile_tokens) * in.d_state * in.channels +
                 place.state_offset(in);
  if (place.tiles > 0) fetch(0);
  for (int tile = 0; tile < place.tiles; ++tile) {
    const int count = place.count(tile), buffer = tile % 2;
    mma::wait_for_copies<0>();
    projections.publish(shared.projections, shared.tokens[buffer]);
    __syncthreads();  // this tile is there; everybody is done with the tile before
    if (tile + 1 < place.tiles) fetch(tile + 1);
    const auto& staged = shared.staged[buffer];
    S u[own], dt[own];
#pragma unroll
    for (int j = 0; j < own; ++j) {
      u[j] = staged(0, place, j);
      dt[j] = staged(1, place, j) + bias;
    }
    if (in.softplus)
#pragma unroll
      for (S& step : dt) step = softplus_step(step).dt;
#pragma unroll
    for (int j = 0; j < own; ++j) {
      const int k = place.token(j);
      if (k >= count) dt[j] = S(0);  // such a token changes no state
      shared.steps[k][place.local] = {dt[j], dt[j] * u[j]};
      if (!Output) dt_sum += dt[j];
    }
    __syncwarp();
    const S* const tokens = read.tile + buffer * Shared::tile;
    const auto advance = [&](int k) {
      const auto [dt, dt_u] = shared.steps[k][place.local];
      S B[thread_states];
      read.B(tokens, k, B);
#pragma unroll
      for (int e = 0; e < thread_states; ++e) h[e] = element::advance(h[e], element::decay(dt, A[e]), dt_u, B[e]);
    };
    S y[own];  // the sums over states of this thread's tokens
    if constexpr (!Output) {
#pragma unroll
      for (int k = 0; k < tile_tokens; ++k) advance(k);
    } else if constexpr (Shared::products) {
      // Two tokens at a time: rows are channels, first of the one token, then of the other; columns are the C of eight
      // tokens, of which the thread that owns the two has theirs.
#pragma unroll
      for (int eight = 0; eight < tile_tokens; eight += 8) {
        S C[thread_states];
        read.C(tokens, eight + static_cast<int>(threadIdx.x) % 32 / 4, C);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
          unsigned states[2][thread_states];
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            advance(eight + 2 * pair + k);
#pragma unroll
            for (int e = 0; e < thread_states; ++e) states[k][e] = __float_as_uint(h[e]);
          }
          float sums[4] = {};
#pragma unroll
          for (int e = 0; e < thread_states; e += 2)
            mma::multiply_add_tf32(sums, {states[0][e], states[1][e], states[0][e + 1], states[1][e + 1]},
                                   __float_as_uint(C[e]), __float_as_uint(C[e + 1]));
          if (pair == 0 || place.part == pair) {
            y[eight / 4] = sums[0];
            y[eight / 4 + 1] = sums[3];
          }
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < own; ++j) {
        S parts[Lanes];
#pragma unroll
        for (int q = 0; q < Lanes; ++q) {
          advance(j * Lanes + q);
          S C[thread_states];
          read.C(tokens, j * Lanes + q, C);
          parts[q] = S(0);
#pragma unroll
          for (int e = 0; e < thread_states; ++e) parts[q] = element::multiply_add(h[e], C[e], parts[q]);
        }
        y[j] = share_sums<Lanes>(parts, place.part);
      }
    }
    if constexpr (Output) {
      bool write[own];
#pragma unroll
      for (int j = 0; j < own; ++j) {
        const int k = place.token(j);
        write[j] = place.valid && k < count;
        if (Lanes == 8 && write[j] && slabs.sums[0] != nullptr)
          write[j] =
              slabs.complete(0, y[j], (place.batch * in.length + place.first(tile) + k) * in.channels + place.channel);
        y[j] = element::multiply_add(D, staged(0, place, j), y[j]);
      }
      if (in.z.data != nullptr)
#pragma unroll
        for (int j = 0; j < own; ++j) {
          const S z = staged(2, place, j);
          y[j] *= z * gate_sigmoid(z);
        }
#pragma unroll
      for (int j = 0; j < own; ++j)
        if (write[j]) *out_rows.at(j) = diffmamba::detail::narrow<T>(y[j]);
      out_rows.advance(1);
      if (checkpoint != nullptr && (tile + 1 < place.tiles || place.segment + 1 < in.segments)) {
        store_own(h, in, place, checkpoint);
        checkpoint += Index{in.d_state} * in.channels;
      }
    }
  }
  if constexpr (Output) {
    if (place.segment + 1 == in.segments) store_state(h, in, place, to.final_state);
  } else {
    store_channels(h, in, place, segments.states + place.slot(in) * in.d_state * in.channels);
    dt_sum = Place::sum_of_parts(dt_sum);
    if (place.valid && place.part == 0) segments.dt[place.slot(in) * in.channels + place.channel] = dt_sum;
  }
}

// Launchers

template <class T>
void cut_forward(DeviceInputs<T>& in) {
  in.cut(multiprocessors(), 0.6);
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
  if (inputs.blocks() == 0) return;
  const std::size_t mark = workspace.mark();
  detail::SegmentMemory<S> segments;
  segments.take(inputs, workspace);
  detail::SlabSums<S, 1> slabs;
  slabs.take(inputs, workspace);
  const detail::DeviceOutputs<T> outputs{.out = detail::RowsView<T>(to.out),
                                         .final_state = detail::StatesView<S>(to.final_state),
                                         .checkpoints = saved != nullptr ? saved->states.data() : nullptr,
                                         .checkpoint_count = checkpoints};
  const detail::StagedRows<T, 3> rows(inputs, {inputs.u, inputs.delta, inputs.z});
  detail::with_cut(inputs, [&](auto lanes, auto constants) {
    constexpr int Lanes = decltype(lanes)::value;
    constexpr bool Constants = decltype(constants)::value;
    constexpr int bytes = sizeof(detail::ForwardShared<T, Lanes, Constants>);
    const auto launch = [&](auto kernel, const detail::DeviceInputs<T>& cut) {
      cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                          "cudaFuncSetAttribute");
      kernel<<<cut.blocks(), detail::block_threads, bytes, stream.handle>>>(cut, rows, outputs, segments, slabs);
      cuda_runtime::check_launch("selective_scan_forward_kernel");
    };
    if (inputs.segments > 1) {
      auto without_last = inputs.without_segment(inputs.segments - 1);
      for (int slab = 0; slab < inputs.slabs(); ++slab) {
        without_last.first_state = slab * detail::slab_states;
        launch(detail::selective_scan_forward_kernel<T, Lanes, Constants, false>, without_last);
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
      launch(detail::selective_scan_forward_kernel<T, Lanes, Constants, true>, inputs);
    }
  });
  workspace.reset(mark);
}

}  // namespace diffmamba::selective_scan
