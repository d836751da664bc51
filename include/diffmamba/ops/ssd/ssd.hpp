// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>        // std::exp
#include <limits>       // std::numeric_limits
#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"
#include "diffmamba/ops/contract.hpp"  // require_operand

/// State space duality (Mamba-2, arXiv 2405.21060): per head h with group g = h / (nheads / ngroups)
///
///   dt_t = clamp(softplus(dt_t + dt_bias), dt_min, dt_max)                (dt_bias, softplus and clamp optional)
///   S_t  = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T                           S: (headdim, d_state)
///   y_t  = S_t C_t + D x_t                                                (D optional)
///   out_t = y_t * silu(z_t)                                               (z optional)
///
/// computed in chunks as matrix products, forward and backward. The same function as mamba_chunk_scan_combined of the
/// official package. chunk_size never changes the result beyond rounding.
///
/// All inputs may be strided with the last axis contiguous: x, B and C are slices of the convolution's output, z and dt
/// of the input projection's. `minimal` (ssd_minimal.hpp) is the same without dt: x comes scaled, the log decay is
/// given.
///
/// Not offered in this version: seq_idx and packed sequences.
namespace diffmamba::ssd {

struct Options {
  Index chunk_size = 128;  // an upper bound: see `chunk` for what is used
  bool dt_softplus = false;
  double dt_min = 0.0;  // the official dt_limit; the gradient of the clamp is zero outside
  double dt_max = std::numeric_limits<double>::infinity();
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 4, DeviceType> x;                         // (batch, length, nheads, headdim)
  RequiredView<const T, 3, DeviceType> dt;                        // (batch, length, nheads)
  RequiredView<const accumulate_t<T>, 1, DeviceType> A;           // (nheads), negative
  RequiredView<const T, 4, DeviceType> B;                         // (batch, length, ngroups, d_state)
  RequiredView<const T, 4, DeviceType> C;                         // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 1, DeviceType> D = {};              // (nheads)
  View<const accumulate_t<T>, 2, DeviceType> D_per_channel = {};  // (nheads, headdim); instead of D
  View<const T, 4, DeviceType> z = {};                            // (batch, length, nheads, headdim)
  View<const accumulate_t<T>, 1, DeviceType> dt_bias = {};        // (nheads)
  View<const accumulate_t<T>, 4, DeviceType> initial_state = {};  // (batch, nheads, headdim, d_state), else 0
};

/// Where forward writes. out may be the memory of x or z (if no backward follows).
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredView<T, 4, DeviceType> out;                     // (batch, length, nheads, headdim)
  View<accumulate_t<T>, 4, DeviceType> final_state = {};  // (batch, nheads, headdim, d_state)
};

/// The state at the start of every chunk, nothing per token: 4 d_state headdim / chunk bytes per token and head (twice
/// in double), which for chunk 64, headdim 64, d_state 64 is as much as x. Everything else is computed again.
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options = {};
  Tensor<accumulate_t<T>, 5, DeviceType> states = {};  // (batch, chunks, nheads, d_state, headdim), transposed
};

/// On a GPU nothing but the options: the states of chunks are computed again, which costs backward less than a tenth of
/// its time and spares as much memory as x takes.
template <class T>
struct Saved<T, cuda> {
  Options options = {};
};

/// What the returning form of forward returns.
template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 4, DeviceType> out;                        // (batch, length, nheads, headdim)
  Tensor<accumulate_t<T>, 4, DeviceType> final_state;  // (batch, nheads, headdim, d_state)
  Saved<T, DeviceType> saved;
};

/// dL/d(output). An absent one is zero.
template <class T, Device DeviceType = cpu>
struct OutputGradients {
  View<const T, 4, DeviceType> dout = {};                        // (batch, length, nheads, headdim)
  View<const accumulate_t<T>, 4, DeviceType> dfinal_state = {};  // (batch, nheads, headdim, d_state)
};

