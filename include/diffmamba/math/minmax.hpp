// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/math/real.hpp"  // Real, select

namespace diffmamba {

/// The larger of two; NaN if either is, as in NumPy and PyTorch.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}

/// The smaller of two; NaN if either is.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T minimum(T a, T b) {
  return a < b || a != a ? a : b;
}

/// x kept within [low, high]; NaN stays NaN.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V clamp(V x, V low, V high) {
  return select(x < low, low, select(x > high, high, x));
}

/// d clamp / dx: 1 within [low, high], 0 outside.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V clamp_derivative(V x, V low, V high) {
  return select(x < low, V(0), select(x > high, V(0), V(1)));
}

}  // namespace diffmamba
