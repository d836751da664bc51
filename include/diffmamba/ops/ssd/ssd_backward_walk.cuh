// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward_device.cuh"
#include "diffmamba/ops/ssd/ssd_state_tile.cuh"

/// SSD backward on tensor cores, kernels of step 2 as ssd_backward.cuh counts them: the states before and after every
/// chunk.
namespace diffmamba::ssd::detail {

template <class T, int N>
inline constexpr int walk_kernel_bytes = (2 * (64 * N + 64 * 64) + (sizeof(T) == 2 ? N * 64 : 0)) *
                                             static_cast<int>(sizeof(T)) +
                                         2 * (backward_tokens * static_cast<int>(sizeof(decay_sum_t<T>)) + 64 * 4);

/// The walk: grid.x counts segments, then heads, then the batch; grid.y is 0 for S and 1 for dS'. Four warps, each with
/// N / 4 rows of the state. With `Emit` the states at chunks' boundaries are written, else what the segment adds.
template <class T, int N, bool Emit>
__global__ void __launch_bounds__(128, sizeof(T) == 4 ? 2
                                       : N == 64      ? 4
                                                      : 3)
    ssd_walk_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, DeviceGradients<T> to, TensorMemory<T> memory) {
  constexpr int R = 64, P = 64, Q = backward_tokens;  // tokens of a tile
  const bool reverse = blockIdx.y == 1;
  const WalkSegments& segments = memory.segments;
  const int segment = static_cast<int>(blockIdx.x) % segments.count;
  const Index pair = blockIdx.x / segments.count, batch = pair / in.nheads;
  const int head = static_cast<int>(pair % in.nheads), group = head / in.heads_per_group;
  const Index slot = (blockIdx.y * (gridDim.x / segments.count) + pair) * segments.count + segment;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

  extern __shared__ __align__(128) unsigned char shared[];
  using Sum = decay_sum_t<T>;
  constexpr int stage = R * N + R * P;
  T* const tiles = reinterpret_cast<T*>(shared);
  T* const out_tile = tiles + 2 * stage;                                                  // (N, P), of 16-bit types
  Sum* const all_sums = reinterpret_cast<Sum*>(out_tile + (sizeof(T) == 2 ? N * P : 0));  // of the chunk; twice
  float* const all_steps = reinterpret_cast<float*>(all_sums + 2 * Q);                    // of the tile; twice
  const T* const left =
      reverse ? in.C + batch * in.C_batch + group * in.C_group : in.B + batch * in.B_batch + group * in.B_group;
  const Index left_token = reverse ? in.C_token : in.B_token;
  const T* const right = reverse ? upstream.dout + batch * upstream.dout_batch + head * upstream.dout_head
                                 : in.x + batch * in.x_batch + head * in.x_head;
  const Index right_token = reverse ? upstream.dout_token : in.x_token;

  const int all_tiles = static_cast<int>((in.length + R - 1) / R);
  const int first = 2 * segment * segments.chunks, last = ::min(first + 2 * segments.chunks, all_tiles);
  const int count = last - first;
  const auto tile_at = [&](int k) { return reverse ? last - 1 - k : first + k; };
  const auto place_of = [&](int tile) { return (batch * memory.chunks + tile / 2) * in.nheads + head; };
  const auto start_loading = [&](int k) {
    const int tile = tile_at(k), valid = static_cast<int>(::min(Index{R}, in.length - Index{tile} * R));
    const bool there = !reverse || upstream.dout != nullptr;
    T* const target = tiles + (k & 1) * stage;
    load_tile<R, N, 128>(target, left + Index{tile} * R * left_token, left_token, valid,
                         reverse ? memory.aligned.C : memory.aligned.B);
    load_tile<R, P, 128>(target + R * N, right + Index{tile} * R * right_token, right_token, there ? valid : 0,
                         reverse ? memory.aligned.dout : memory.aligned.x);
    load_numbers<Q, 128>(all_sums + (k & 1) * Q, memory.sums + place_of(tile) * Q);
    load_numbers<R, 128>(all_steps + (k & 1) * R, memory.steps + place_of(tile) * Q + tile % 2 * R);
    mma::commit_copies();
  };

  StateTile<T, N> state(warp, lane);
  state.for_each([&](int row, int column, float& value) {
    value = 0.0f;
    if constexpr (Emit) {
      if (segments.states != nullptr)
        value = segments.states[(slot * N + row) * P + column];
      else if (reverse && upstream.dfinal_state != nullptr)
        value = upstream.dfinal_state[batch * upstream.state_batch + head * upstream.state_head +
                                      column * upstream.state_channel + row];
      else if (!reverse && in.initial_state != nullptr)
        value = in.initial_state[batch * in.state_batch + head * in.state_head + column * in.state_channel + row];
    }
  });

  float total = 0.0f;  // of the segment, in powers of two
  if (count > 0) start_loading(0);
  for (int k = 0; k < count; ++k) {
    const int tile = tile_at(k);
    mma::wait_for_copies<0>();
    __syncthreads();  // this tile is there; the other buffer is free
    if (k + 1 < count) start_loading(k + 1);
    if (Emit && (reverse ? tile % 2 == 1 || tile + 1 == all_tiles : tile % 2 == 0)) {
      T* const target = (reverse ? memory.dstates : memory.states) + place_of(tile) * N * P;
      if constexpr (sizeof(T) == 2) {
        // Through the warp's own rows of a tile, so that 16 bytes are written at once.
        __syncwarp();
        state.store(out_tile);
        __syncwarp();
#pragma unroll
        for (int i = lane; i < N / 4 * P / 8; i += 32) {
          const int row = warp * (N / 4) + i / (P / 8), unit = i % (P / 8);
          *reinterpret_cast<uint4*>(target + row * P + unit * 8) =
              *reinterpret_cast<const uint4*>(out_tile + mma::unit_at<T, P>(row, unit));
        }
      } else {
        state.for_each_pair([&](int row, int column, float2 values) {
          *reinterpret_cast<float2*>(target + row * P + column) = values;
        });
      }
    }
    const T* const left_tile = tiles + (k & 1) * stage;
    const Sum* const sums = all_sums + (k & 1) * Q + tile % 2 * R;
    const float* const steps = all_steps + (k & 1) * R;
    const Sum before = tile % 2 == 0 ? Sum{} : sums[-1], end = sums[R - 1];
    state.scale(mma::power_of_two(difference(end, before)));
    total += difference(end, before);
    state.template add_products<R>(left_tile, left_tile + R * N, [&](int t) {
      return reverse ? mma::power_of_two(difference(sums[t], before))
                     : mma::power_of_two(difference(end, sums[t])) * steps[t];
    });
  }

  const bool to_initial = Emit && reverse && segment == 0 && to.dinitial_state != nullptr;
  if (!Emit || to_initial)
    state.for_each([&](int row, int column, float& value) {
      if (to_initial)
        to.dinitial_state[batch * to.state_batch + head * to.state_head + column * to.state_channel + row] = value;
      else
        segments.states[(slot * N + row) * P + column] = value;
    });
  if (!Emit && threadIdx.x == 0) segments.decays[slot] = mma::power_of_two(total);
}

