// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/math/sigmoid.hpp"  // sigmoid

namespace diffmamba {

/// silu(x) = x sigmoid(x), also called swish.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V silu(V x) {
  return x / (V(1) + exp(-x));
}

/// d silu / dx = s (1 + x (1 - s)), s = sigmoid(x)
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V silu_derivative(V x) {
  const V s = sigmoid(x);
  return s * (V(1) + x * (V(1) - s));
}

}  // namespace diffmamba
