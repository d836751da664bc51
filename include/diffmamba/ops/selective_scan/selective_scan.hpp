// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>  // std::size_t
#include <numeric>  // std::lcm

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/contract.hpp"         // require_operand
#include "diffmamba/tensor/channel_view.hpp"  // ChannelView
#include "diffmamba/tensor/tensor.hpp"

/// The selective scan of Mamba (S6, arXiv 2312.00752, algorithm 2): per channel d, with d_state states n,
///
///   dt_t     = softplus(delta_t + delta_bias)                              (bias and softplus optional)
///   h_t[n]   = exp(dt_t A[n]) h_{t-1}[n] + dt_t B_t[n] u_t                 h_0 = initial_state, else 0
///   y_t      = sum_n C_t[n] h_t[n] + D u_t                                 (D optional)
///   out_t    = y_t silu(z_t)                                               (z optional)
///
///   selective_scan::Inputs<float> in{.u = u, .delta = delta, .A = A, .B = B, .C = C, .D = D, .z = z};
///   auto [out, final_state, saved] = selective_scan::forward(in, {.delta_softplus = true});
///   auto d = selective_scan::backward(in, saved, {.dout = dout});          d.du, d.ddelta, d.dA, ...
///   Tensor out_t = selective_scan::step(one_token, state, options);        advances the state in place
///
/// B and C are each given per token and group, where channel d uses group d / (channels / ngroups), or as constants of
/// every channel. Both initial and final state are differentiable.
///
/// Saved: the states at every 32nd token, so channels * d_state / 32 elements of accumulate_t<T> per token (2 bytes per
/// channel and token with d_state 16 in float; nothing up to length 32). Backward recomputes the rest.
namespace diffmamba::selective_scan {

/// Parameters (A, D, delta_bias, the constants) and states may have any strides, activations and B and C any along
/// their outer axes; channels may lie in pieces (ChannelView), as those of the two paths of a differential block do.
/// Outputs and gradients may lie in as many pieces as the inputs (cut one: `.u = u.pieces(2)`).
template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredChannelView<const T, DeviceType> u;                     // (batch, length, channels)
  RequiredChannelView<const T, DeviceType> delta;                 // (batch, length, channels)
  RequiredView<const accumulate_t<T>, 2, DeviceType> A;           // (channels, d_state), negative
  View<const T, 4, DeviceType> B = {};                            // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> B_constant = {};     // (channels, d_state); instead of B
  View<const T, 4, DeviceType> C = {};                            // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> C_constant = {};     // (channels, d_state); instead of C
  View<const accumulate_t<T>, 1, DeviceType> D = {};              // (channels)
  ChannelView<const T, DeviceType> z = {};                        // (batch, length, channels)
  View<const accumulate_t<T>, 1, DeviceType> delta_bias = {};     // (channels)
  View<const accumulate_t<T>, 3, DeviceType> initial_state = {};  // (batch, channels, d_state), else 0
};

struct Options {
  bool delta_softplus = false;
};

/// Tokens between two saved states.
inline constexpr Index checkpoint_interval = 32;

/// How many of them a sequence has: after 32, 64, ... tokens, but not after the last.
constexpr Index checkpoints_of(Index length) {
  return length > 0 ? (length - 1) / checkpoint_interval : 0;
}

/// What forward keeps for backward. Reusable: forward keeps the memory where the shape is still the same.
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options;
  Tensor<accumulate_t<T>, 4, DeviceType> states;  // (batch, checkpoints, d_state, channels), after 32, 64, ... tokens
};

/// What forward returns.
template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 3, DeviceType> out;                        // (batch, length, channels)
  Tensor<accumulate_t<T>, 3, DeviceType> final_state;  // (batch, channels, d_state)
  Saved<T, DeviceType> saved;
};

/// What forward writes. The final state may be the memory of the initial one only where no backward pass follows.
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredChannelView<T, DeviceType> out;                 // (batch, length, channels)
  View<accumulate_t<T>, 3, DeviceType> final_state = {};  // (batch, channels, d_state)
};

/// Where the loss comes from: absent ones are zero.
template <class T, Device DeviceType = cpu>
struct OutputGradients {
  ChannelView<const T, DeviceType> dout = {};                    // (batch, length, channels)
  View<const accumulate_t<T>, 3, DeviceType> dfinal_state = {};  // (batch, channels, d_state)
};

