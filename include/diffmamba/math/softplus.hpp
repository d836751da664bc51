// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/math/log.hpp"      // log1p
#include "diffmamba/math/sigmoid.hpp"  // sigmoid

namespace diffmamba {

/// softplus(x) = log(1 + e^x); x itself above 20, as in PyTorch.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V softplus(V x) {
  return select(x > V(20), x, log1p(exp(x)));
}

/// d softplus / dx = sigmoid(x); 1 above 20.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V softplus_derivative(V x) {
  return select(x > V(20), V(1), sigmoid(x));
}

}  // namespace diffmamba
