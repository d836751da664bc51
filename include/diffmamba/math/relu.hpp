// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/math/real.hpp"  // Real, select

namespace diffmamba {

/// relu(x) = max(x, 0); NaN stays NaN.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V relu(V x) {
  return select(x < V(0), V(0), x);
}

/// d relu / dx = 1 above 0, else 0.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V relu_derivative(V x) {
  return select(x > V(0), V(1), V(0));
}

}  // namespace diffmamba
