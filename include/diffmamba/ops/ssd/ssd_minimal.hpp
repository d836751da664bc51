// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_minimal_contract.hpp"

// ssd::minimal on the CPU: the chunks of `ssd`, with the log decay as it is given.
namespace diffmamba::ssd::minimal {

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
  check(in, saved, upstream);
  const ssd::detail::Plan<A> plan(sizes(in), saved.options);
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
