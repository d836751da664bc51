// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/contract.hpp"                     // require_operand
#include "diffmamba/ops/differential_combine/lambda.hpp"  // Norm, Lambda, lambda_init

/// The combination of the two paths of a differential block (Differential Mamba, arXiv 2507.06204, Eq. 20, and its
/// variants):
///
///   n_i = RMS(y_i) * norm_weight   (norm before, before_and_after)   else y_i
///   u   = n_1 - lambda * n_2
///   out = scale * RMS(u) * subln_weight   (norm after, before_and_after)   else scale * u
///
/// with RMS(u) = u / sqrt(mean(u^2) + eps) over the channels of a row and scale = 1 - lambda_init (`output_scale`).
/// lambda comes from lambda.hpp, one number or one for each channel. A block whose paths run as one folds lambda into
/// its output projection and needs this operator only for norms before the subtraction.
namespace diffmamba::differential_combine {

struct Options {
  Norm norm = Norm::after;
  double scale = 1.0;  // output_scale(form, lambda_init)
  double eps = 1e-5;
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 3, DeviceType> y1;                       // (batch, length, channels)
  RequiredView<const T, 3, DeviceType> y2;                       // (batch, length, channels)
  View<const accumulate_t<T>, 1, DeviceType> lambda = {};        // (1) or (channels), else 1
  View<const accumulate_t<T>, 1, DeviceType> norm_weight = {};   // (channels), exactly with a norm before
  View<const accumulate_t<T>, 1, DeviceType> subln_weight = {};  // (channels), exactly with a norm after
};

/// Where forward writes.
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredView<T, 3, DeviceType> out;  // (batch, length, channels)
};

/// 1 / sqrt(mean + eps) of y1, y2 and u for each row: 12 bytes per token (24 in double).
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options = {};
  Tensor<accumulate_t<T>, 3, DeviceType> rstd = {};  // (batch, length, 3); those without a norm are not used
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
  Tensor<T, 3, DeviceType> dy1, dy2;
  Tensor<accumulate_t<T>, 1, DeviceType> dlambda, dnorm_weight, dsubln_weight;
};

/// Where backward writes; absent ones are not computed. `mode` of backward concerns all but dy1 and dy2.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 3, DeviceType> dy1 = {}, dy2 = {};
  View<accumulate_t<T>, 1, DeviceType> dlambda = {}, dnorm_weight = {}, dsubln_weight = {};
};

inline bool norm_before(const Options& options) {
  return options.norm == Norm::before || options.norm == Norm::before_and_after;
}
inline bool norm_after(const Options& options) {
  return options.norm == Norm::after || options.norm == Norm::before_and_after;
}

/// Throws Error, naming the argument and both shapes.
template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options) {
  constexpr const char* op = "differential_combine";
  const Extents<1> channels{in.y1.extent(2)};
  require(options.eps >= 0, op, ": eps is ", options.eps, ", expected 0 or more");
  require_dense_rows(op, "y1", in.y1);
  require_operand(op, "y2", in.y2, in.y1.extents());
  if (in.lambda) {
    require(in.lambda.extent(0) == 1 || in.lambda.extent(0) == channels[0], op, ": lambda is ", in.lambda.extents(),
            ", expected (1) or ", channels);
    require_dense_rows(op, "lambda", in.lambda);
  }
  require(bool(in.norm_weight) == norm_before(options), op, ": norm_weight must be given exactly with a norm before");
  require(bool(in.subln_weight) == norm_after(options), op, ": subln_weight must be given exactly with a norm after");
  require_operand(op, "norm_weight", in.norm_weight, channels);
  require_operand(op, "subln_weight", in.subln_weight, channels);
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputViews<T, DeviceType>& outputs) {
  check(in, options);
  require_operand("differential_combine", "out", outputs.out, in.y1.extents());
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputGradients<T, DeviceType>& upstream,
           const GradientViews<T, DeviceType>& gradients) {
  constexpr const char* op = "differential_combine";
  const Extents<1> channels{in.y1.extent(2)};
  check(in, options);
  require_operand(op, "dout", upstream.dout, in.y1.extents());
  require_operand(op, "dy1", gradients.dy1, in.y1.extents());
  require_operand(op, "dy2", gradients.dy2, in.y1.extents());
  require(in.lambda || !gradients.dlambda, op, ": dlambda is asked for without lambda");
  require_operand(op, "dlambda", gradients.dlambda, in.lambda.extents());
  require(norm_before(options) || !gradients.dnorm_weight, op, ": dnorm_weight is asked for without a norm before");
  require(norm_after(options) || !gradients.dsubln_weight, op, ": dsubln_weight is asked for without a norm after");
  require_operand(op, "dnorm_weight", gradients.dnorm_weight, channels);
  require_operand(op, "dsubln_weight", gradients.dsubln_weight, channels);
}

// lambda.hpp
//   void lambda_forward(form, lambda_init, lambda_inputs, lambda);
//   void lambda_backward(form, lambda_inputs, dlambda, lambda_gradients, mode = GradientMode::assign);
// differential_combine_forward.hpp
//   Outputs forward(in, options = {});
//   void forward(in, options, outputs, Saved* saved);                       saved null: inference
// differential_combine_backward.hpp
//   Gradients backward(in, saved, {.dout = ...});
//   void backward(in, saved, upstream, gradients, workspace, mode = GradientMode::assign);
//   std::size_t workspace_bytes(in);                                        of backward; forward needs none

// On a GPU, defined in differential_combine_forward.cuh and differential_combine_backward.cuh.
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

}  // namespace diffmamba::differential_combine
