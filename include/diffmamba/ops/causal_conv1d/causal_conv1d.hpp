// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/contract.hpp"  // require_operand

/// Causal depthwise convolution: every channel has a filter of its own, which sees the present and the width - 1 inputs
/// before it,
///
///   out_t = act(bias + sum_{w = 0}^{width - 1} weight_w x_{t - (width - 1) + w})
///
/// with x_{-1}, x_{-2}, ... from `initial_state` (its last column is x_{-1}), or 0. `final_state` is what the initial
/// state of the next piece of the sequence must be. The same function as causal_conv1d_fn and causal_conv1d_update of
/// the official package, but channel-last: no transposes between the projections, the convolution and the scan.
///
/// Not offered in this version: seq_idx and packed sequences.
namespace diffmamba::causal_conv1d {

enum class Activation { none, silu };

struct Options {
  Activation activation = Activation::none;
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 3, DeviceType> x;                         // (batch, length, channels)
  RequiredView<const accumulate_t<T>, 2, DeviceType> weight;      // (channels, width), width >= 1
  View<const accumulate_t<T>, 1, DeviceType> bias = {};           // (channels)
  View<const accumulate_t<T>, 3, DeviceType> initial_state = {};  // (batch, channels, width - 1), else 0
};

/// Where forward writes.
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredView<T, 3, DeviceType> out;                     // (batch, length, channels)
  View<accumulate_t<T>, 3, DeviceType> final_state = {};  // (batch, channels, width - 1)
};

/// What backward needs besides the inputs: nothing of tensor size (0 bytes per token). The sum before the activation is
/// computed again.
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options;
};

/// What forward returns.
template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 3, DeviceType> out;                        // (batch, length, channels)
  Tensor<accumulate_t<T>, 3, DeviceType> final_state;  // (batch, channels, width - 1)
  Saved<T, DeviceType> saved;
};

/// dL/d(output). An absent one is zero.
template <class T, Device DeviceType = cpu>
struct OutputGradients {
  View<const T, 3, DeviceType> dout = {};                        // (batch, length, channels)
  View<const accumulate_t<T>, 3, DeviceType> dfinal_state = {};  // (batch, channels, width - 1)
};

/// dL/d(input). dbias and dinitial_state are empty where the input was absent.
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 3, DeviceType> dx;
  Tensor<accumulate_t<T>, 2, DeviceType> dweight;
  Tensor<accumulate_t<T>, 1, DeviceType> dbias;
  Tensor<accumulate_t<T>, 3, DeviceType> dinitial_state;
};

/// Where backward writes; absent ones are not computed. dx must not overlap x or dout. `mode` of backward concerns
/// dweight and dbias.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 3, DeviceType> dx = {};
  View<accumulate_t<T>, 2, DeviceType> dweight = {};
  View<accumulate_t<T>, 1, DeviceType> dbias = {};
  View<accumulate_t<T>, 3, DeviceType> dinitial_state = {};
};

/// One or several new tokens of each sequence of a batch whose states are kept in `conv_state`, (slots, channels, S)
/// with any S >= width - 1. Row b uses slot conv_state_indices[b], or b; slot -1 is padding: its outputs are 0 and no
/// state is touched.
///   Without cache_seqlens, conv_state holds the last S inputs, the newest in the last column, and is shifted.
///   With cache_seqlens (inputs that each row has seen so far) it is a ring: input number i of a row lies in column i %
///   S. The caller advances cache_seqlens.
template <class T, Device DeviceType = cpu>
struct StepInputs {
  RequiredView<const T, 3, DeviceType> x;                     // (batch, tokens, channels)
  RequiredView<const accumulate_t<T>, 2, DeviceType> weight;  // (channels, width)
  View<const accumulate_t<T>, 1, DeviceType> bias = {};       // (channels)
  View<const Index, 1, DeviceType> cache_seqlens = {};        // (batch), >= 0
  View<const Index, 1, DeviceType> conv_state_indices = {};   // (batch), distinct slots or -1
};