/// Turns what each segment adds into what its walk begins with, in order. Grid (batch nheads, 2, N / 4), a thread for
/// every element of the state.
template <class T, int N>
__global__ void __launch_bounds__(256)
    ssd_walk_starts_kernel(DeviceInputs<T> in, DeviceUpstream<T> upstream, WalkSegments segments) {
  constexpr int P = 64, ahead = 8;  // loads under way together
  const bool reverse = blockIdx.y == 1;
  const Index pair = blockIdx.x, batch = pair / in.nheads, head = pair % in.nheads;
  const Index slot = (blockIdx.y * Index{gridDim.x} + pair) * segments.count;
  const int i = static_cast<int>(blockIdx.z * 256 + threadIdx.x);
  float state = 0.0f;
  if (reverse && upstream.dfinal_state != nullptr)
    state = upstream.dfinal_state[batch * upstream.state_batch + head * upstream.state_head +
                                  i % P * upstream.state_channel + i / P];
  else if (!reverse && in.initial_state != nullptr)
    state = in.initial_state[batch * in.state_batch + head * in.state_head + i % P * in.state_channel + i / P];
  for (int first = 0; first < segments.count; first += ahead) {
    float added[ahead], decay[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const bool there = first + k < segments.count;
      const Index segment = slot + (reverse ? segments.count - 1 - first - k : first + k);
      added[k] = there ? segments.states[segment * N * P + i] : 0.0f;
      decay[k] = there ? segments.decays[segment] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (first + k >= segments.count) break;
      const Index segment = slot + (reverse ? segments.count - 1 - first - k : first + k);
      segments.states[segment * N * P + i] = state;
      state = decay[k] * state + added[k];
    }
  }
}

}  // namespace diffmamba::ssd::detail
