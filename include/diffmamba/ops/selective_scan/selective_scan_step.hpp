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
Packet<S> load_lanes(const T* from, Index count) {
  if constexpr (std::is_same_v<S, T>)
    if (count == Packet<S>::width) return Packet<S>::load(from);
  alignas(64) S buffer[Packet<S>::width];
  load_row(from, count, buffer, Packet<S>::width);
  return Packet<S>::load(buffer);
}
template <class S>
void store_lanes(Packet<S> packet, S* to, Index count) {
  if (count == Packet<S>::width) return packet.store(to);
  alignas(64) S buffer[Packet<S>::width];
  packet.store(buffer);
  store_row(buffer, count, to);
}

/// One channel: h moves on in place; returns sum_n C[n] h[n]. A may be one number for all states (stride 0).
template <class S, class T>
S step_channel(S* h, const S* A, Index A_stride, const T* B, const T* C, S dt, S dt_u, Index d_state) {
  using P = Packet<S>;
  P y = P::all(S(0));
  for (Index n = 0; n < d_state; n += P::width) {
    const Index count = std::min<Index>(P::width, d_state - n);
    const P A_n = (A_stride == 0 ? P::all(*A) : load_lanes<S>(A + n, count)) * P::all(S(element::log2e));
    const P next = element::advance(load_lanes<S>(h + n, count), element::decay(P::all(dt), A_n), P::all(dt_u),
                                    load_lanes<S>(B + n, count));
    store_lanes(next, h + n, count);
    y = multiply_add(next, load_lanes<S>(C + n, count), y);
  }
  return y.sum();
}

/// Every padding row is -1, every other names a slot, and no slot is named twice.
inline void check_slots(const char* op, const View<const Index, 1>& indices, Index batch, Index slots) {
  if (!indices) {
    require(slots == batch, op, ": state has ", slots, " rows for a batch of ", batch,
            "; give state_batch_indices to choose among them");
    return;
  }
  require_shape(op, "state_batch_indices", indices, Extents{batch});
  for (Index b = 0; b < batch; ++b) {
    const Index slot = indices(b);
    require(-1 <= slot && slot < slots, op, ": state_batch_indices[", b, "] is ", slot, ", expected -1 (padding) to ",
            slots - 1);
    for (Index other = 0; slot >= 0 && other < b; ++other)
      require(indices(other) != slot, op, ": state_batch_indices names slot ", slot, " twice, at ", other, " and ", b);
  }
}

/// A as the step reads it: rows of d_state dense numbers, or one number for the row.
template <class S, int Rank>
void check_decay(const char* op, const View<const S, Rank>& A) {
  if (A.stride(Rank - 1) != 0) require_dense_rows(op, "A", A);
}

template <class T>
void check_step(const char* op, const HeadStepInputs<T>& in, const View<accumulate_t<T>, 4>& state,
                const View<T, 3>& out) {
  const Extents<3> x = in.x.extents();
  const Index d_state = in.A.extent(2), groups = in.B.extent(1);
  require_shape(op, "dt", in.dt, x);
  require_shape(op, "A", in.A, Extents{x[1], x[2], d_state});
  check_decay<accumulate_t<T>, 3>(op, in.A);
  require(groups > 0 && x[1] % groups == 0, op, ": B has ", groups, " groups, which do not divide ", x[1],
          " (B: ", in.B.extents(), ", x: ", x, ")");
  require_operand(op, "B", in.B, Extents{x[0], groups, d_state});
  require_operand(op, "C", in.C, in.B.extents());
  if (in.D) require_shape(op, "D", in.D, Extents{x[1], x[2]});
  if (in.z) require_shape(op, "z", in.z, x);
  if (in.dt_bias) require_shape(op, "dt_bias", in.dt_bias, Extents{x[1], x[2]});
  require_shape(op, "state", state, Extents{state.extent(0), x[1], x[2], d_state});
  require_dense_rows(op, "state", state);
  check_slots(op, in.state_batch_indices, x[0], state.extent(0));
  require_shape(op, "out", out, x);
}

}  // namespace detail