/// Throws Error, naming the argument and both shapes.
template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in) {
  constexpr const char* op = "causal_conv1d";
  const Index batch = in.x.extent(0), channels = in.x.extent(2), width = in.weight.extent(1);
  require(width >= 1, op, ": weight is ", in.weight.extents(), "; the width must be 1 or more");
  require_dense_rows(op, "x", in.x);
  require(in.weight.extent(0) == channels, op, ": weight is for ", in.weight.extent(0), " channels but x has ",
          channels, " (weight: ", in.weight.extents(), ", x: ", in.x.extents(), ")");
  require_dense_rows(op, "weight", in.weight);
  require_operand(op, "bias", in.bias, Extents{channels});
  require_operand(op, "initial_state", in.initial_state, Extents{batch, channels, width - 1});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const OutputViews<T, DeviceType>& outputs) {
  check(in);
  require_operand("causal_conv1d", "out", outputs.out, in.x.extents());
  require_operand("causal_conv1d", "final_state", outputs.final_state,
                  Extents{in.x.extent(0), in.x.extent(2), in.weight.extent(1) - 1});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const OutputGradients<T, DeviceType>& upstream,
           const GradientViews<T, DeviceType>& gradients) {
  constexpr const char* op = "causal_conv1d";
  const Extents state{in.x.extent(0), in.x.extent(2), in.weight.extent(1) - 1};
  check(in);
  require_operand(op, "x", in.x, in.x.extents());
  require_operand(op, "dout", upstream.dout, in.x.extents());
  require_operand(op, "dfinal_state", upstream.dfinal_state, state);
  require_operand(op, "dx", gradients.dx, in.x.extents());
  require_operand(op, "dweight", gradients.dweight, in.weight.extents());
  require_operand(op, "dbias", gradients.dbias, Extents{in.x.extent(2)});
  require_operand(op, "dinitial_state", gradients.dinitial_state, state);
}

template <class T, Device DeviceType>
void check(const StepInputs<T, DeviceType>& in, const View<accumulate_t<T>, 3, DeviceType>& conv_state,
           const View<T, 3, DeviceType>& out) {
  constexpr const char* op = "causal_conv1d::step";
  const Index batch = in.x.extent(0), channels = in.x.extent(2), width = in.weight.extent(1);
  require(width >= 1, op, ": weight is ", in.weight.extents(), "; the width must be 1 or more");
  require_operand(op, "x", in.x, in.x.extents());
  require_operand(op, "weight", in.weight, Extents{channels, width});
  require_operand(op, "bias", in.bias, Extents{channels});
  require_operand(op, "cache_seqlens", in.cache_seqlens, Extents{batch});
  require_operand(op, "conv_state_indices", in.conv_state_indices, Extents{batch});
  require(conv_state.extent(1) == channels && conv_state.extent(2) >= width - 1, op, ": conv_state is ",
          conv_state.extents(), ", expected (slots, ", channels, ", ", width - 1, " or more)");
  require(in.conv_state_indices || conv_state.extent(0) == batch, op, ": conv_state has ", conv_state.extent(0),
          " slots for a batch of ", batch, "; give conv_state_indices");
  require_dense_rows(op, "conv_state", conv_state);
  require_operand(op, "out", out, in.x.extents());
}

// causal_conv1d_forward.hpp
//   Outputs forward(in, options = {});
//   void forward(in, options, outputs, Saved* saved, workspace);            saved null: inference
// causal_conv1d_backward.hpp
//   Gradients backward(in, saved, {.dout = ..., .dfinal_state = ...});
//   void backward(in, saved, upstream, gradients, workspace, mode = GradientMode::assign);
// causal_conv1d_step.hpp
//   Tensor step(in, conv_state, options = {});
//   void step(in, conv_state, options, out);
// Both, and enough for either:
//   std::size_t workspace_bytes(in);

// On a GPU, in the order of the current stream; defined in the .cuh files of the same names. What a step reads on the
// device (cache_seqlens, conv_state_indices) is not checked there: slots below 0 are padding, others must exist.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in);
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved, Workspace<cuda>& workspace);
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode = GradientMode::assign);
template <class T>
void step(const StepInputs<T, cuda>& in, const std::type_identity_t<View<accumulate_t<T>, 3, cuda>>& conv_state,
          const Options& options, const std::type_identity_t<View<T, 3, cuda>>& out);

}  // namespace diffmamba::causal_conv1d
