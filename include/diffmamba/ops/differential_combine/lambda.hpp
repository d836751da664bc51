// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>        // std::exp
#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/math/sigmoid.hpp"  // sigmoid
#include "diffmamba/ops/contract.hpp"  // require_operand

namespace diffmamba {

/// How a differential block computes the lambda of m1(x) - lambda m2(x) (Differential Mamba, arXiv 2507.06204):
enum class Lambda {
  sigmoid_sum,          // sigmoid(sum_d lambda_q1[d]) + lambda_init: Eq. 16 as the official code reads it
  sigmoid_scalar,       // sigmoid(lambda_q1[0]) + lambda_init: "re." of table 2
  sigmoid_per_channel,  // sigmoid(lambda_q1[d]) + lambda_init, one for each channel: Eq. 16 read literally
  exponential,          // exp(<lambda_q1, lambda_k1>) - exp(<lambda_q2, lambda_k2>) + lambda_init: Eq. 10
  none                  // 1, and no factor 1 - lambda_init: a plain difference
};

/// Where a differential block normalises: the subtraction's result (Eq. 20 and the official code), each path before it,
/// both, or nothing.
enum class Norm { after, before, before_and_after, none };

/// lambda_init = 0.8 - 0.6 exp(-0.3 depth), depth counted from 0 (the paper's i_layer - 1). 0.2 in the first layer,
/// towards 0.8 with depth.
inline double lambda_init(Index depth) {
  require(depth >= 0, "lambda_init: depth is ", depth, ", expected 0 or more");
  return 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(depth));
}

}  // namespace diffmamba