/// dL/d(input), empty where the input was absent.
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 4, DeviceType> dx;
  Tensor<T, 3, DeviceType> ddt;
  Tensor<accumulate_t<T>, 1, DeviceType> dA;
  Tensor<T, 4, DeviceType> dB, dC;
  Tensor<accumulate_t<T>, 1, DeviceType> dD;
  Tensor<accumulate_t<T>, 2, DeviceType> dD_per_channel;
  Tensor<T, 4, DeviceType> dz;
  Tensor<accumulate_t<T>, 1, DeviceType> ddt_bias;
  Tensor<accumulate_t<T>, 4, DeviceType> dinitial_state;
};

/// Where backward writes; absent ones are not written. `mode` of backward concerns dA, dD, dD_per_channel and ddt_bias.
/// dx may be the memory of dout, dz that of z, ddt that of dt.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 4, DeviceType> dx = {};
  View<T, 3, DeviceType> ddt = {};
  View<accumulate_t<T>, 1, DeviceType> dA = {};
  View<T, 4, DeviceType> dB = {}, dC = {};
  View<accumulate_t<T>, 1, DeviceType> dD = {};
  View<accumulate_t<T>, 2, DeviceType> dD_per_channel = {};
  View<T, 4, DeviceType> dz = {};
  View<accumulate_t<T>, 1, DeviceType> ddt_bias = {};
  View<accumulate_t<T>, 4, DeviceType> dinitial_state = {};
};

/// One or several new tokens of each sequence of a batch whose states are kept in `ssm_state`, (slots, nheads, headdim,
/// d_state). Row b uses slot state_indices[b], or b; slot -1 is padding: its outputs are 0 and no state is touched.
template <class T, Device DeviceType = cpu>
struct StepInputs {
  RequiredView<const T, 4, DeviceType> x;                         // (batch, tokens, nheads, headdim)
  RequiredView<const T, 3, DeviceType> dt;                        // (batch, tokens, nheads)
  RequiredView<const accumulate_t<T>, 1, DeviceType> A;           // (nheads), negative
  RequiredView<const T, 4, DeviceType> B;                         // (batch, tokens, ngroups, d_state)
  RequiredView<const T, 4, DeviceType> C;                         // (batch, tokens, ngroups, d_state)
  View<const accumulate_t<T>, 1, DeviceType> D = {};              // (nheads)
  View<const accumulate_t<T>, 2, DeviceType> D_per_channel = {};  // (nheads, headdim); instead of D
  View<const T, 4, DeviceType> z = {};                            // (batch, tokens, nheads, headdim)
  View<const accumulate_t<T>, 1, DeviceType> dt_bias = {};        // (nheads)
  View<const Index, 1, DeviceType> state_indices = {};            // (batch), distinct slots or -1
};

/// The tokens of a scan as new tokens of each sequence.
template <class T, Device DeviceType>
StepInputs<T, DeviceType> step_inputs(const Inputs<T, DeviceType>& in) {
  return {.x = in.x,
          .dt = in.dt,
          .A = in.A,
          .B = in.B,
          .C = in.C,
          .D = in.D,
          .D_per_channel = in.D_per_channel,
          .z = in.z,
          .dt_bias = in.dt_bias};
}

// --- The formula of one step, for every device -----------------------------------------------------------------------

/// dt as the recurrence uses it, from dt as it comes in plus its bias.
template <class A>
DIFFMAMBA_HOST_DEVICE inline A discretize(A dt, A dt_bias, const Options& options) {
  A value = dt + dt_bias;
  if (options.dt_softplus) value = softplus(value);
  const A low = static_cast<A>(options.dt_min), high = static_cast<A>(options.dt_max);
  return value < low ? low : value > high ? high : value;
}

/// d discretize / d dt (and / d dt_bias): zero where the clamp holds.
template <class A>
DIFFMAMBA_HOST_DEVICE inline A discretize_derivative(A dt, A dt_bias, const Options& options) {
  const A sum = dt + dt_bias, value = options.dt_softplus ? softplus(sum) : sum;
  if (value < static_cast<A>(options.dt_min) || value > static_cast<A>(options.dt_max)) return A(0);
  return options.dt_softplus ? softplus_derivative(sum) : A(1);
}