/// Advances the state in place by one token and writes `out`; never allocates. `options.delta_softplus` is the official
/// dt_softplus. Where state_batch_indices is -1, out is 0 and no state is touched. Throws Error if a shape does not
/// fit.
template <class T>
void step(const HeadStepInputs<T>& in, const View<accumulate_t<T>, 4>& state, const Options& options,
          const View<T, 3>& out) {
  using S = accumulate_t<T>;
  detail::check_step("selective_scan::step", in, state, out);
  const Index batch = in.x.extent(0), nheads = in.x.extent(1), headdim = in.x.extent(2), d_state = in.A.extent(2);
  const Index heads_per_group = nheads / in.B.extent(1);
  // A tile is one sequence and up to 64 channels of a head.
  const Index tiles_per_head = tiles_of(headdim, detail::tile_channels);
  parallel_for(batch * nheads * tiles_per_head, [&](Index tile) {
    using P = Packet<S>;
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
      for (Index i = 0; i < count; i += P::width) softplus(P::load(dt + i)).store(dt + i);
    const T *B = in.B.pointer(b, head / heads_per_group), *C = in.C.pointer(b, head / heads_per_group);
    for (Index i = 0; i < count; ++i)
      y[i] = detail::step_channel(state.pointer(slot, head, first + i), in.A.pointer(head, first + i), in.A.stride(2),
                                  B, C, dt[i], dt[i] * x[i], d_state);
    if (in.D)
      for (Index i = 0; i < count; ++i) y[i] += in.D(head, first + i) * x[i];
    if (in.z) {
      alignas(64) S z[detail::tile_channels] = {};
      for (Index i = 0; i < count; ++i) z[i] = static_cast<S>(in.z(b, head, first + i));
      for (Index i = 0; i < count; i += P::width) (P::load(y + i) * silu(P::load(z + i))).store(y + i);
    }
    for (Index i = 0; i < count; ++i) out(b, head, first + i) = static_cast<T>(y[i]);
  });
}

/// The Mamba-1 form is the other one with a head for each group of B and C.
template <class T>
void step(const StepInputs<T>& in, const View<accumulate_t<T>, 3>& state, const Options& options,
          const View<T, 2>& out) {
  using S = accumulate_t<T>;
  constexpr const char* op = "selective_scan::step";
  const Extents<2> u = in.u.extents();
  const Index groups = in.B.extent(1), d_state = in.A.extent(1);
  require(groups > 0 && u[1] % groups == 0, op, ": B has ", groups, " groups, which do not divide the ", u[1],
          " channels (B: ", in.B.extents(), ", u: ", u, ")");
  require_shape(op, "delta", in.delta, u);
  require_shape(op, "A", in.A, Extents{u[1], d_state});
  if (in.D) require_shape(op, "D", in.D, Extents{u[1]});
  if (in.z) require_shape(op, "z", in.z, u);
  if (in.delta_bias) require_shape(op, "delta_bias", in.delta_bias, Extents{u[1]});
  require_shape(op, "state", state, Extents{state.extent(0), u[1], d_state});
  require_shape(op, "out", out, u);
  const Index size = u[1] / groups;
  const auto rows = [&](const auto& view) {  // (batch, channels) -> (batch, groups, channels / groups)
    using V = View<typename std::remove_cvref_t<decltype(view)>::element_type, 3>;
    return view
               ? V(view.data(), {view.extent(0), groups, size}, {view.stride(0), size * view.stride(1), view.stride(1)})
               : V();
  };
  const auto vector = [&](const View<const S, 1>& view) {
    return view ? View<const S, 2>(view.data(), {groups, size}, {size * view.stride(0), view.stride(0)})
                : View<const S, 2>();
  };
  const HeadStepInputs<T> heads{.x = rows(in.u),
                                .dt = rows(in.delta),
                                .A = View<const S, 3>(in.A.data(), {groups, size, d_state},
                                                      {size * in.A.stride(0), in.A.stride(0), in.A.stride(1)}),
                                .B = in.B,
                                .C = in.C,
                                .D = vector(in.D),
                                .z = rows(in.z),
                                .dt_bias = vector(in.delta_bias),
                                .state_batch_indices = in.state_batch_indices};
  step<T>(heads,
          View<S, 4>(state.data(), {state.extent(0), groups, size, d_state},
                     {state.stride(0), size * state.stride(1), state.stride(1), state.stride(2)}),
          options, rows(out));
}

/// The same with memory for the output from the arena.
template <class T>
Tensor<T, 2> step(const StepInputs<T>& in, const View<accumulate_t<T>, 3>& state, const Options& options = {}) {
  auto out = Tensor<T, 2>::uninitialized(in.u.extents());
  step<T>(in, state, options, out);
  return out;
}
template <class T>
Tensor<T, 3> step(const HeadStepInputs<T>& in, const View<accumulate_t<T>, 4>& state, const Options& options = {}) {
  auto out = Tensor<T, 3>::uninitialized(in.x.extents());
  step<T>(in, state, options, out);
  return out;
}

}  // namespace diffmamba::selective_scan
