// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/math/sigmoid.hpp"  // sigmoid

namespace diffmamba {

/// silu(x) = x sigmoid(x), also called swish.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T silu(T x) {
  return x * sigmoid(x);
}

/// d silu / dx = s (1 + x (1 - s)), s = sigmoid(x)
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T silu_derivative(T x) {
  const T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

}  // namespace diffmamba
