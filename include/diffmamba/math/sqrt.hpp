// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::sqrt

#include "diffmamba/math/real.hpp"  // Real

namespace diffmamba {

/// The square root; NaN below 0.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T sqrt(T x) {
  return std::sqrt(x);
}

/// d sqrt / dx = 1 / (2 sqrt(x)); infinite at 0.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V sqrt_derivative(V x) {
  return V(0.5) / sqrt(x);
}

/// 1 / sqrt(x)
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V rsqrt(V x) {
  return V(1) / sqrt(x);
}

/// d rsqrt / dx = -1 / (2 x sqrt(x))
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V rsqrt_derivative(V x) {
  return V(-0.5) / (x * sqrt(x));
}

}  // namespace diffmamba
