// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>  // std::move

#include "diffmamba/ops/normed_linear/normed_linear.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"
#include "diffmamba/tensor/tensor.hpp"

// Decoding one token: what blocks hand on so that norms can be computed by the product behind them. A mixer or its inner
// that can do so has a member `decode`, which does nothing and returns nothing where it cannot; then it is called as for
// any number of tokens.
//
//   Hidden<T, D> decode(const normed_linear::Source<T, D>&, State&) const;                              // of a mixer
//   Tensor<T, 3, D> decode(const normed_linear::Source<T, D>&, View out_proj_weight, View out_proj_bias, State&) const;
namespace diffmamba {

/// What leaves a block for one token of each sequence: rows, and a norm of them that is still due.
template <class T, Device DeviceType>
struct Hidden {
  Tensor<T, 3, DeviceType> rows = {};  // (batch, 1, d_model)
  normed_linear::Norm<T, DeviceType> due = {};
};

/// The rows, with nothing due.
template <class T, Device DeviceType>
Tensor<T, 3, DeviceType> settled(Hidden<T, DeviceType> hidden) {
  if (!hidden.due.weight) return std::move(hidden.rows);
  auto out = Tensor<T, 3, DeviceType>::uninitialized(hidden.rows.extents());
  rms_norm::forward(rms_norm::Inputs<T, DeviceType>{.x = hidden.rows, .weight = hidden.due.weight},
                    {.eps = hidden.due.eps, .scale = hidden.due.scale}, {.out = out}, nullptr);
  return out;
}

}  // namespace diffmamba
