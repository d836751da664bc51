// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/contract.hpp"  // require_operand

/// A gate: out = silu(z) x, element by element (arXiv 2002.05202). The operands are rows of channels with any stride
/// between rows, as slices of a wider projection are.
///
///   Tensor out = swiglu::forward({.x = x, .z = z})               swiglu::forward(in, out): into the caller's memory
///   auto [dx, dz] = swiglu::backward(in, dout)                   swiglu::backward(in, dout, {.dx = .., .dz = ..})
///
/// Nothing is saved: backward takes the same Inputs again.
namespace diffmamba::swiglu {

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 3, DeviceType> x;  // (batch, length, channels)
  RequiredView<const T, 3, DeviceType> z;  // (batch, length, channels)
};

template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 3, DeviceType> dx, dz;
};

/// Where backward writes; absent ones are not computed. Either may be the memory of dout, x or z.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 3, DeviceType> dx = {}, dz = {};
};

/// Throws Error, naming the argument and both shapes. `out` is out or its gradient.
template <class T, class Out, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const View<Out, 3, DeviceType>& out,
           const GradientViews<T, DeviceType>& gradients = {}) {
  constexpr const char* op = "swiglu";
  require_dense_rows(op, "x", in.x);
  require_operand(op, "z", in.z, in.x.extents());
  require_shape(op, "out", out, in.x.extents());
  require_dense_rows(op, "out", out);
  require_operand(op, "dx", gradients.dx, in.x.extents());
  require_operand(op, "dz", gradients.dz, in.x.extents());
}

// swiglu_forward.hpp
//   Tensor forward(in);
//   void forward(in, out);                                                  out may be the memory of x or z
// swiglu_backward.hpp
//   Gradients backward(in, dout);
//   void backward(in, dout, gradients);

// On a GPU, defined in swiglu_forward.cuh and swiglu_backward.cuh.
template <class T>
void forward(const Inputs<T, cuda>& in, const std::type_identity_t<View<T, 3, cuda>>& out);
template <class T>
void backward(const Inputs<T, cuda>& in, const std::type_identity_t<View<const T, 3, cuda>>& dout,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients);

}  // namespace diffmamba::swiglu
