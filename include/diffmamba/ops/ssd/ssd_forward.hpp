// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_chunk.hpp"

// The forward pass: each tile (a sequence and some heads of a group) walks once through its chunks,
//
//   G = C B^T                          once per group: scores, lower triangle
//   Y = e^{c} (C S) + (G * L) U        L_ts = e^{c_t - c_s} for s <= t; U = dt x
//   S = e^{c_Q} S + B^T (e^{c_Q - c} U)
//
// three products a head, one of them triangular, and keeps its states in cache from chunk to chunk. With chunks of Q
// steps that is, per token and head, Q P + Q N / heads of a tile + 4 N P floating point operations and Q / 2
// exponentials.
namespace diffmamba::ssd {
namespace detail {

template <class A>
struct ForwardScratch {
  A *B, *C;            // (chunk, d_state)
  A* B_transposed;     // (d_state, chunk)
  A *scores, *mixing;  // (chunk, chunk): C B^T; times the decays
  A *x, *u, *y;        // (chunk, headdim); u: dt x, and then that decayed to the end of the chunk
  A* states;           // heads of the tile times (d_state, headdim)
  A *D, *z;            // (headdim)
  Decays<A> decays;

  template <class Carve>
  ForwardScratch(Carve&& carve, const Plan<A>& p)
      : B(carve(p.chunk * p.row_state)),
        C(carve(p.chunk * p.row_state)),
        B_transposed(carve(p.d_state * p.row_chunk)),
        scores(carve(p.chunk * p.row_chunk)),
        mixing(carve(p.chunk * p.row_chunk)),
        x(carve(p.chunk * p.row_headdim)),
        u(carve(p.chunk * p.row_headdim)),
        y(carve(p.chunk * p.row_headdim)),
        states(carve(p.heads * p.d_state * p.row_headdim)),
        D(carve(p.row_headdim)),
        z(carve(p.row_headdim)),
        decays(carve, p.row_chunk) {}

