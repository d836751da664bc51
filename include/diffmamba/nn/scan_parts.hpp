// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::exp, std::log, std::expm1

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/tensor.hpp"

// Small things that both generations of Mamba need around their scan.
namespace diffmamba {

/// A = -exp(A_log), so that A stays negative whatever the optimizer does.
template <class T, int Rank>
Tensor<std::remove_const_t<T>, Rank> negative_exp(const View<T, Rank, cpu>& A_log) {
  using Value = std::remove_const_t<T>;
  auto A = Tensor<Value, Rank>::uninitialized(A_log.extents());
  require(A_log.contiguous(), "A_log must be dense");
  constexpr Index tile = 4096;
  parallel_for(tiles_of(A.size(), tile), [&](Index t) {
    const Index end = (t + 1) * tile < A.size() ? (t + 1) * tile : A.size();
    for (Index i = t * tile; i < end; ++i) A.data()[i] = -std::exp(A_log.data()[i]);
  });
  return A;
}

/// to += a * b, element by element: the chain rule of A = -exp(A_log), dA_log += dA * A.
template <class A, class B, class T, int Rank>
void add_product(const View<A, Rank, cpu>& a, const View<B, Rank, cpu>& b, const View<T, Rank, cpu>& to) {
  require(a.contiguous() && b.contiguous() && to.contiguous() && a.extents() == to.extents(),
          "add_product: dense operands of one shape are expected");
  for (Index i = 0; i < a.size(); ++i) to.data()[i] += a.data()[i] * b.data()[i];
}

/// to += sum over the first axis, in its order: the gradient of what all sequences of a batch share.
template <class From, class T, int Rank>
void add_over_batch(const View<From, Rank + 1, cpu>& from, const View<T, Rank, cpu>& to) {
  require(from.contiguous() && to.contiguous() && from.extent(0) * to.size() == from.size(),
          "add_over_batch: dense operands are expected");
  for (Index b = 0; b < from.extent(0); ++b)
    for (Index i = 0; i < to.size(); ++i) to.data()[i] += from.data()[b * to.size() + i];
}

/// Keeps the newest inputs of a convolution: conv_state (batch, channels, size) holds the last `size` of them, and x
/// (batch, length, channels) comes after them.
template <class T>
void remember_inputs(const View<const T, 3, cpu>& x, const View<T, 3, cpu>& conv_state) {
  const Index length = x.extent(1), channels = x.extent(2), size = conv_state.extent(2);
  const Index kept = length < size ? size - length : 0;  // columns that stay, moved to the front
  for (Index b = 0; b < x.extent(0); ++b)
    for (Index c = 0; c < channels; ++c) {
      T* row = conv_state.pointer(b, c);
      for (Index i = 0; i < kept; ++i) row[i] = row[i + length];
      for (Index i = kept; i < size; ++i) row[i] = x(b, length - size + i, c);
    }
}

/// dt_bias such that softplus(dt_bias) is log-uniform in [dt_min, dt_max], never below dt_init_floor: the inverse
/// softplus dt + log(1 - e^-dt) of such numbers.
template <class T>
void fill_dt_bias(const View<T, 1, cpu>& dt_bias, Philox random, double dt_min, double dt_max, double dt_init_floor) {
  Tensor<double, 1> u(dt_bias.extents());
  fill_uniform(u, random, std::log(dt_min), std::log(dt_max));
  for (Index i = 0; i < u.size(); ++i) {
    const double drawn = std::exp(u(i)), dt = drawn > dt_init_floor ? drawn : dt_init_floor;
    dt_bias(i) = static_cast<T>(dt + std::log(-std::expm1(-dt)));
  }
}

/// A_log = log(1, 2, ..., d_state) in every channel: A[n] = -(n + 1), the real part of S4D.
template <class T>
void fill_s4d_real(const View<T, 2, cpu>& A_log) {
  for (Index d = 0; d < A_log.extent(0); ++d)
    for (Index n = 0; n < A_log.extent(1); ++n) A_log(d, n) = static_cast<T>(std::log(static_cast<double>(n + 1)));
}

}  // namespace diffmamba
