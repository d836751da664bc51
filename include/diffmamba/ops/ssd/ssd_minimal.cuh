// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward_general.cuh"
#include "diffmamba/ops/ssd/ssd_forward.cuh"
#include "diffmamba/ops/ssd/ssd_minimal_contract.hpp"

/// ssd::minimal on an NVIDIA GPU: the general paths of `ssd`, with dt = 1 and the log decay as it is given.
namespace diffmamba::ssd::minimal {
namespace detail {

template <class T>
ssd::detail::DeviceInputs<T> device_inputs(const Inputs<T, cuda>& in) {
  ssd::Inputs<T, cuda> all{
      .x = in.x, .dt = View<const T, 3, cuda>(), .A = View<const accumulate_t<T>, 1, cuda>(), .B = in.B, .C = in.C};
  all.initial_state = in.initial_state;
  ssd::detail::DeviceInputs<T> result(all, ssd::Options{});
  result.log_decay = in.A.data();
  result.log_batch = in.A.stride(0), result.log_token = in.A.stride(1), result.log_head = in.A.stride(2);
  return result;
}

}  // namespace detail

/// Throws Error, naming the argument and both shapes.
template <class T>
Outputs<T, cuda> forward(const Inputs<T, cuda>& in, const Options& minimal_options) {
  const ssd::Options options{.chunk_size = minimal_options.block_len};
  check(in, options);
  const Sizes s = sizes(in);
  Outputs<T, cuda> result;
  result.out = Tensor<T, 4, cuda>::uninitialized(in.x.extents());
  result.final_state =
      Tensor<accumulate_t<T>, 4, cuda>::uninitialized(Extents{s.batch, s.nheads, s.headdim, s.d_state});
  result.saved.options = options;
  if (s.batch * s.nheads * s.headdim == 0) return result;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  ssd::detail::launch_recurrence(detail::device_inputs(in),
                                 ssd::detail::DeviceOutputs<T>(OutputViews<T, cuda>{
                                     .out = result.out.view(), .final_state = result.final_state.view()}),
                                 s);
  return result;
}

/// `in` is what forward was given. Throws Error.
template <class T>
Gradients<T, cuda> backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
                            const std::type_identity_t<OutputGradients<T, cuda>>& upstream) {
  using A = accumulate_t<T>;
  check(in, saved, upstream);
  const Sizes s = sizes(in);
  Gradients<T, cuda> g;
  g.dx = Tensor<T, 4, cuda>::uninitialized(in.x.extents());
  g.dA = Tensor<A, 3, cuda>::uninitialized(in.A.extents());
  g.dB = Tensor<T, 4, cuda>::uninitialized(in.B.extents());
  g.dC = Tensor<T, 4, cuda>::uninitialized(in.C.extents());
  if (in.initial_state) g.dinitial_state = Tensor<A, 4, cuda>::uninitialized(in.initial_state.extents());
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  std::size_t bytes = 0;
  ssd::detail::general_memory<A>(s, nullptr, &bytes);
  Workspace<cuda> workspace(bytes);
  GradientViews<T, cuda> views{.dx = g.dx.view(), .dB = g.dB.view(), .dC = g.dC.view()};
  if (in.initial_state) views.dinitial_state = g.dinitial_state.view();
  ssd::detail::DeviceGradients<T> to(views, GradientMode::assign);
  to.dlog_decay = g.dA.data();
  ssd::detail::launch_general_backward(detail::device_inputs(in), ssd::detail::DeviceUpstream<T>(upstream), to, s,
                                       workspace);
  return g;
}

}  // namespace diffmamba::ssd::minimal
