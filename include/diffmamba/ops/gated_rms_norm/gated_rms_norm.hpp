// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/contract.hpp"  // require_operand

/// Root mean square normalisation of groups of consecutive channels, with a gate: Mamba-2's norm before its output
/// projection (arXiv 2405.21060; RMSNormGated of the official package).
///
///   norm(u) = u / sqrt(mean over u's group of u^2 + eps)
///   norm_before_gate:   out = (norm(x) * weight + bias) * silu(z)
///   else:               out = norm(x * silu(z)) * weight + bias
///
/// The two paths of a differential block are twice the groups of one.
namespace diffmamba::gated_rms_norm {

struct Options {
  double eps = 1e-5;
  Index group_size = 0;          // channels of one group, a divisor of the channels; 0: all of them
  bool norm_before_gate = true;  // as in the official module; Mamba2 sets it to false
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 3, DeviceType> x;                     // (batch, length, channels)
  RequiredView<const accumulate_t<T>, 1, DeviceType> weight;  // (channels)
  View<const T, 3, DeviceType> z = {};                        // (batch, length, channels), else no gate
  View<const accumulate_t<T>, 1, DeviceType> bias = {};       // (channels)
};

/// Where forward writes. out may be the memory of x (if no backward follows).
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredView<T, 3, DeviceType> out;  // (batch, length, channels)
};

/// 1 / sqrt(mean + eps) of each group: 4 bytes per token and group (8 in double).
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options = {};
  Tensor<accumulate_t<T>, 3, DeviceType> rstd = {};  // (batch, length, groups)
};

template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 3, DeviceType> out;
  Saved<T, DeviceType> saved;
};

template <class T, Device DeviceType = cpu>
struct OutputGradients {
  RequiredView<const T, 3, DeviceType> dout;  // (batch, length, channels)
};

/// dL/d(input), empty where the input was absent.
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 3, DeviceType> dx, dz;
  Tensor<accumulate_t<T>, 1, DeviceType> dweight, dbias;
};

/// Where backward writes; absent ones are not computed. dx may be the memory of dout or x, dz that of z. `mode` of
/// backward concerns dweight and dbias. `out` is what forward returned, once more: for who has not kept it and needs it
/// for the gradient of what came behind; it may be the memory of x.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 3, DeviceType> dx = {}, dz = {};
  View<accumulate_t<T>, 1, DeviceType> dweight = {}, dbias = {};
  View<T, 3, DeviceType> out = {};
};

/// Channels of one group.
inline Index group_size(Index channels, const Options& options) {
  return options.group_size > 0 ? options.group_size : channels;
}
inline Index group_count(Index channels, const Options& options) {
  return channels == 0 ? 0 : channels / group_size(channels, options);
}

/// Throws Error, naming the argument and both shapes.
template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const char* op = "gated_rms_norm") {
  const Extents<3> shape = in.x.extents();
  const Index channels = shape[2], size = options.group_size;
  require(options.eps >= 0, op, ": eps is ", options.eps, ", expected 0 or more");
  require(size >= 0 && (size == 0 || channels % size == 0), op, ": group_size ", size, " does not divide ", channels,
          " channels (x: ", shape, ")");
  require_operand(op, "x", in.x, shape);
  require_operand(op, "weight", in.weight, Extents{channels});
  require_operand(op, "z", in.z, shape);
  require_operand(op, "bias", in.bias, Extents{channels});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputViews<T, DeviceType>& outputs,
           const char* op = "gated_rms_norm") {
  check(in, options, op);
  require_operand(op, "out", outputs.out, in.x.extents());
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputGradients<T, DeviceType>& upstream,
           const GradientViews<T, DeviceType>& gradients, const char* op = "gated_rms_norm") {
  const Extents<3> shape = in.x.extents();
  check(in, options, op);
  require_operand(op, "dout", upstream.dout, shape);
  require_operand(op, "dx", gradients.dx, shape);
  require(in.z || !gradients.dz, op, ": dz is asked for without z");
  require_operand(op, "dz", gradients.dz, shape);
  require_operand(op, "dweight", gradients.dweight, Extents{shape[2]});
  require_operand(op, "dbias", gradients.dbias, Extents{shape[2]});
  require_operand(op, "out", gradients.out, shape);
}

// gated_rms_norm_forward.hpp
//   Outputs forward(in, options = {});
//   void forward(in, options, outputs, Saved* saved);                       saved null: inference
// gated_rms_norm_backward.hpp
//   Gradients backward(in, saved, {.dout = ...});
//   void backward(in, saved, upstream, gradients, workspace, mode = GradientMode::assign);
//   std::size_t workspace_bytes(in);                                        of backward; forward needs none

// On a GPU, defined in gated_rms_norm_forward.cuh and gated_rms_norm_backward.cuh.
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved);
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in);
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode = GradientMode::assign);

}  // namespace diffmamba::gated_rms_norm
