// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>     // std::exp
#include <concepts>  // std::floating_point

#include "diffmamba/core/config.hpp"

namespace diffmamba {

/// sigmoid(x) = 1 / (1 + e^-x), without overflow for either sign.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));  // e^-x may be infinite: 1 / inf = 0 is right
}

/// d sigmoid / dx = s (1 - s)
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T sigmoid_derivative(T x) {
  const T s = sigmoid(x);
  return s * (T(1) - s);
}

}  // namespace diffmamba
