// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/selective_scan/selective_scan.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_tile.hpp"

namespace diffmamba::selective_scan {
namespace detail {

/// Elements of scratch: state, A, B and C as (d_state, 64); a row of B and of C.
inline Index forward_scratch(Index d_state) {
  return 4 * d_state * tile_channels + 2 * d_state;
}

template <bool PerToken, class T>
void forward_tile(const Inputs<T>& in, const Options& options, const OutputViews<T>& to, Saved<T>* saved,
                  const Tiling& tiling, const Tile& tile, accumulate_t<T>* scratch) {
  using S = accumulate_t<T>;
  using L = Lanes<S>;
  const Index length = tiling.length, d_state = tiling.d_state, lanes = tile.lanes, block = d_state * tile_channels;
  S *state = scratch, *A = state + block, *B_lanes = A + block, *C_lanes = B_lanes + block;
  S *B_row = C_lanes + block, *C_row = B_row + d_state;
  alignas(64) S bias[tile_channels], D[tile_channels];
  load_state<S>(in.initial_state, tile, d_state, state);
  load_transposed<S>(in.A, tile, S(element::log2e), A);
  if (in.B_constant) load_transposed<S>(in.B_constant, tile, S(1), B_lanes);
  if (in.C_constant) load_transposed<S>(in.C_constant, tile, S(1), C_lanes);
  load_parameter<S>(in.delta_bias, tile, bias);
  load_parameter<S>(in.D, tile, D);

  const Rows<const T> u_rows(in.u, tile), delta_rows(in.delta, tile), z_rows(in.z, tile);
  const Rows<const T> B_rows(in.B, tile, tiling.channels), C_rows(in.C, tile, tiling.channels);
  const Rows<T> out_rows(to.out, tile);
  alignas(64) S u[tile_channels], dt[tile_channels], dt_u[tile_channels], y[tile_channels], z[tile_channels];
  for (Index t = 0; t < length; ++t) {
    prefetch_row(u_rows, t + prefetch_distance, length, tile.width);
    prefetch_row(delta_rows, t + prefetch_distance, length, tile.width);
    prefetch_row(z_rows, t + prefetch_distance, length, tile.width);
    prefetch_row(out_rows, t + prefetch_distance, length, tile.width);
    load_row(u_rows(t), tile.width, u, lanes);
    load_row(delta_rows(t), tile.width, dt, lanes);
    for (Index i = 0; i < lanes; i += L::size) {
      const L raw = L::load(dt + i) + L::load(bias + i), u_i = L::load(u + i);
      const L dt_i = options.delta_softplus ? softplus(raw) : raw;
      dt_i.store(dt + i);
      (dt_i * u_i).store(dt_u + i);
      (L::load(D + i) * u_i).store(y + i);
    }
    const S *B = B_lanes, *C = C_lanes;
    if constexpr (PerToken) {
      B = token_row(B_rows(t), d_state, B_row);
      C = token_row(C_rows(t), d_state, C_row);
    } else {
      if (B_rows) broadcast_row(B_rows(t), d_state, B_lanes);
      if (C_rows) broadcast_row(C_rows(t), d_state, C_lanes);
    }
    advance_token<PerToken, false>(lanes, d_state, A, B, C, dt, dt_u, state, state, nullptr, y);
    if (z_rows) {
      load_row(z_rows(t), tile.width, z, lanes);
      for (Index i = 0; i < lanes; i += L::size) (L::load(y + i) * silu(L::load(z + i))).store(y + i);
    }
    store_row(y, tile.width, out_rows(t));
    if (saved != nullptr && (t + 1) % checkpoint_interval<cpu> == 0 && t + 1 < length)
      for (Index n = 0; n < d_state; ++n)
        store_row(state + n * tile_channels, tile.width,
                  saved->states.view().pointer(tile.batch, t / checkpoint_interval<cpu>, n, tile.first));
  }
  if (to.final_state) store_transposed<S>(state, tile, to.final_state.template select<0>(tile.batch));
}

}  // namespace detail

/// Bytes of workspace that forward takes: a few KiB per thread that may run.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in, const Options&) {
  return detail::Scratch<accumulate_t<T>>::bytes(detail::forward_scratch(in.A.extent(1)));
}

/// Writes into the caller's memory and never allocates (Saved takes new memory only for another shape). `saved` null:
/// inference, nothing is kept. Throws Error if a shape does not fit or the workspace is too small.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& to, Saved<T>* saved,
             Workspace<>& workspace) {
  check(in, to);
  ++forward_count().selective_scan;
  const detail::Tiling tiling(in);
  if (saved != nullptr) {
    saved->options = options;
    reuse_or_allocate(saved->states,
                      {tiling.batch, checkpoints_of<cpu>(tiling.length), tiling.d_state, tiling.channels});
  }
  const std::size_t mark = workspace.mark();
  const detail::Scratch<accumulate_t<T>> scratch(workspace, detail::forward_scratch(tiling.d_state));
  parallel_for(tiling.tiles(), [&](Index index) {
    const detail::Tile tile = tiling.tile<accumulate_t<T>>(index);
    accumulate_t<T>* const memory = scratch.of_this_thread();
    if (in.B && in.C)
      detail::forward_tile<true>(in, options, to, saved, tiling, tile, memory);
    else
      detail::forward_tile<false>(in, options, to, saved, tiling, tile, memory);
  });
  workspace.reset(mark);
}

/// The same with memory from the arena: auto [out, final_state, saved] = forward(in, options).
template <class T, Device D = cpu>
Outputs<T, D> forward(const Inputs<T, D>& in, const Options& options = {}) {
  check(in);
  Outputs<T, D> result;
  const Extents<3> u = in.u.extents();
  result.out = Tensor<T, 3, D>::uninitialized(u);
  result.final_state = Tensor<accumulate_t<T>, 3, D>::uninitialized({u[0], u[2], in.A.extent(1)});
  Workspace<D> workspace(workspace_bytes(in, options));
  forward(in, options, OutputViews<T, D>{.out = result.out, .final_state = result.final_state}, &result.saved,
          workspace);
  return result;
}

}  // namespace diffmamba::selective_scan
