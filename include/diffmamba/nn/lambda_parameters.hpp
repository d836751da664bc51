// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::pow, std::sqrt

#include "diffmamba/nn/linear_layer.hpp"  // draw_parameter
#include "diffmamba/ops/differential_combine/lambda.hpp"

namespace diffmamba {

template <>
struct EnumNames<Lambda> {
  static constexpr std::array<std::string_view, 5> values{"sigmoid_sum", "sigmoid_scalar", "sigmoid_per_channel",
                                                          "exponential", "none"};
};
template <>
struct EnumNames<Norm> {
  static constexpr std::array<std::string_view, 4> values{"after", "before", "before_and_after", "none"};
};

/// How the parameters of lambda start. `official`: unit normals, whose sum over d_model = 1024 has a standard deviation
/// of 32, so that the sigmoid starts saturated at 0 or 1. `unit_variance`: what the sigmoid or exponential takes has
/// standard deviation 1.
enum class LambdaInit { official, unit_variance };
template <>
struct EnumNames<LambdaInit> {
  static constexpr std::array<std::string_view, 2> values{"official", "unit_variance"};
};

/// lambda of a differential mixer: lambda_q1 and, in the exponential form, lambda_k1, lambda_q2, lambda_k2. `size` is
/// that of each vector.
template <class R, Device DeviceType = cpu>
class LambdaParameters {
  using D = DeviceType;

 public:
  LambdaParameters(Lambda form, Index channels, Index size, double lambda_init)
      : form_(form), channels_(channels), lambda_init_(lambda_init) {
    if (form == Lambda::none) return;
    const Extents<1> extents{form == Lambda::sigmoid_scalar        ? 1
                             : form == Lambda::sigmoid_per_channel ? channels
                                                                   : size};
    q1_ = Parameter<R, 1, D>(extents, Decay::no);
    if (form != Lambda::exponential) return;
    k1_ = Parameter<R, 1, D>(extents, Decay::no);
    q2_ = Parameter<R, 1, D>(extents, Decay::no);
    k2_ = Parameter<R, 1, D>(extents, Decay::no);
  }

  Lambda form() const { return form_; }
  /// The factor of the mixer's output.
  double scale() const { return differential_combine::output_scale(form_, lambda_init_); }

  /// One lambda, or one for each channel; 1 without parameters.
  Tensor<R, 1, D> value() const {
    auto lambda = Tensor<R, 1, D>::uninitialized(Extents<1>{differential_combine::lambda_count(form_, channels_)});
    differential_combine::lambda_forward(form_, lambda_init_, inputs(), lambda.view());
    return lambda;
  }
  /// From dL/dlambda; adds into the gradients.
  void backward(const View<const R, 1, D>& dlambda) {
    differential_combine::lambda_backward(form_, inputs(), dlambda,
                                          differential_combine::LambdaGradientViews<R, D>{.dlambda_q1 = q1_.gradient(),
                                                                                          .dlambda_k1 = k1_.gradient(),
                                                                                          .dlambda_q2 = q2_.gradient(),
                                                                                          .dlambda_k2 = k2_.gradient()},
                                          GradientMode::add);
  }

  void initialize(Philox random, LambdaInit how) {
    double std = 1.0;
    const auto n = static_cast<double>(q1_.size());
    if (how == LambdaInit::unit_variance && form_ == Lambda::sigmoid_sum) std = 1.0 / std::sqrt(n);
    if (how == LambdaInit::unit_variance && form_ == Lambda::exponential) std = std::pow(n, -0.25);
    std::uint64_t number = 0;
    for (auto* parameter : {&q1_, &k1_, &q2_, &k2_}) {
      if (*parameter)
        draw_parameter(*parameter, [&](auto& values) { fill_normal(values, random.child(number), 0.0, std); });
      ++number;
    }
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    if (self.q1_) f("lambda_q1", self.q1_);
    if (self.k1_) f("lambda_k1", self.k1_);
    if (self.q2_) f("lambda_q2", self.q2_);
    if (self.k2_) f("lambda_k2", self.k2_);
  }

 private:
  differential_combine::LambdaInputs<R, D> inputs() const {
    return {.lambda_q1 = q1_.value(), .lambda_k1 = k1_.value(), .lambda_q2 = q2_.value(), .lambda_k2 = k2_.value()};
  }

  Lambda form_;
  Index channels_;
  double lambda_init_;
  Parameter<R, 1, D> q1_, k1_, q2_, k2_;
};

}  // namespace diffmamba
