// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward.hpp"

/// The bare state space duality of the Mamba-2 paper (listing 1, `ssd_minimal_discrete`): x already holds dt x, A is
/// the log decay of every step, and each head has its own B and C (or shares them by groups, as in `ssd`),
///
///   S_t = exp(A_t) S_{t-1} + x_t B_t^T
///   y_t = S_t C_t
///
///   auto [out, final_state, saved] = ssd::minimal::forward<float>({.x = X, .A = A, .B = B, .C = C}, {.block_len =
///   64}); auto d = ssd::minimal::backward<float>(in, saved, {.dout = dY});
///
/// It runs on the same chunks as `ssd`. The length need not be a multiple of block_len.
namespace diffmamba::ssd::minimal {

struct Options {
  Index block_len = 64;  // an upper bound, like ssd::Options::chunk_size
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 4, DeviceType> x;                         // (batch, length, nheads, headdim)
  RequiredView<const accumulate_t<T>, 3, DeviceType> A;           // (batch, length, nheads), <= 0
  RequiredView<const T, 4, DeviceType> B;                         // (batch, length, ngroups, d_state)
  RequiredView<const T, 4, DeviceType> C;                         // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 4, DeviceType> initial_state = {};  // (batch, nheads, headdim, d_state), else 0
};

template <class T, Device DeviceType = cpu>
using Saved = ssd::Saved<T, DeviceType>;
template <class T, Device DeviceType = cpu>
using Outputs = ssd::Outputs<T, DeviceType>;
template <class T, Device DeviceType = cpu>
using OutputGradients = ssd::OutputGradients<T, DeviceType>;

template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 4, DeviceType> dx;
  Tensor<accumulate_t<T>, 3, DeviceType> dA;
  Tensor<T, 4, DeviceType> dB, dC;
  Tensor<accumulate_t<T>, 4, DeviceType> dinitial_state;
};

template <class T>
void check(const Inputs<T>& in, const ssd::Options& options) {
  constexpr const char* op = "ssd::minimal";
  require(options.chunk_size >= 1, op, ": block_len is ", options.chunk_size, ", expected 1 or more");
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  require_groups(in, op);
  require_shape(op, "A", in.A, Extents{batch, length, nheads});
  require_operand(op, "initial_state", in.initial_state, Extents{batch, nheads, headdim, d_state});
}

namespace detail {
template <class T>
ssd::detail::Problem<T> problem(const Inputs<T>& in, const ssd::Options& options) {
  return {.x = in.x, .B = in.B, .C = in.C, .log_decay = in.A, .initial_state = in.initial_state, .options = options};
}
}  // namespace detail

/// Throws Error, naming the argument and both shapes.
template <class T>
Outputs<T> forward(const Inputs<T>& in, const Options& minimal_options = {}) {
  using A = accumulate_t<T>;
  const ssd::Options options{.chunk_size = minimal_options.block_len};
  check(in, options);
  const ssd::detail::Plan<A> plan(sizes(in), options);
  Outputs<T> result;
  result.out = Tensor<T, 4>::uninitialized(in.x.extents());
  result.final_state = Tensor<A, 4>::uninitialized(Extents{plan.batch, plan.nheads, plan.headdim, plan.d_state});
  result.saved.options = options;
  result.saved.states =
      Tensor<A, 5>::uninitialized(Extents{plan.batch, plan.chunks, plan.nheads, plan.d_state, plan.headdim});
  Workspace<cpu> workspace(ssd::detail::forward_bytes(plan));
  ssd::detail::forward(detail::problem(in, options), plan, result.out.view(), result.final_state.view(),
                       result.saved.states.view(), workspace);
  return result;
}

/// `in` is what forward was given. Throws Error.
template <class T>
Gradients<T> backward(const Inputs<T>& in, const Saved<T>& saved,
                      const std::type_identity_t<OutputGradients<T>>& upstream) {
  using A = accumulate_t<T>;
  check(in, saved.options);
  const ssd::detail::Plan<A> plan(sizes(in), saved.options);
  check_saved(saved, sizes(in), "ssd::minimal");
  require_operand("ssd::minimal", "dout", upstream.dout, in.x.extents());
  require_operand("ssd::minimal", "dfinal_state", upstream.dfinal_state,
                  Extents{plan.batch, plan.nheads, plan.headdim, plan.d_state});
  Gradients<T> g;
  g.dx = Tensor<T, 4>::uninitialized(in.x.extents());
  g.dA = Tensor<A, 3>::uninitialized(in.A.extents());
  g.dB = Tensor<T, 4>::uninitialized(in.B.extents());
  g.dC = Tensor<T, 4>::uninitialized(in.C.extents());
  if (in.initial_state) g.dinitial_state = Tensor<A, 4>::uninitialized(in.initial_state.extents());
  Workspace<cpu> workspace(ssd::detail::backward_bytes(plan));
  ssd::detail::Carver<A> carve(&workspace);
  ssd::detail::Partials<A> partials(carve, plan);
  ssd::detail::backward(detail::problem(in, saved.options), plan, View<const A, 5>(saved.states.view()), upstream.dout,
                        upstream.dfinal_state,
                        {.dx = g.dx, .dB = g.dB, .dC = g.dC, .dlog_decay = g.dA, .dinitial_state = g.dinitial_state},
                        partials, workspace);
  return g;
}

}  // namespace diffmamba::ssd::minimal