/// What is left after one step of a state that was there before it. dt from `discretize`.
template <class Scalar>
DIFFMAMBA_HOST_DEVICE inline Scalar decay(Scalar dt, Scalar A) {
  return std::exp(dt * A);
}

// --- Sizes and checks ------------------------------------------------------------------------------------------------

/// Steps of one chunk. chunk_size is what the user allows; 64 is where products, decay matrices and states balance for
/// the head and state sizes in use (bench/ops/ssd).
inline Index chunk(const Options& options) {
  return options.chunk_size < 64 ? options.chunk_size : 64;
}
inline Index chunk_count(Index length, const Options& options) {
  return (length + chunk(options) - 1) / chunk(options);
}

struct Sizes {
  Index batch, length, nheads, headdim, ngroups, d_state;
  Index heads_per_group() const { return nheads / ngroups; }
};

template <class AnyInputs>
Sizes sizes(const AnyInputs& in) {
  return {in.x.extent(0), in.x.extent(1), in.x.extent(2), in.x.extent(3), in.B.extent(2), in.B.extent(3)};
}

inline void check(const Options& options, const char* op = "ssd") {
  require(options.chunk_size >= 1, op, ": chunk_size is ", options.chunk_size, ", expected 1 or more");
  require(options.dt_min <= options.dt_max, op, ": dt_min ", options.dt_min, " is above dt_max ", options.dt_max);
}

/// What x, B and C must agree on.
template <class AnyInputs>
void require_groups(const AnyInputs& in, const char* op) {
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  require(in.C.extent(3) == d_state, op, ": B has d_state ", d_state, " but C has ", in.C.extent(3),
          " (B: ", in.B.extents(), ", C: ", in.C.extents(), ")");
  require(in.C.extent(2) == ngroups, op, ": B has ", ngroups, " groups but C has ", in.C.extent(2),
          " (B: ", in.B.extents(), ", C: ", in.C.extents(), ")");
  require(ngroups >= 1 && nheads % ngroups == 0, op, ": ", nheads, " heads cannot be divided into ", ngroups,
          " groups (x: ", in.x.extents(), ", B: ", in.B.extents(), ")");
  require_dense_rows(op, "x", in.x);
  require_operand(op, "B", in.B, Extents{batch, length, ngroups, d_state});
  require_operand(op, "C", in.C, Extents{batch, length, ngroups, d_state});
}

/// Throws Error, naming the argument and both shapes.
template <class AnyInputs>  // Inputs or StepInputs
void check_operands(const AnyInputs& in, const char* op) {
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  require_groups(in, op);
  require_shape(op, "dt", in.dt, Extents{batch, length, nheads});
  require_operand(op, "A", in.A, Extents{nheads});
  require(!(in.D && in.D_per_channel), op, ": D and D_per_channel are both given; give one");
  require_operand(op, "D", in.D, Extents{nheads});
  require_operand(op, "D_per_channel", in.D_per_channel, Extents{nheads, headdim});
  require_operand(op, "z", in.z, in.x.extents());
  require_operand(op, "dt_bias", in.dt_bias, Extents{nheads});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options) {
  check(options);
  check_operands(in, "ssd");
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  require_operand("ssd", "initial_state", in.initial_state, Extents{batch, nheads, headdim, d_state});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputViews<T, DeviceType>& outputs) {
  check(in, options);
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  require_operand("ssd", "out", outputs.out, in.x.extents());
  require_operand("ssd", "final_state", outputs.final_state, Extents{batch, nheads, headdim, d_state});
}

template <class T, Device DeviceType>
void check_saved(const Saved<T, DeviceType>& saved, const Sizes& s, const char* op) {
  const Extents expected{s.batch, chunk_count(s.length, saved.options), s.nheads, s.d_state, s.headdim};
  require(saved.states && saved.states.extents() == expected, op,
          ": saved does not come from a forward over inputs of this shape (its states: ", saved.states.extents(),
          ", expected ", expected, ")");
}

