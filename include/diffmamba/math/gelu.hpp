// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::erf

#include "diffmamba/math/exp.hpp"   // exp
#include "diffmamba/math/real.hpp"  // Real

namespace diffmamba {

/// The error function, 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T erf(T x) {
  return std::erf(x);
}

/// d erf / dx = 2 / sqrt(pi) e^(-x^2)
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V erf_derivative(V x) {
  return V(1.12837916709551257390) * exp(-x * x);
}

/// gelu(x) = x P(x), P the normal distribution (1 + erf(x / sqrt 2)) / 2: the exact form, not the one with tanh.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V gelu(V x) {
  return V(0.5) * x * (V(1) + erf(x * V(0.70710678118654752440)));
}

/// d gelu / dx = P(x) + x p(x), p the normal density e^(-x^2 / 2) / sqrt(2 pi)
template <Real V>
DIFFMAMBA_HOST_DEVICE inline V gelu_derivative(V x) {
  const V distribution = V(0.5) * (V(1) + erf(x * V(0.70710678118654752440)));
  const V density = V(0.39894228040143267794) * exp(V(-0.5) * x * x);
  return distribution + x * density;
}

}  // namespace diffmamba
