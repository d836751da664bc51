// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/math/exp.hpp"   // exp
#include "diffmamba/math/real.hpp"  // Real

namespace diffmamba {

/// sigmoid(x) = 1 / (1 + e^-x), without overflow for either sign.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V sigmoid(V x) {
  return V(1) / (V(1) + exp(-x));  // e^-x may be infinite: 1 / inf = 0 is right
}

/// d sigmoid / dx = s (1 - s)
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V sigmoid_derivative(V x) {
  const V s = sigmoid(x);
  return s * (V(1) - s);
}

}  // namespace diffmamba