template <class T>
void check_saved(const Saved<T, cuda>&, const Sizes&, const char*) {}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Saved<T, DeviceType>& saved,
           const OutputGradients<T, DeviceType>& upstream, const GradientViews<T, DeviceType>& gradients) {
  constexpr const char* op = "ssd";
  check(in, saved.options);
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  const Extents state{batch, nheads, headdim, d_state};
  check_saved(saved, sizes(in), op);
  require_operand(op, "dout", upstream.dout, in.x.extents());
  require_operand(op, "dfinal_state", upstream.dfinal_state, state);
  require_operand(op, "dx", gradients.dx, in.x.extents());
  if (gradients.ddt) require_shape(op, "ddt", gradients.ddt, in.dt.extents());
  require_operand(op, "dA", gradients.dA, in.A.extents());
  require_operand(op, "dB", gradients.dB, in.B.extents());
  require_operand(op, "dC", gradients.dC, in.C.extents());
  require(in.D || !gradients.dD, op, ": dD is asked for without D");
  require_operand(op, "dD", gradients.dD, Extents{nheads});
  require(in.D_per_channel || !gradients.dD_per_channel, op, ": dD_per_channel is asked for without D_per_channel");
  require_operand(op, "dD_per_channel", gradients.dD_per_channel, Extents{nheads, headdim});
  require(in.z || !gradients.dz, op, ": dz is asked for without z");
  require_operand(op, "dz", gradients.dz, in.x.extents());
  require_operand(op, "ddt_bias", gradients.ddt_bias, Extents{nheads});
  require_operand(op, "dinitial_state", gradients.dinitial_state, state);
}

template <class T, class S, Device DeviceType>
void check(const StepInputs<T, DeviceType>& in, const View<S, 4, DeviceType>& ssm_state, const Options& options,
           const View<T, 4, DeviceType>& out) {
  constexpr const char* op = "ssd::step";
  check(options, op);
  check_operands(in, op);
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  require_operand(op, "state_indices", in.state_indices, Extents{batch});
  require(in.state_indices || ssm_state.extent(0) == batch, op, ": ssm_state has ", ssm_state.extent(0),
          " slots for a batch of ", batch, "; give state_indices");
  require_operand(op, "ssm_state", ssm_state, Extents{ssm_state.extent(0), nheads, headdim, d_state});
  require_operand(op, "out", out, in.x.extents());
}

// ssd_forward.hpp
//   Outputs forward(in, options = {});
//   void forward(in, options, outputs, Saved* saved, workspace);            saved null: inference
//   std::size_t workspace_bytes(in, options);                               of forward
// ssd_backward.hpp
//   Gradients backward(in, saved, {.dout = ..., .dfinal_state = ...});
//   void backward(in, saved, upstream, gradients, workspace, mode = GradientMode::assign);
//   std::size_t workspace_bytes(in, saved);                                 of backward
// ssd_step.hpp
//   Tensor step(in, ssm_state, options = {});
//   void step(in, ssm_state, options, out);

// On a GPU, on the calling thread's current stream; defined in ssd_forward.cuh and ssd_step.cuh. state_indices are read
// by the GPU only: one that is neither -1 nor a slot is the caller's mistake and goes unnoticed.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Options& options);
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options,
             const std::type_identity_t<OutputViews<T, cuda>>& outputs, std::type_identity_t<Saved<T, cuda>>* saved,
             Workspace<cuda>& workspace);
template <class T>
void step(const StepInputs<T, cuda>& in, const std::type_identity_t<View<accumulate_t<T>, 4, cuda>>& ssm_state,
          const Options& options, const std::type_identity_t<View<T, 4, cuda>>& out);
/// With states that memory keeps in 16 bits: half the way, and a rounding at every token. Increments of less than half
/// a unit in the last place are lost, so that what decays slowly stops growing at about 2^8 (bfloat16) of them.
template <class T>
requires(sizeof(T) == 2) void step(const StepInputs<T, cuda>& in,
                                   const std::type_identity_t<View<T, 4, cuda>>& ssm_state, const Options& options,
                                   const std::type_identity_t<View<T, 4, cuda>>& out);

// ssd_backward.cuh
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved);
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode = GradientMode::assign);

}  // namespace diffmamba::ssd
