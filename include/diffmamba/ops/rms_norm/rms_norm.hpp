// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/contract.hpp"  // require_operand

/// Root mean square normalisation, fused with the addition of the residual stream that stands before it in a block:
///
///   r    = rowscale * x + x1 + residual                                         (each but x optional)
///   out  = scale * (r / sqrt(mean(r^2) + eps) * weight + bias)                  (mean over the channels of a row)
///   out1 = the same normalised row with weight1 and bias1                       (optional)
///
/// after arXiv 1910.07467, with the options of the official fused add + norm. The residual stream, and with it r, has
/// the type of sums: with 16-bit activations it stays float, however deep the model.
namespace diffmamba::rms_norm {

struct Options {
  double eps = 1e-5;
  double scale = 1.0;    // a differential block's 1 - lambda_init
  bool prenorm = false;  // the returning form returns r too (the writing form does where a view is given)
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 3, DeviceType> x;                     // (batch, length, channels)
  RequiredView<const accumulate_t<T>, 1, DeviceType> weight;  // (channels)
  View<const accumulate_t<T>, 1, DeviceType> bias = {};       // (channels)
  View<const accumulate_t<T>, 3, DeviceType> residual = {};   // (batch, length, channels)
  View<const T, 3, DeviceType> x1 = {};                       // (batch, length, channels), of a parallel block
  View<const accumulate_t<T>, 1, DeviceType> weight1 = {};    // (channels); asks for out1
  View<const accumulate_t<T>, 1, DeviceType> bias1 = {};      // (channels), with weight1
  View<const accumulate_t<T>, 2, DeviceType> rowscale = {};   // (batch, length), scales x only
};

/// Where forward writes. residual_out may be the memory of residual, and out that of x.
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredView<T, 3, DeviceType> out;                      // (batch, length, channels)
  View<T, 3, DeviceType> out1 = {};                        // (batch, length, channels), with weight1
  View<accumulate_t<T>, 3, DeviceType> residual_out = {};  // (batch, length, channels): r
};

/// 1 / sqrt(mean(r^2) + eps) of each row: 4 bytes per token (8 in double).
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options = {};
  Tensor<accumulate_t<T>, 2, DeviceType> rstd = {};  // (batch, length)
};

/// What forward returns; out1 without weight1 and residual_out without prenorm are empty.
/// `auto [out, residual_out, out1, saved] = rms_norm::forward(in, {.prenorm = true});`
template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 3, DeviceType> out;
  Tensor<accumulate_t<T>, 3, DeviceType> residual_out;
  Tensor<T, 3, DeviceType> out1;
  Saved<T, DeviceType> saved;
};

/// dL/d(output); an absent one is zero. Who has kept r from the forward pass gives it as `residual_out`: backward then
/// reads it instead of adding up x, x1 and residual again, whose values need not exist any more (`.x = {nullptr,
/// shape}`; with rowscale, drowscale still reads x).
template <class T, Device DeviceType = cpu>
struct OutputGradients {
  View<const T, 3, DeviceType> dout = {};
  View<const T, 3, DeviceType> dout1 = {};
  View<const accumulate_t<T>, 3, DeviceType> dresidual_out = {};
  View<const accumulate_t<T>, 3, DeviceType> residual_out = {};
};

/// dL/d(input), empty where the input was absent.
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 3, DeviceType> dx, dx1;
  Tensor<accumulate_t<T>, 3, DeviceType> dresidual;
  Tensor<accumulate_t<T>, 1, DeviceType> dweight, dbias, dweight1, dbias1;
  Tensor<accumulate_t<T>, 2, DeviceType> drowscale;
};

/// Where backward writes; absent ones are not computed. Without rowscale dx, dx1 and dresidual are the same numbers:
/// take one. dresidual may be the memory of dresidual_out. `mode` of backward concerns weights and biases. out becomes
/// what forward wrote there, for whoever did not keep it.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 3, DeviceType> dx = {}, dx1 = {};
  View<accumulate_t<T>, 3, DeviceType> dresidual = {};
  View<accumulate_t<T>, 1, DeviceType> dweight = {}, dbias = {}, dweight1 = {}, dbias1 = {};
  View<accumulate_t<T>, 2, DeviceType> drowscale = {};
  View<T, 3, DeviceType> out = {};
};

/// Throws Error, naming the argument and both shapes. `op` is the norm's name, rms_norm or layer_norm.
template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const char* op = "rms_norm") {
  const Extents<3> shape = in.x.extents();
  const Extents<1> channels{shape[2]};
  require(options.eps >= 0, op, ": eps is ", options.eps, ", expected 0 or more");
  require_dense_rows(op, "x", in.x);
  require_operand(op, "weight", in.weight, channels);
  require_operand(op, "bias", in.bias, channels);
  require_operand(op, "residual", in.residual, shape);
  require_operand(op, "x1", in.x1, shape);
  require_operand(op, "weight1", in.weight1, channels);
  require_operand(op, "bias1", in.bias1, channels);
  require(in.weight1 || !in.bias1, op, ": bias1 is given without weight1");
  if (in.rowscale) require_shape(op, "rowscale", in.rowscale, Extents{shape[0], shape[1]});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputViews<T, DeviceType>& outputs,
           const char* op = "rms_norm") {
  check(in, options, op);
  require_operand(op, "out", outputs.out, in.x.extents());
  require(bool(outputs.out1) == bool(in.weight1), op, ": out1 and weight1 must be given together");
  require_operand(op, "out1", outputs.out1, in.x.extents());
  require_operand(op, "residual_out", outputs.residual_out, in.x.extents());
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputGradients<T, DeviceType>& upstream,
           const GradientViews<T, DeviceType>& gradients, const char* op = "rms_norm") {
  const Extents<3> shape = in.x.extents();
  const Extents<1> channels{shape[2]};
  check(in, options, op);
  require_operand(op, "dout", upstream.dout, shape);
  require_operand(op, "dout1", upstream.dout1, shape);
  require(in.weight1 || !upstream.dout1, op, ": dout1 is given without weight1");
  require_operand(op, "dresidual_out", upstream.dresidual_out, shape);
  require_operand(op, "residual_out", upstream.residual_out, shape);
  require_operand(op, "dx", gradients.dx, shape);
  require_operand(op, "dx1", gradients.dx1, shape);
  require_operand(op, "dresidual", gradients.dresidual, shape);
  require_operand(op, "dweight", gradients.dweight, channels);
  require_operand(op, "dbias", gradients.dbias, channels);
  require_operand(op, "dweight1", gradients.dweight1, channels);
  require_operand(op, "dbias1", gradients.dbias1, channels);
  require(in.rowscale || !gradients.drowscale, op, ": drowscale is asked for without rowscale");
  if (gradients.drowscale) require_shape(op, "drowscale", gradients.drowscale, Extents{shape[0], shape[1]});
  require_operand(op, "out", gradients.out, shape);
}

// rms_norm_forward.hpp
//   Outputs forward(in, options = {});
//   void forward(in, options, outputs, Saved* saved);                       saved null: inference
// rms_norm_backward.hpp
//   Gradients backward(in, saved, {.dout = ..., .dresidual_out = ...});
//   void backward(in, saved, upstream, gradients, workspace, mode = GradientMode::assign);
//   std::size_t workspace_bytes(in);                                        of backward; forward needs none

// On a GPU, defined in rms_norm_forward.cuh and rms_norm_backward.cuh.
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

}  // namespace diffmamba::rms_norm
