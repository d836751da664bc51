// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::log1p

#include "diffmamba/math/sigmoid.hpp"  // sigmoid

namespace diffmamba {

/// softplus(x) = log(1 + e^x); x itself above 20, as in PyTorch.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T softplus(T x) {
  return x > T(20) ? x : std::log1p(std::exp(x));
}

/// d softplus / dx = sigmoid(x); 1 above 20.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T softplus_derivative(T x) {
  return x > T(20) ? T(1) : sigmoid(x);
}

}  // namespace diffmamba
