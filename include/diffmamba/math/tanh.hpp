// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::tanh

#include "diffmamba/math/real.hpp"  // Real

namespace diffmamba {

/// The hyperbolic tangent.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T tanh(T x) {
  return std::tanh(x);
}

/// d tanh / dx = 1 - tanh(x)^2
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V tanh_derivative(V x) {
  const V t = tanh(x);
  return V(1) - t * t;
}

}  // namespace diffmamba