  static std::size_t bytes(const Plan<A>& plan) {
    Carver<A> count(nullptr);
    ForwardScratch(count, plan);
    return count.bytes();
  }
};

/// y = e^{c} (C S) + (scores * L) u of one head in one chunk of `steps` steps; leaves scores * L in `mixing`.
template <class A>
void chunk_output(const Plan<A>& plan, Index steps, const Decays<A>& decays, const A* C, const A* scores,
                  const A* state, Index state_stride, const A* u, A* mixing, A* y) {
  const Index q = plan.row_chunk, p = plan.row_headdim;
  for (Index t = 0; t < steps; ++t) {
    Index s = 0;
    for (; s <= t; s += packet_size<A>)
      (decay_packet(decays, t, s) * Lanes<A>::load(scores + t * q + s)).store(mixing + t * q + s);
    fill_zero(mixing + t * q + s, padded<A>(t + 1) - s);
  }
  if (state != nullptr)
    product<false>(Part::all, steps, p, plan.d_state, C, plan.row_state, state, state_stride, y, p,
                   {.scale = decays.from_start});
  product<false>(Part::lower_factor, steps, p, steps, mixing, q, u, p, y, p, {.keep = state != nullptr ? A(1) : A(0)});
}

/// out = (y + D x) * silu(z), into the caller's rows. D and z are rows of scratch; D is loaded.
template <class T, class A>
void chunk_store(const Problem<T>& in, const Plan<A>& plan, Index b, Index begin, Index steps, Index h, const A* x,
                 const A* D, A* z, A* y, const View<T, 4>& out) {
  const Index row = plan.row_headdim;
  for (Index t = 0; t < steps; ++t, x += row, y += row) {
    if (in.z) load_rows(in.z.pointer(b, begin + t, h), 0, 1, plan.headdim, z, row);
    for (Index j = 0; j < row; j += packet_size<A>) {
      Lanes<A> value = multiply_add(Lanes<A>::load(D + j), Lanes<A>::load(x + j), Lanes<A>::load(y + j));
      if (in.z) {
        const Lanes<A> gate = Lanes<A>::load(z + j);
        value = value * (gate * sigmoid(gate));
      }
      value.store(y + j);
    }
    store_rows(y, row, 1, plan.headdim, out.pointer(b, begin + t, h), 0);
  }
}

/// All chunks of one tile. `saved` (batch, chunks, nheads, d_state, headdim) may be absent.
template <class T, class A>
void forward_tile(const Problem<T>& in, const Plan<A>& plan, Index index, ForwardScratch<A>& scratch,
                  const View<T, 4>& out, const View<A, 4>& final_state, const View<A, 5>& saved) {
  const auto tile = plan.tile(index);
  const Index b = tile.batch, q = plan.row_chunk, p = plan.row_headdim, n = plan.row_state;
  const auto state_of = [&](Index h) { return scratch.states + (h - tile.first_head) * plan.d_state * p; };
  for (Index h = tile.first_head; h < tile.last_head; ++h) {
    if (in.initial_state)
      load_state(in.initial_state, b, h, state_of(h), p);
    else
      fill_zero(state_of(h), plan.d_state * p);
  }
  Decays<A>& decays = scratch.decays;
  for (Index c = 0; c < plan.chunks; ++c) {
    const Index begin = c * plan.chunk, steps = std::min(plan.chunk, plan.length - begin);
    load_rows(in.B.pointer(b, begin, tile.group), in.B.stride(1), steps, plan.d_state, scratch.B, n);
    load_rows(in.C.pointer(b, begin, tile.group), in.C.stride(1), steps, plan.d_state, scratch.C, n);
    transpose(scratch.B, n, steps, plan.d_state, scratch.B_transposed, q);
    product<false>(Part::lower_result, steps, q, plan.d_state, scratch.C, n, scratch.B_transposed, q, scratch.scores,
                   q);
    const bool state_is_zero = c == 0 && !in.initial_state;
    const bool state_is_used = c + 1 < plan.chunks || final_state;
    for (Index h = tile.first_head; h < tile.last_head; ++h) {
      A* state = state_of(h);
      if (saved) store_rows(state, p, plan.d_state, plan.headdim, saved.pointer(b, c, h), plan.headdim);
      decays.prepare(in, b, begin, steps, h, q);
      load_rows(in.x.pointer(b, begin, h), in.x.stride(1), steps, plan.headdim, scratch.x, p);
      const A* u = scratch.x;
      if (!in.log_decay) u = scratch.u, scale_rows(scratch.x, decays.dt, steps, p, scratch.u);
      chunk_output(plan, steps, decays, scratch.C, scratch.scores, state_is_zero ? nullptr : state, p, u,
                   scratch.mixing, scratch.y);
      if (state_is_used) {
        scale_rows(u, decays.to_end, steps, p, scratch.u);
        product<true>(Part::all, plan.d_state, p, steps, scratch.B, n, scratch.u, p, state, p,
                      {.keep = decays.through});
      }
      load_D(in, h, plan.headdim, p, scratch.D);
      chunk_store(in, plan, b, begin, steps, h, scratch.x, scratch.D, scratch.z, scratch.y, out);
    }
  }
  if (final_state)
    for (Index h = tile.first_head; h < tile.last_head; ++h) store_state(state_of(h), p, final_state, b, h);
}

template <class T, class A>
void forward(const Problem<T>& in, const Plan<A>& plan, const View<T, 4>& out, const View<A, 4>& final_state,
             const View<A, 5>& saved, Workspace<cpu>& workspace) {
  const auto mark = workspace.mark();
  const std::size_t bytes = ForwardScratch<A>::bytes(plan);
  const Index workers = std::min<Index>(max_threads(), plan.tiles());
  std::byte* memory = workspace.template take<std::byte>(workers * static_cast<Index>(bytes));
  parallel_for(plan.tiles(), [&](Index tile, int worker) {
    Workspace<cpu> own(memory + static_cast<std::size_t>(worker) * bytes, bytes);
    Carver<A> carve(&own);
    ForwardScratch<A> scratch(carve, plan);
    forward_tile(in, plan, tile, scratch, out, final_state, saved);
  });
  workspace.reset(mark);
}

template <class A>
std::size_t forward_bytes(const Plan<A>& plan) {
  return static_cast<std::size_t>(max_threads()) * ForwardScratch<A>::bytes(plan);
}

}  // namespace detail

/// Bytes of workspace that forward takes with the calling thread's present number of threads.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in, const Options& options) {
  return detail::forward_bytes(detail::Plan<accumulate_t<T>>(sizes(in), options));
}

/// Writes into the caller's memory; a `saved` of the right shape keeps its memory, so that nothing is allocated.
/// Without `saved` no backward can follow. Throws Error.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const std::type_identity_t<OutputViews<T>>& outputs,
             std::type_identity_t<Saved<T>>* saved, Workspace<cpu>& workspace) {
  using A = accumulate_t<T>;
  check(in, options, outputs);
  ++forward_count().ssd;
  const detail::Plan<A> plan(sizes(in), options);
  View<A, 5> states;
  if (saved != nullptr) {
    saved->options = options;
    reuse_or_allocate(saved->states, Extents{plan.batch, plan.chunks, plan.nheads, plan.d_state, plan.headdim});
    states = saved->states;
  }
  detail::forward(detail::problem(in, options), plan, outputs.out, outputs.final_state, states, workspace);
}

/// The same with memory from the arena of the device.
template <class T, Device DeviceType = cpu>
Outputs<T, DeviceType> forward(const Inputs<T, DeviceType>& in, const Options& options = {}) {
  check(in, options);
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  Outputs<T, DeviceType> result;
  result.out = Tensor<T, 4, DeviceType>::uninitialized(in.x.extents());
  result.final_state = Tensor<accumulate_t<T>, 4, DeviceType>::uninitialized(Extents{batch, nheads, headdim, d_state});
  Workspace<DeviceType> workspace(workspace_bytes(in, options));
  forward(in, options, {.out = result.out, .final_state = result.final_state}, &result.saved, workspace);
  return result;
}

}  // namespace diffmamba::ssd
