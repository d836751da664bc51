// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::log, std::log1p

#include "diffmamba/math/real.hpp"  // Real

namespace diffmamba {

/// The natural logarithm: -infinity at 0, NaN below.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T log(T x) {
  return std::log(x);
}

/// d log / dx = 1 / x
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V log_derivative(V x) {
  return V(1) / x;
}

/// log(1 + x), exact where x is small.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T log1p(T x) {
  return std::log1p(x);
}

/// d log1p / dx = 1 / (1 + x)
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V log1p_derivative(V x) {
  return V(1) / (V(1) + x);
}

}  // namespace diffmamba
