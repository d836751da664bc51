// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>      // std::size_t
#include <type_traits>  // std::is_same_v

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/contract.hpp"  // require_operand
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
/// Saved: the states at every 32nd token (on a GPU every 16th), so channels * d_state / 32 (16) elements of
/// accumulate_t<T> per token: with d_state 16 in float 2 (4) bytes per channel and token; nothing up to length 32 (16).
/// Backward recomputes the rest.
namespace diffmamba::selective_scan {

/// Parameters (A, D, delta_bias, the constants) and states may have any strides, activations and B and C any along
/// their outer axes.
template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 3, DeviceType> u;                         // (batch, length, channels)
  RequiredView<const T, 3, DeviceType> delta;                     // (batch, length, channels)
  RequiredView<const accumulate_t<T>, 2, DeviceType> A;           // (channels, d_state), negative
  View<const T, 4, DeviceType> B = {};                            // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> B_constant = {};     // (channels, d_state); instead of B
  View<const T, 4, DeviceType> C = {};                            // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> C_constant = {};     // (channels, d_state); instead of C
  View<const accumulate_t<T>, 1, DeviceType> D = {};              // (channels)
  View<const T, 3, DeviceType> z = {};                            // (batch, length, channels)
  View<const accumulate_t<T>, 1, DeviceType> delta_bias = {};     // (channels)
  View<const accumulate_t<T>, 3, DeviceType> initial_state = {};  // (batch, channels, d_state), else 0
};

struct Options {
  bool delta_softplus = false;
};

/// Tokens between two saved states: on a GPU those whose states a thread can hold in registers.
template <Device D>
inline constexpr Index checkpoint_interval = std::is_same_v<D, cuda> ? 16 : 32;

/// How many of them a sequence has: after 32, 64, ... tokens, but not after the last.
template <Device D>
constexpr Index checkpoints_of(Index length) {
  return length > 0 ? (length - 1) / checkpoint_interval<D> : 0;
}

/// What forward keeps for backward. Reusable: forward keeps the memory where the shape is still the same.
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options;
  Tensor<accumulate_t<T>, 4, DeviceType> states;  // (batch, checkpoints, d_state, channels)
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
  RequiredView<T, 3, DeviceType> out;                     // (batch, length, channels)
  View<accumulate_t<T>, 3, DeviceType> final_state = {};  // (batch, channels, d_state)
};

/// Where the loss comes from: absent ones are zero.
template <class T, Device DeviceType = cpu>
struct OutputGradients {
  View<const T, 3, DeviceType> dout = {};                        // (batch, length, channels)
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
  View<T, 3, DeviceType> du = {}, ddelta = {};
  View<accumulate_t<T>, 2, DeviceType> dA = {};
  View<T, 4, DeviceType> dB = {};
  View<accumulate_t<T>, 2, DeviceType> dB_constant = {};
  View<T, 4, DeviceType> dC = {};
  View<accumulate_t<T>, 2, DeviceType> dC_constant = {};
  View<accumulate_t<T>, 1, DeviceType> dD = {};
  View<T, 3, DeviceType> dz = {};
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

/// (batch, channels) as (batch, groups, channels / groups); absent stays absent.
template <class T, Device D>
View<T, 3, D> rows_as_heads(const View<T, 2, D>& view, Index groups) {
  if (!view) return {};
  const Index size = view.extent(1) / groups;
  return {view.data(), {view.extent(0), groups, size}, {view.stride(0), size * view.stride(1), view.stride(1)}};
}

}  // namespace detail

