// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::sqrt

#include "diffmamba/nn/mixer.hpp"  // Module, Parameter, Initialization
#include "diffmamba/ops/linear/linear_backward.hpp"
#include "diffmamba/ops/linear/linear_forward.hpp"

namespace diffmamba {

/// (batch, length, channels) as the rows of a matrix; copies nothing, slices of the last axis included.
template <class T, class D>
View<T, 2, D> as_rows(const View<T, 3, D>& x) {
  return x.reshape(Extents{x.extent(0) * x.extent(1), x.extent(2)});
}
template <class T, class D>
View<T, 2, D> as_rows(Tensor<T, 3, D>& x) {
  return as_rows(x.view());
}
template <class T, class D>
View<const T, 2, D> as_rows(const Tensor<T, 3, D>& x) {
  return as_rows(x.view());
}

/// The same for any x: a slice of the tokens of several sequences, whose rows do not follow one another evenly, is
/// copied.
template <class T, Device DeviceType = cpu>
class Rows {
 public:
  explicit Rows(const View<const T, 3, DeviceType>& x) {
    const bool even = x.extent(0) <= 1 || x.extent(1) <= 1 || x.stride(0) == x.extent(1) * x.stride(1);
    if (!even) copy_ = to_tensor(x);
    view_ = even ? as_rows(x) : as_rows(std::as_const(copy_));
  }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  const View<const T, 2, DeviceType>& view() const { return view_; }
  operator View<const T, 2, DeviceType>() const { return view_; }

 private:
  Tensor<T, 3, DeviceType> copy_;
  View<const T, 2, DeviceType> view_;
};

/// torch's initialisation of Linear and Conv1d: uniform in +-1/sqrt(fan_in). x is in host memory.
template <class X>
void fill_linear(X&& x, Index fan_in, Philox random, double scale = 1.0) {
  const double bound = fan_in > 0 ? scale / std::sqrt(static_cast<double>(fan_in)) : 0.0;
  fill_uniform(x, random, -bound, bound);
}

/// Starts a parameter: draw(values) fills its masters, zero before, in host memory, so that every device gets the same
/// numbers; then they are copied to where they belong.
template <class ParameterType, class Draw>
void draw_parameter(ParameterType& parameter, Draw&& draw) {
  Tensor<typename ParameterType::value_type, ParameterType::rank> values(parameter.extents());
  draw(values);
  parameter.copy_from(values);
}
template <class ParameterType>
void draw_linear(ParameterType& parameter, Index fan_in, Philox random, double scale = 1.0) {
  draw_parameter(parameter, [&](auto& values) { fill_linear(values, fan_in, random, scale); });
}
template <class ParameterType>
void fill_zeros(ParameterType& parameter) {
  draw_parameter(parameter, [](auto&) {});
}
/// Every element 1: D and the weights of norms.
template <class ParameterType>
void fill_ones(ParameterType& parameter) {
  draw_parameter(parameter, [](auto& values) { values.fill(1); });
}
/// The rescaling of weights that write into the residual stream.
template <class ParameterType>
void scale_by(ParameterType& parameter, double factor) {
  auto values = parameter.to_tensor();
  for (auto& value : values) value *= static_cast<typename ParameterType::value_type>(factor);
  parameter.copy_from(values);
}

/// y = x weight^T + bias, with the weight as checkpoints have it, (out, in), and its gradients.
template <class T, Device DeviceType = cpu>
class Linear : public Module<Linear<T, DeviceType>> {
 public:
  using value_type = T;
  using device_type = DeviceType;

  Linear() = default;
  Linear(Index in, Index out, bool with_bias = false) : weight(Extents{out, in}) {
    require(in >= 0 && out >= 0, "Linear: negative size (", out, ", ", in, ")");
    if (with_bias) bias = Parameter<accumulate_t<T>, 1, DeviceType>(Extents<1>{out}, Decay::no);
    weight.set_written_whole();
    bias.set_written_whole();
  }

  void initialize(Philox random, const Initialization& how = {}) {
    draw_linear(weight, weight.extent(1), random.child(0));
    if (!bias) return;
    if (how.zero_biases)
      fill_zeros(bias);
    else
      draw_linear(bias, weight.extent(1), random.child(1));
  }

  /// (batch, length, in) -> (batch, length, out)
  Tensor<T, 3, DeviceType> forward(const View<const T, 3, DeviceType>& x) const {
    auto out = Tensor<T, 3, DeviceType>::uninitialized(Extents{x.extent(0), x.extent(1), weight.extent(0)});
    const Rows<T, DeviceType> rows(x);
    linear::forward(inputs(rows), as_rows(out));
    return out;
  }
  /// dL/dx; adds into the parameters' gradients. x as forward got it.
  Tensor<T, 3, DeviceType> backward(const View<const T, 3, DeviceType>& x, const View<const T, 3, DeviceType>& dout) {
    auto dx = Tensor<T, 3, DeviceType>::uninitialized(x.extents());
    const Rows<T, DeviceType> rows(x), dout_rows(dout);
    const GradientMode mode = gradient_mode(weight, bias);
    linear::backward(std::as_const(*this).inputs(rows), dout_rows.view(),
                     {.dx = as_rows(dx), .dweight = weight.gradient(), .dbias = bias.gradient()}, mode);
    return dx;
  }

  /// The two halves of backward, for who has not got x yet.
  Tensor<T, 3, DeviceType> backward_input(const View<const T, 3, DeviceType>& dout) const {
    auto dx = Tensor<T, 3, DeviceType>::uninitialized(Extents{dout.extent(0), dout.extent(1), weight.extent(1)});
    const Rows<T, DeviceType> dout_rows(dout);
    linear::backward(inputs(as_rows(std::as_const(dx))), dout_rows.view(),
                     linear::GradientViews<T, DeviceType>{.dx = as_rows(dx)});
    return dx;
  }
  void backward_parameters(const View<const T, 3, DeviceType>& x, const View<const T, 3, DeviceType>& dout) {
    const Rows<T, DeviceType> rows(x), dout_rows(dout);
    const GradientMode mode = gradient_mode(weight, bias);
    linear::backward(std::as_const(*this).inputs(rows), dout_rows.view(),
                     {.dweight = weight.gradient(), .dbias = bias.gradient()}, mode);
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    f("weight", self.weight);
    if (self.bias) f("bias", self.bias);
  }

  Parameter<T, 2, DeviceType> weight;              // (out, in)
  Parameter<accumulate_t<T>, 1, DeviceType> bias;  // (out), or absent

 private:
  linear::Inputs<T, DeviceType> inputs(const View<const T, 2, DeviceType>& x) const {
    return {.x = x, .weight = weight.value(), .bias = bias.value()};
  }
};

}  // namespace diffmamba