/// What backward returns; empty where the input is absent (dinitial_state is always there).
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 3, DeviceType> du, ddelta;                    // (batch, length, channels)
  Tensor<accumulate_t<T>, 2, DeviceType> dA;              // (channels, d_state)
  Tensor<T, 4, DeviceType> dB;                            // (batch, length, ngroups, d_state)
  Tensor<accumulate_t<T>, 2, DeviceType> dB_constant;     // (channels, d_state)
  Tensor<T, 4, DeviceType> dC;                            // (batch, length, ngroups, d_state)
  Tensor<accumulate_t<T>, 2, DeviceType> dC_constant;     // (channels, d_state)
  Tensor<accumulate_t<T>, 1, DeviceType> dD;              // (channels)
  Tensor<T, 3, DeviceType> dz;                            // (batch, length, channels)
  Tensor<accumulate_t<T>, 1, DeviceType> ddelta_bias;     // (channels)
  Tensor<accumulate_t<T>, 3, DeviceType> dinitial_state;  // (batch, channels, d_state)
};

/// What backward writes; absent ones are skipped. dA, dB_constant, dC_constant, dD and ddelta_bias follow the
/// GradientMode, the others are assigned. Shapes as in Gradients, strides as in Inputs.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  ChannelView<T, DeviceType> du = {}, ddelta = {};
  View<accumulate_t<T>, 2, DeviceType> dA = {};
  View<T, 4, DeviceType> dB = {};
  View<accumulate_t<T>, 2, DeviceType> dB_constant = {};
  View<T, 4, DeviceType> dC = {};
  View<accumulate_t<T>, 2, DeviceType> dC_constant = {};
  View<accumulate_t<T>, 1, DeviceType> dD = {};
  ChannelView<T, DeviceType> dz = {};
  View<accumulate_t<T>, 1, DeviceType> ddelta_bias = {};
  View<accumulate_t<T>, 3, DeviceType> dinitial_state = {};
};

/// One token of Mamba-1. All strides are free, except that B, C and the state have a contiguous last axis.
template <class T, Device DeviceType = cpu>
struct StepInputs {
  RequiredView<const T, 2, DeviceType> u;                      // (batch, channels)
  RequiredView<const T, 2, DeviceType> delta;                  // (batch, channels)
  RequiredView<const accumulate_t<T>, 2, DeviceType> A;        // (channels, d_state)
  RequiredView<const T, 3, DeviceType> B;                      // (batch, ngroups, d_state)
  RequiredView<const T, 3, DeviceType> C;                      // (batch, ngroups, d_state)
  View<const accumulate_t<T>, 1, DeviceType> D = {};           // (channels)
  View<const T, 2, DeviceType> z = {};                         // (batch, channels)
  View<const accumulate_t<T>, 1, DeviceType> delta_bias = {};  // (channels)
  View<const Index, 1, DeviceType> state_batch_indices = {};   // (batch): row b of the inputs -> row of the state
};

/// One token in heads (the official selective_state_update): head h uses group h / (nheads / ngroups). All strides are
/// free, except that A, B, C and the state have a contiguous last axis; what is tied in a head is a view with stride 0.
template <class T, Device DeviceType = cpu>
struct HeadStepInputs {
  RequiredView<const T, 3, DeviceType> x;                     // (batch, nheads, headdim)
  RequiredView<const T, 3, DeviceType> dt;                    // (batch, nheads, headdim)
  RequiredView<const accumulate_t<T>, 3, DeviceType> A;       // (nheads, headdim, d_state); tied: any stride 0
  RequiredView<const T, 3, DeviceType> B;                     // (batch, ngroups, d_state)
  RequiredView<const T, 3, DeviceType> C;                     // (batch, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> D = {};          // (nheads, headdim)
  View<const T, 3, DeviceType> z = {};                        // (batch, nheads, headdim)
  View<const accumulate_t<T>, 2, DeviceType> dt_bias = {};    // (nheads, headdim)
  View<const Index, 1, DeviceType> state_batch_indices = {};  // (batch): row b of the inputs -> row of the state
};

/// Groups of B, of C: 1 where they are constants.
template <class T, Device D>
Index groups_of_B(const Inputs<T, D>& in) {
  return in.B ? in.B.extent(2) : 1;
}
template <class T, Device D>
Index groups_of_C(const Inputs<T, D>& in) {
  return in.C ? in.C.extent(2) : 1;
}

namespace detail {

/// B or C, per token or constant: exactly one of the two, in the right shape.
template <class T, Device D>
void check_projection(const char* name, const View<const T, 4, D>& token,
                      const View<const accumulate_t<T>, 2, D>& constant, const Extents<3>& u, Index d_state) {
  constexpr const char* op = "selective_scan";
  require(token || constant, op, ": ", name, " is missing: give ", name, " (per token) or ", name, "_constant");
  require(!(token && constant), op, ": both ", name, " and ", name, "_constant are given");
  if (constant) return require_shape(op, name, constant, Extents{u[2], d_state});
  const Index groups = token.extent(2);
  require(groups > 0 && u[2] % groups == 0, op, ": ", name, " has ", groups, " groups, which do not divide the ", u[2],
          " channels (", name, ": ", token.extents(), ", u: ", u, ")");
  require_operand(op, name, token, Extents{u[0], u[1], groups, d_state});
}

}  // namespace detail

