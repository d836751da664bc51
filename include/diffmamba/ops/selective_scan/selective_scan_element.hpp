// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>        // std::exp2
#include <concepts>     // std::floating_point
#include <type_traits>  // std::is_same_v

#include "diffmamba/core/config.hpp"

// One element of the selective scan, (channel d, state n, token t), forward and backward. Value is a float or a double,
// on the host or the device, or Lanes of them: every kernel, however it tiles, calls these.
namespace diffmamba::selective_scan::element {

/// a b + c; the compiler may round once. That of Lanes stands beside it.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T multiply_add(T a, T b, T c) {
  return a * b + c;
}

/// 1 / ln 2: with A in these units, exp(dt A) is one exp2 and no further product.
inline constexpr double log2e = 1.4426950408889634;

/// a = exp(dt A). A float on a GPU by the one instruction there is (2 ulp; subnormal numbers are zero).
template <class Value>
DIFFMAMBA_HOST_DEVICE inline Value decay(Value dt, Value A_log2e) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<Value, float>) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(dt * A_log2e));
    return result;
  }
#endif
  using std::exp2;
  return exp2(dt * A_log2e);
}

/// h_t = a h_{t-1} + (dt u) B
template <class Value>
DIFFMAMBA_HOST_DEVICE inline Value advance(Value h, Value a, Value dt_u, Value B) {
  return multiply_add(a, h, dt_u * B);
}

/// The sums over states that one token and channel collects on the way back.
template <class Value>
struct TokenSums {
  Value d_dt_u;  // sum_n dh_t[n] B[n]
  Value ddt;     // sum_n A[n] dh_t[n] a h_{t-1}[n]; what dt does through the decay
};

/// One step back (the derivation stands in selective_scan_backward.hpp), first half: `dh` comes in as dL/dh_t of all
/// that follows t and leaves as the whole of it, of which dB_t[n] = dh dt u and dC_t[n] = dy h_t are made.
template <class Value>
DIFFMAMBA_HOST_DEVICE inline void receive(Value& dh, Value dy, Value C) {
  dh = multiply_add(dy, C, dh);
}
/// Second half: `dh` leaves as dL/dh_{t-1} of all that follows t - 1.
template <class Value>
DIFFMAMBA_HOST_DEVICE inline void pass(Value& dh, Value a, Value h_before, Value dt, Value A, Value B,
                                       TokenSums<Value>& sums, Value& dA) {
  sums.d_dt_u = multiply_add(dh, B, sums.d_dt_u);
  dh = dh * a;
  const Value decay_gradient = dh * h_before;  // dL/d(dt A)
  sums.ddt = multiply_add(decay_gradient, A, sums.ddt);
  dA = multiply_add(decay_gradient, dt, dA);
}
/// Both, with the gradients of B and C.
template <class Value>
DIFFMAMBA_HOST_DEVICE inline void retreat(Value& dh, Value dy, Value a, Value h_before, Value h, Value dt, Value dt_u,
                                          Value A, Value B, Value C, TokenSums<Value>& sums, Value& dA, Value& dB,
                                          Value& dC) {
  receive(dh, dy, C);
  dC = multiply_add(dy, h, dC);
  dB = multiply_add(dh, dt_u, dB);
  pass(dh, a, h_before, dt, A, B, sums, dA);
}

}  // namespace diffmamba::selective_scan::element