/// Throws Error, with the operator, the argument, what was expected and what came, unless all shapes fit.
template <class T, Device D>
void check(const Inputs<T, D>& in) {
  constexpr const char* op = "selective_scan";
  const Extents<3> u = in.u.extents();
  const Index d_state = in.A.extent(1);
  require_operand(op, "u", in.u, u);
  require_operand(op, "delta", in.delta, u);
  require_operand(op, "z", in.z, u);
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
  require_operand("selective_scan", "out", outputs.out, in.u.extents());
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
  const Extents<4> checkpoints{u[0], checkpoints_of<D>(u[1]), A[1], u[2]};
  require(saved.states.extents() == checkpoints, op, ": saved holds states ", saved.states.extents(), ", expected ",
          checkpoints, "; it must come from a forward pass over the same inputs");
  require_operand(op, "dout", upstream.dout, u);
  if (upstream.dfinal_state) require_shape(op, "dfinal_state", upstream.dfinal_state, state);
  require_operand(op, "du", to.du, u);
  require_operand(op, "ddelta", to.ddelta, u);
  require_operand(op, "dz", to.dz, u);
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

template <class T, Device D>
void check(const HeadStepInputs<T, D>& in, const View<accumulate_t<T>, 4, D>& state, const View<T, 3, D>& out) {
  constexpr const char* op = "selective_scan::step";
  const Extents<3> x = in.x.extents();
  const Index d_state = in.A.extent(2), groups = in.B.extent(1);
  require_shape(op, "dt", in.dt, x);
  require_shape(op, "A", in.A, Extents{x[1], x[2], d_state});
  if (in.A.stride(2) != 0) require_dense_rows<const accumulate_t<T>, 3, D>(op, "A", in.A);
  require(groups > 0 && x[1] % groups == 0, op, ": B has ", groups, " groups, which do not divide ", x[1],
          " (B: ", in.B.extents(), ", x: ", x, ")");
  require_operand(op, "B", in.B, Extents{x[0], groups, d_state});
  require_operand(op, "C", in.C, in.B.extents());
  if (in.D) require_shape(op, "D", in.D, Extents{x[1], x[2]});
  if (in.z) require_shape(op, "z", in.z, x);
  if (in.dt_bias) require_shape(op, "dt_bias", in.dt_bias, Extents{x[1], x[2]});
  require_shape(op, "state", state, Extents{state.extent(0), x[1], x[2], d_state});
  require_dense_rows(op, "state", state);
  if (in.state_batch_indices)
    require_shape(op, "state_batch_indices", in.state_batch_indices, Extents{x[0]});
  else
    require(state.extent(0) == x[0], op, ": state has ", state.extent(0), " rows for a batch of ", x[0],
            "; give state_batch_indices to choose among them");
  require_shape(op, "out", out, x);
}

/// The Mamba-1 form of a step as the other one, with a head for each group of B and C.
template <class T, Device D>
HeadStepInputs<T, D> as_heads(const StepInputs<T, D>& in) {
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
  const Index size = u[1] / groups;
  const auto vector = [&](const View<const S, 1, D>& view) {
    return view ? View<const S, 2, D>(view.data(), {groups, size}, {size * view.stride(0), view.stride(0)})
                : View<const S, 2, D>();
  };
  return {.x = detail::rows_as_heads<const T, D>(in.u, groups),
          .dt = detail::rows_as_heads<const T, D>(in.delta, groups),
          .A = View<const S, 3, D>(in.A.data(), {groups, size, d_state},
                                   {size * in.A.stride(0), in.A.stride(0), in.A.stride(1)}),
          .B = in.B,
          .C = in.C,
          .D = vector(in.D),
          .z = detail::rows_as_heads<const T, D>(in.z, groups),
          .dt_bias = vector(in.delta_bias),
          .state_batch_indices = in.state_batch_indices};
}
/// Its state likewise.
template <class S, Device D>
View<S, 4, D> as_heads(const View<S, 3, D>& state, Index channels, Index groups, Index d_state) {
  require_shape("selective_scan::step", "state", state, Extents{state.extent(0), channels, d_state});
  const Index size = channels / groups;
  return {state.data(),
          {state.extent(0), groups, size, d_state},
          {state.stride(0), size * state.stride(1), state.stride(1), state.stride(2)}};
}

// selective_scan_forward.hpp
//   Outputs<T> forward(in, options = {})
//   void forward(in, options, output_views, Saved<T>* saved, Workspace<>& workspace)     saved null: inference
//   std::size_t workspace_bytes(in, options)
// selective_scan_backward.hpp
//   Gradients<T> backward(in, saved, output_gradients)
//   void backward(in, saved, output_gradients, gradient_views, workspace, mode = GradientMode::assign)
//   std::size_t workspace_bytes(in, saved)
// selective_scan_step.hpp
//   Tensor<T, 2> step(step_inputs, state, options = {})               state: (slots, channels, d_state), in place
//   Tensor<T, 3> step(head_step_inputs, state, options = {})          state: (slots, nheads, headdim, d_state)
//   void step(inputs, state, options, out)                            the same, never allocates

/// On a GPU, on the current stream. Nothing is read back, so the slots of state_batch_indices are not checked there:
/// they must be distinct, -1 is padding. Defined in selective_scan_{forward,backward,step}.cuh.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Options& options);
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             Saved<T, cuda>* saved, Workspace<cuda>& workspace);
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved);
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved, const OutputGradients<T, cuda>& upstream,
              const GradientViews<T, cuda>& gradients, Workspace<cuda>& workspace,
              GradientMode mode = GradientMode::assign);
template <class T>
void step(const StepInputs<T, cuda>& in, const View<accumulate_t<T>, 3, cuda>& state, const Options& options,
          const View<T, 2, cuda>& out);
template <class T>
void step(const HeadStepInputs<T, cuda>& in, const View<accumulate_t<T>, 4, cuda>& state, const Options& options,
          const View<T, 3, cuda>& out);

}  // namespace diffmamba::selective_scan
