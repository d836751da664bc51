// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/selective_scan/selective_scan.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_tile.hpp"

// One token of the recurrence, state in and state out. Here the states lie in the lanes: a state row is read once,
// written once and contiguous, and reading and writing it is the cost.
namespace diffmamba::selective_scan {
namespace detail {

/// The group of `count` neighbouring numbers of one row in the lanes; those past the end are zero.
template <class S, class T>
Lanes<S> load_lanes(const T* from, Index count) {
  if constexpr (std::is_same_v<S, T>)
    if (count == Lanes<S>::size) return Lanes<S>::load(from);
  alignas(64) S buffer[Lanes<S>::size];
  load_row(from, count, buffer, Lanes<S>::size);
  return Lanes<S>::load(buffer);
}
template <class S>
void store_lanes(Lanes<S> lanes, S* to, Index count) {
  if (count == Lanes<S>::size) return lanes.store(to);
  alignas(64) S buffer[Lanes<S>::size];
  lanes.store(buffer);
  store_row(buffer, count, to);
}

/// One channel: h moves on in place; returns sum_n C[n] h[n]. A may be one number for all states (stride 0).
template <class S, class T>
S step_channel(S* h, const S* A, Index A_stride, const T* B, const T* C, S dt, S dt_u, Index d_state) {
  using L = Lanes<S>;
  L y = L::all(S(0));
  for (Index n = 0; n < d_state; n += L::size) {
    const Index count = std::min<Index>(L::size, d_state - n);
    const L A_n = (A_stride == 0 ? L::all(*A) : load_lanes<S>(A + n, count)) * L::all(S(element::log2e));
    const L next = element::advance(load_lanes<S>(h + n, count), element::decay(L::all(dt), A_n), L::all(dt_u),
                                    load_lanes<S>(B + n, count));
    store_lanes(next, h + n, count);
    y = multiply_add(next, load_lanes<S>(C + n, count), y);
  }
  return y.sum();
}

/// Every padding row is -1, every other names a slot, and no slot is named twice.
inline void check_slots(const View<const Index, 1>& indices, Index slots) {
  constexpr const char* op = "selective_scan::step";
  if (!indices) return;
  for (Index b = 0; b < indices.extent(0); ++b) {
    const Index slot = indices(b);
    require(-1 <= slot && slot < slots, op, ": state_batch_indices[", b, "] is ", slot, ", expected -1 (padding) to ",
            slots - 1);
    for (Index other = 0; slot >= 0 && other < b; ++other)
      require(indices(other) != slot, op, ": state_batch_indices names slot ", slot, " twice, at ", other, " and ", b);
  }
}

}  // namespace detail

/// Advances the state in place by one token and writes `out`; never allocates. `options.delta_softplus` is the official
/// dt_softplus. Where state_batch_indices is -1, out is 0 and no state is touched. Throws Error if a shape does not
/// fit.
template <class T>
void step(const HeadStepInputs<T>& in, const View<accumulate_t<T>, 4>& state, const Options& options,
          const View<T, 3>& out) {
  using S = accumulate_t<T>;
  check(in, state, out);
  detail::check_slots(in.state_batch_indices, state.extent(0));
  const Index batch = in.x.extent(0), nheads = in.x.extent(1), headdim = in.x.extent(2), d_state = in.A.extent(2);
  const Index heads_per_group = nheads / in.B.extent(1);
  // A tile is one sequence and up to 64 channels of a head.
  const Index tiles_per_head = tiles_of(headdim, detail::tile_channels);
  parallel_for(batch * nheads * tiles_per_head, [&](Index tile) {
    using L = Lanes<S>;
    const Index part = tile % tiles_per_head, head = tile / tiles_per_head % nheads, b = tile / tiles_per_head / nheads;
    const Index first = part * detail::tile_channels, count = std::min(detail::tile_channels, headdim - first);
    const Index slot = in.state_batch_indices ? in.state_batch_indices(b) : b;
    if (slot < 0) {
      for (Index i = 0; i < count; ++i) out(b, head, first + i) = T(0.0f);
      return;
    }
    alignas(64) S x[detail::tile_channels] = {}, dt[detail::tile_channels] = {}, y[detail::tile_channels] = {};
    for (Index i = 0; i < count; ++i) {
      x[i] = static_cast<S>(in.x(b, head, first + i));
      dt[i] = static_cast<S>(in.dt(b, head, first + i)) + (in.dt_bias ? in.dt_bias(head, first + i) : S(0));
    }
    if (options.delta_softplus)
      for (Index i = 0; i < count; i += L::size) softplus(L::load(dt + i)).store(dt + i);
    const T *B = in.B.pointer(b, head / heads_per_group), *C = in.C.pointer(b, head / heads_per_group);
    for (Index i = 0; i < count; ++i)
      y[i] = detail::step_channel(state.pointer(slot, head, first + i), in.A.pointer(head, first + i), in.A.stride(2),
                                  B, C, dt[i], dt[i] * x[i], d_state);
    if (in.D)
      for (Index i = 0; i < count; ++i) y[i] += in.D(head, first + i) * x[i];
    if (in.z) {
      alignas(64) S z[detail::tile_channels] = {};
      for (Index i = 0; i < count; ++i) z[i] = static_cast<S>(in.z(b, head, first + i));
      for (Index i = 0; i < count; i += L::size) (L::load(y + i) * silu(L::load(z + i))).store(y + i);
    }
    for (Index i = 0; i < count; ++i) out(b, head, first + i) = static_cast<T>(y[i]);
  });
}

/// The Mamba-1 form is the other one with a head for each group of B and C.
template <class T>
void step(const StepInputs<T>& in, const View<accumulate_t<T>, 3>& state, const Options& options,
          const View<T, 2>& out) {
  const HeadStepInputs<T> heads = as_heads(in);
  const Index groups = in.B.extent(1);
  require_shape("selective_scan::step", "out", out, in.u.extents());
  step<T>(heads, as_heads(state, in.u.extent(1), groups, in.A.extent(1)), options,
          detail::rows_as_heads<T, cpu>(out, groups));
}

/// The same with memory for the output from the arena.
template <class T, Device D = cpu>
Tensor<T, 2, D> step(const StepInputs<T, D>& in, const std::type_identity_t<View<accumulate_t<T>, 3, D>>& state,
                     const Options& options = {}) {
  auto out = Tensor<T, 2, D>::uninitialized(in.u.extents());
  step<T>(in, state, options, out);
  return out;
}
template <class T, Device D = cpu>
Tensor<T, 3, D> step(const HeadStepInputs<T, D>& in, const std::type_identity_t<View<accumulate_t<T>, 4, D>>& state,
                     const Options& options = {}) {
  auto out = Tensor<T, 3, D>::uninitialized(in.x.extents());
  step<T>(in, state, options, out);
  return out;
}

}  // namespace diffmamba::selective_scan
