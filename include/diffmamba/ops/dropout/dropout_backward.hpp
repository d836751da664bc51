// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/dropout/dropout_forward.hpp"

/// out_i = m_i x_i with m_i = 0 or 1 / (1 - p), so dx_i = m_i dout_i: the forward pass over the gradient, with the mask
/// drawn again.
namespace diffmamba::dropout {

/// dx may be dout.
template <class T, int Rank, Device D>
void backward(const View<T, Rank, D>& dout, const Options& options,
              const std::type_identity_t<View<std::remove_const_t<T>, Rank, D>>& dx) {
  forward(dout, options, dx);
}
template <class T, int Rank, Device D>
void backward(const Tensor<T, Rank, D>& dout, const Options& options,
              const std::type_identity_t<View<T, Rank, D>>& dx) {
  forward(dout.view(), options, dx);
}
template <class T, int Rank, Device D>
Tensor<std::remove_const_t<T>, Rank, D> backward(const View<T, Rank, D>& dout, const Options& options) {
  return forward(dout, options);
}
template <class T, int Rank, Device D>
Tensor<T, Rank, D> backward(const Tensor<T, Rank, D>& dout, const Options& options) {
  return forward(dout.view(), options);
}

}  // namespace diffmamba::dropout