/// Throws Error, with the operator, the argument, what was expected and what came, unless all shapes fit.
template <class T, Device D>
void check(const Inputs<T, D>& in) {
  constexpr const char* op = "selective_scan";
  const Extents<3> u = in.u.extents();
  const Index paths = most_paths(in.u, in.delta, in.z), d_state = in.A.extent(1);
  require_operand(op, "u", in.u, u, paths);
  require_operand(op, "delta", in.delta, u, paths);
  require_operand(op, "z", in.z, u, paths);
  require(in.A.extent(0) == u[2], op, ": A is for ", in.A.extent(0), " channels but u has ", u[2],
          " (A: ", in.A.extents(), ", u: ", u, ")");
  detail::check_projection<T, D>("B", in.B, in.B_constant, u, d_state);
  detail::check_projection<T, D>("C", in.C, in.C_constant, u, d_state);
  if (in.D) require_shape(op, "D", in.D, Extents{u[2]});
  if (in.delta_bias) require_shape(op, "delta_bias", in.delta_bias, Extents{u[2]});
  if (in.initial_state) require_shape(op, "initial_state", in.initial_state, Extents{u[0], u[2], d_state});
}

template <class T, Device D>
void check(const Inputs<T, D>& in, const OutputViews<T, D>& outputs) {
  check(in);
  require_operand("selective_scan", "out", outputs.out, in.u.extents(), most_paths(in.u, in.delta, in.z));
  if (outputs.final_state)
    require_shape("selective_scan", "final_state", outputs.final_state,
                  Extents{in.u.extent(0), in.u.extent(2), in.A.extent(1)});
}

template <class T, Device D>
void check(const Inputs<T, D>& in, const Saved<T, D>& saved, const OutputGradients<T, D>& upstream,
           const GradientViews<T, D>& to) {
  constexpr const char* op = "selective_scan::backward";
  check(in);
  const Extents<3> u = in.u.extents();
  const Extents<2> A = in.A.extents();
  const Extents<3> state{u[0], u[2], A[1]};
  const Extents<4> checkpoints{u[0], checkpoints_of(u[1]), A[1], u[2]};
  require(saved.states.extents() == checkpoints, op, ": saved holds states ", saved.states.extents(), ", expected ",
          checkpoints, "; it must come from a forward pass over the same inputs");
  const Index paths = most_paths(in.u, in.delta, in.z);
  require_operand(op, "dout", upstream.dout, u, paths);
  if (upstream.dfinal_state) require_shape(op, "dfinal_state", upstream.dfinal_state, state);
  require_operand(op, "du", to.du, u, paths);
  require_operand(op, "ddelta", to.ddelta, u, paths);
  require_operand(op, "dz", to.dz, u, paths);
  require(in.z || !to.dz, op, ": dz is asked for, but there is no z");
  require(in.B || !to.dB, op, ": dB is asked for, but B is constant");
  require(in.C || !to.dC, op, ": dC is asked for, but C is constant");
  require(in.B_constant || !to.dB_constant, op, ": dB_constant is asked for, but B is given per token");
  require(in.C_constant || !to.dC_constant, op, ": dC_constant is asked for, but C is given per token");
  if (to.dA) require_shape(op, "dA", to.dA, A);
  if (to.dB) require_operand(op, "dB", to.dB, in.B.extents());
  if (to.dC) require_operand(op, "dC", to.dC, in.C.extents());
  if (to.dB_constant) require_shape(op, "dB_constant", to.dB_constant, A);
  if (to.dC_constant) require_shape(op, "dC_constant", to.dC_constant, A);
  if (to.dD) require_shape(op, "dD", to.dD, Extents{u[2]});
  if (to.ddelta_bias) require_shape(op, "ddelta_bias", to.ddelta_bias, Extents{u[2]});
  if (to.dinitial_state) require_shape(op, "dinitial_state", to.dinitial_state, state);
}

// selective_scan_forward.hpp
//   Outputs<T> forward(in, options = {})
//   void forward(in, options, output_views, Saved<T>* saved, Workspace<>& workspace)     saved null: inference
//   std::size_t workspace_bytes(in, options)
// selective_scan_backward.hpp
//   Gradients<T> backward(in, saved, output_gradients)
//   void backward(in, saved, output_gradients, gradient_views, mode, workspace)
//   std::size_t workspace_bytes(in, saved)
// selective_scan_step.hpp
//   Tensor<T, 2> step(step_inputs, state, options = {})               state: (slots, channels, d_state), in place
//   Tensor<T, 3> step(head_step_inputs, state, options = {})          state: (slots, nheads, headdim, d_state)
//   void step(inputs, state, options, out)                            the same, never allocates
}  // namespace diffmamba::selective_scan