namespace diffmamba::differential_combine {

/// Parameters of lambda, under their official names. Which are there depends on the form.
template <class T, Device DeviceType = cpu>
struct LambdaInputs {
  View<const T, 1, DeviceType> lambda_q1 = {};  // any size | (1) | (channels) | any size n | absent
  View<const T, 1, DeviceType> lambda_k1 = {};  // (n), exponential only
  View<const T, 1, DeviceType> lambda_q2 = {};  // (n), exponential only
  View<const T, 1, DeviceType> lambda_k2 = {};  // (n), exponential only
};

/// Their gradients; absent ones are not computed.
template <class T, Device DeviceType = cpu>
struct LambdaGradientViews {
  View<T, 1, DeviceType> dlambda_q1 = {}, dlambda_k1 = {}, dlambda_q2 = {}, dlambda_k2 = {};
};

/// How many lambdas there are: one for all channels, or one each.
inline Index lambda_count(Lambda form, Index channels) {
  return form == Lambda::sigmoid_per_channel ? channels : 1;
}

/// The factor of the block's output: 1 - lambda_init, and 1 without lambda.
inline double output_scale(Lambda form, double lambda_init) {
  return form == Lambda::none ? 1.0 : 1.0 - lambda_init;
}

/// Throws Error if parameters are missing, superfluous or of the wrong size for the form. `lambda` is lambda or its
/// gradient.
template <class T, Device DeviceType>
void check(Lambda form, const LambdaInputs<T, DeviceType>& in,
           const std::type_identity_t<View<const T, 1, DeviceType>>& lambda) {
  constexpr const char* op = "differential_combine";
  const auto check_vector = [&](const char* name, const View<const T, 1, DeviceType>& view, bool needed) {
    require(bool(view) == needed, op, ": ", name, needed ? " is missing in" : " is given, but does not belong to",
            " this form of lambda");
    if (needed) require_shape(op, name, view, in.lambda_q1.extents());
  };
  const bool exponential = form == Lambda::exponential;
  check_vector("lambda_q1", in.lambda_q1, form != Lambda::none);
  check_vector("lambda_k1", in.lambda_k1, exponential);
  check_vector("lambda_q2", in.lambda_q2, exponential);
  check_vector("lambda_k2", in.lambda_k2, exponential);
  if (form == Lambda::sigmoid_scalar) require_shape(op, "lambda_q1", in.lambda_q1, Extents{1});
  if (form == Lambda::sigmoid_per_channel)
    require_shape(op, "lambda", lambda, in.lambda_q1.extents());
  else
    require_shape(op, "lambda", lambda, Extents{1});
}
template <class T, Device DeviceType>
void check(Lambda form, const LambdaInputs<T, DeviceType>& in,
           const std::type_identity_t<View<const T, 1, DeviceType>>& dlambda,
           const LambdaGradientViews<T, DeviceType>& gradients) {
  constexpr const char* op = "differential_combine";
  check(form, in, dlambda);
  require_operand(op, "dlambda_q1", gradients.dlambda_q1, in.lambda_q1.extents());
  require_operand(op, "dlambda_k1", gradients.dlambda_k1, in.lambda_k1.extents());
  require_operand(op, "dlambda_q2", gradients.dlambda_q2, in.lambda_q2.extents());
  require_operand(op, "dlambda_k2", gradients.dlambda_k2, in.lambda_k2.extents());
}

namespace detail {
template <class T>
T sum(const View<const T, 1>& a) {
  T result = 0;
  for (Index i = 0; i < a.extent(0); ++i) result += a(i);
  return result;
}
template <class T>
T inner_product(const View<const T, 1>& a, const View<const T, 1>& b) {
  T result = 0;
  for (Index i = 0; i < a.extent(0); ++i) result += a(i) * b(i);
  return result;
}
template <class T>
void put(const View<T, 1>& gradient, Index i, T value, GradientMode mode) {
  if (gradient) gradient(i) = mode == GradientMode::add ? gradient(i) + value : value;
}
}  // namespace detail

/// Writes lambda, (1) or for sigmoid_per_channel (channels). `lambda_init` is diffmamba::lambda_init(depth).
template <class T>
void lambda_forward(Lambda form, double lambda_init, const LambdaInputs<T>& in,
                    const std::type_identity_t<View<T, 1>>& lambda) {
  check(form, in, lambda);
  const T init = static_cast<T>(lambda_init);
  switch (form) {
    case Lambda::sigmoid_sum:
      lambda(0) = sigmoid(detail::sum(in.lambda_q1)) + init;
      break;
    case Lambda::sigmoid_scalar:
    case Lambda::sigmoid_per_channel:
      for (Index i = 0; i < lambda.extent(0); ++i) lambda(i) = sigmoid(in.lambda_q1(i)) + init;
      break;
    case Lambda::exponential:
      lambda(0) = std::exp(detail::inner_product(in.lambda_q1, in.lambda_k1)) -
                  std::exp(detail::inner_product(in.lambda_q2, in.lambda_k2)) + init;
      break;
    case Lambda::none:
      lambda(0) = 1;
      break;
  }
}

/// From dL/dlambda to the parameters. With s = sigmoid(sum q1): dq1[d] = s (1 - s) dlambda, the same for all d of a
/// sum; exponential: dq1 = e1 dlambda k1, dk1 = e1 dlambda q1 with e1 = exp(<q1, k1>), and the second pair with -e2.
template <class T>
void lambda_backward(Lambda form, const LambdaInputs<T>& in, const std::type_identity_t<View<const T, 1>>& dlambda,
                     const LambdaGradientViews<T>& gradients, GradientMode mode = GradientMode::assign) {
  check(form, in, dlambda, gradients);
  switch (form) {
    case Lambda::sigmoid_sum: {
      const T d = sigmoid_derivative(detail::sum(in.lambda_q1)) * dlambda(0);
      for (Index i = 0; i < in.lambda_q1.extent(0); ++i) detail::put(gradients.dlambda_q1, i, d, mode);
      break;
    }
    case Lambda::sigmoid_scalar:
    case Lambda::sigmoid_per_channel:
      for (Index i = 0; i < in.lambda_q1.extent(0); ++i)
        detail::put(gradients.dlambda_q1, i, sigmoid_derivative(in.lambda_q1(i)) * dlambda(i), mode);
      break;
    case Lambda::exponential: {
      const T e1 = std::exp(detail::inner_product(in.lambda_q1, in.lambda_k1)) * dlambda(0);
      const T e2 = -std::exp(detail::inner_product(in.lambda_q2, in.lambda_k2)) * dlambda(0);
      for (Index i = 0; i < in.lambda_q1.extent(0); ++i) {
        detail::put(gradients.dlambda_q1, i, e1 * in.lambda_k1(i), mode);
        detail::put(gradients.dlambda_k1, i, e1 * in.lambda_q1(i), mode);
        detail::put(gradients.dlambda_q2, i, e2 * in.lambda_k2(i), mode);
        detail::put(gradients.dlambda_k2, i, e2 * in.lambda_q2(i), mode);
      }
      break;
    }
    case Lambda::none:
      break;
  }
}

// On a GPU, defined in lambda.cuh.
template <class T>
void lambda_forward(Lambda form, double lambda_init, const LambdaInputs<T, cuda>& in,
                    const std::type_identity_t<View<T, 1, cuda>>& lambda);
template <class T>
void lambda_backward(Lambda form, const LambdaInputs<T, cuda>& in,
                     const std::type_identity_t<View<const T, 1, cuda>>& dlambda,
                     const LambdaGradientViews<T, cuda>& gradients, GradientMode mode = GradientMode::assign);

}  // namespace diffmamba::differential_combine
