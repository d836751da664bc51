// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>  // std::numeric_limits

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// State space duality (Mamba-2, arXiv 2405.21060): per head h with group g = h / (nheads / ngroups)
///
///   dt_t = clamp(softplus(dt_t + dt_bias), dt_min, dt_max)                (dt_bias, softplus and clamp optional)
///   S_t  = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T                           S: (headdim, d_state)
///   y_t  = S_t C_t + D x_t                                                (D optional)
///   out_t = y_t * silu(z_t)                                               (z optional)
///
/// computed in chunks as matrix products, forward and backward. chunk_size never changes the result beyond rounding.
namespace diffmamba::ssd {

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 4, DeviceType> x;                                 // (batch, length, nheads, headdim)
  RequiredView<const T, 3, DeviceType> dt;                                // (batch, length, nheads)
  RequiredView<const accumulate_t<T>, 1, DeviceType> A;                   // (nheads), negative
  RequiredView<const T, 4, DeviceType> B;                                 // (batch, length, ngroups, d_state)
  RequiredView<const T, 4, DeviceType> C;                                 // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 1, DeviceType> D = {};                      // (nheads)
  View<const accumulate_t<T>, 2, DeviceType> D_per_channel = {};          // (nheads, headdim); instead of D
  View<const T, 4, DeviceType> z = {};                                    // (batch, length, nheads, headdim)
  View<const accumulate_t<T>, 1, DeviceType> dt_bias = {};                // (nheads)
  View<const accumulate_t<T>, 4, DeviceType> initial_state = {};          // (batch, nheads, headdim, d_state), else 0
};

struct Options {
  Index chunk_size = 128;
  bool dt_softplus = false;
  double dt_min = 0.0;  // the official dt_limit; the gradient of the clamp is zero outside
  double dt_max = std::numeric_limits<double>::infinity();
};

}  // namespace diffmamba::ssd
