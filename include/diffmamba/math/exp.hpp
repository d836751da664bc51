// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::exp

#include "diffmamba/math/real.hpp"  // Real

namespace diffmamba {

/// e^x
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T exp(T x) {
  return std::exp(x);
}

/// d exp / dx = e^x
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V exp_derivative(V x) {
  return exp(x);
}

}  // namespace diffmamba
