// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::pow, std::abs

#include "diffmamba/math/real.hpp"  // Real, select

namespace diffmamba {

/// x^2
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V square(V x) {
  return x * x;
}

/// d square / dx = 2 x
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V square_derivative(V x) {
  return x + x;
}

/// x^p, any p; NaN for a negative x with a fractional p.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T pow(T x, T p) {
  return std::pow(x, p);
}

/// d pow / dx = p x^(p - 1)
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V pow_derivative(V x, V p) {
  return p * pow(x, p - V(1));
}

/// |x|
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T abs(T x) {
  return std::abs(x);
}

/// d abs / dx = the sign of x; 0 at 0, as in PyTorch.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V abs_derivative(V x) {
  return select(x > V(0), V(1), select(x < V(0), V(-1), V(0)));
}

}  // namespace diffmamba
