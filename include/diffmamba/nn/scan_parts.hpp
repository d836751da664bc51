// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>  // std::exp, std::log, std::expm1

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/tensor.hpp"

// Small things that mixers need around their scan, on both devices. Each checks what it takes; on a GPU (defined in
// nn/scan_parts.cuh) each is one launch on the current stream.
namespace diffmamba {

namespace detail {

template <class A, class B, class T, int Rank, class D>
void check_add_product(const View<A, Rank, D>& a, const View<B, Rank, D>& b, const View<T, Rank, D>& to) {
  require(
      a.contiguous() && b.contiguous() && to.contiguous() && a.extents() == to.extents() && b.extents() == to.extents(),
      "add_product: dense operands of one shape are expected");
}
template <class From, class T, int FromRank, int Rank, class D>
void check_add_over_batch(const View<From, FromRank, D>& from, const View<T, Rank, D>& to) {
  require(from.contiguous() && to.contiguous() && from.extent(0) * to.size() == from.size(),
          "add_over_batch: dense operands are expected");
}
template <class From, class T, int Rank, class D>
void check_add_to(const View<From, Rank, D>& from, const View<T, Rank, D>& to) {
  require(from.contiguous() && to.contiguous() && from.extents() == to.extents(),
          "add_to: dense operands of one shape are expected");
}
template <class A, class B, class D>
void check_paths(const View<A, 3, D>& paths, const View<B, 3, D>& one) {
  require(paths.extents() == Extents{one.extent(0), one.extent(1), 2 * one.extent(2)} &&
              (paths.stride(2) == 1 || paths.extent(2) <= 1) && (one.stride(2) == 1 || one.extent(2) <= 1),
          "two paths ", paths.extents(), " and one ", one.extents(), " do not fit");
}
template <class T, class R, class F, class D>
void check_halves(const View<T, 2, D>& w, const View<R, 1, D>& lambda, const View<F, 2, D>& folded) {
  require(w.extents() == Extents{2 * folded.extent(0), folded.extent(1)} && w.contiguous() && folded.contiguous() &&
              (lambda.extent(0) == 1 || lambda.extent(0) == folded.extent(0)),
          "fold_halves: a weight ", w.extents(), " and lambda ", lambda.extents(), " do not fold to ",
          folded.extents());
}

}  // namespace detail

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
  detail::check_add_product(a, b, to);
  for (Index i = 0; i < a.size(); ++i) to.data()[i] += a.data()[i] * b.data()[i];
}

/// to += sum over the first axis, in its order: the gradient of what all sequences of a batch share.
template <class From, class T, int Rank>
void add_over_batch(const View<From, Rank + 1, cpu>& from, const View<T, Rank, cpu>& to) {
  detail::check_add_over_batch(from, to);
  for (Index b = 0; b < from.extent(0); ++b)
    for (Index i = 0; i < to.size(); ++i) to.data()[i] += from.data()[b * to.size() + i];
}

/// to += from, of the same shape, both dense.
template <class From, class T, int Rank>
void add_to(const View<From, Rank, cpu>& from, const View<T, Rank, cpu>& to) {
  detail::check_add_to(from, to);
  for (Index i = 0; i < to.size(); ++i) to.data()[i] = T(to.data()[i] + from.data()[i]);
}

/// to(0) *= factor(0)
template <class T>
void multiply_by(const View<T, 1, cpu>& to, const View<const T, 1, cpu>& factor) {
  to(0) *= factor(0);
}

/// The two paths of a difference without lambda lie side by side, (batch, length, 2 * channels): out = first - second.
template <class T>
void subtract_paths(const View<const T, 3, cpu>& paths, const View<T, 3, cpu>& out) {
  detail::check_paths(paths, out);
  const Index length = out.extent(1), channels = out.extent(2);
  parallel_for(out.extent(0) * length, [&](Index row) {
    const T* from = paths.pointer(row / length, row % length);
    T* to = out.pointer(row / length, row % length);
    for (Index c = 0; c < channels; ++c) to[c] = T(from[c] - from[channels + c]);
  });
}
/// dpaths = [dout | -dout]
template <class T>
void subtract_paths_backward(const View<const T, 3, cpu>& dout, const View<T, 3, cpu>& dpaths) {
  detail::check_paths(dpaths, dout);
  const Index length = dout.extent(1), channels = dout.extent(2);
  parallel_for(dout.extent(0) * length, [&](Index row) {
    const T* from = dout.pointer(row / length, row % length);
    T* to = dpaths.pointer(row / length, row % length);
    for (Index c = 0; c < channels; ++c) {
      to[c] = from[c];
      to[channels + c] = T(-from[c]);
    }
  });
}
/// out = first + second: the gradient of what both paths read.
template <class T>
void add_paths(const View<const T, 3, cpu>& paths, const View<T, 3, cpu>& out) {
  detail::check_paths(paths, out);
  const Index length = out.extent(1), channels = out.extent(2);
  parallel_for(out.extent(0) * length, [&](Index row) {
    const T* from = paths.pointer(row / length, row % length);
    T* to = out.pointer(row / length, row % length);
    for (Index c = 0; c < channels; ++c) to[c] = T(from[c] + from[channels + c]);
  });
}

/// A projection whose result's second half is a minuend: from its weight w = [W_2; W_1], (2 * rows, columns), the
/// folded W_1 - lambda W_2, with one lambda or one for each row.
template <class T, class R>
void fold_halves(const View<const T, 2, cpu>& w, const View<const R, 1, cpu>& lambda, const View<T, 2, cpu>& folded) {
  detail::check_halves(w, lambda, folded);
  const Index rows = folded.extent(0);
  parallel_for(rows, [&](Index row) {
    const R l = lambda(lambda.extent(0) == 1 ? 0 : row);
    for (Index i = 0; i < folded.extent(1); ++i)
      folded(row, i) = T(static_cast<R>(w(rows + row, i)) - l * static_cast<R>(w(row, i)));
  });
}
/// dW_1 += dfolded, dW_2 -= lambda dfolded, dlambda -= sum(W_2 * dfolded) over the row, or all of them in their order.
template <class T, class R>
void fold_halves_backward(const View<const T, 2, cpu>& w, const View<const R, 1, cpu>& lambda,
                          const View<const R, 2, cpu>& dfolded, const View<R, 2, cpu>& dw,
                          const View<R, 1, cpu>& dlambda) {
  detail::check_halves(w, lambda, dfolded);
  const Index rows = dfolded.extent(0);
  for (Index row = 0; row < rows; ++row) {
    const Index which = lambda.extent(0) == 1 ? 0 : row;
    R product{};
    for (Index i = 0; i < w.extent(1); ++i) {
      product += static_cast<R>(w(row, i)) * dfolded(row, i);
      dw(rows + row, i) += dfolded(row, i);
      dw(row, i) -= lambda(which) * dfolded(row, i);
    }
    dlambda(which) -= product;
  }
}

/// Keeps the newest inputs of a convolution: conv_state (batch, channels, size) holds the last `size` of them, and x
/// (batch, length, channels) comes after them.
template <class T>
void remember_inputs(const View<const T, 3, cpu>& x, const View<accumulate_t<T>, 3, cpu>& conv_state) {
  const Index length = x.extent(1), channels = x.extent(2), size = conv_state.extent(2);
  const Index kept = length < size ? size - length : 0;  // columns that stay, moved to the front
  for (Index b = 0; b < x.extent(0); ++b)
    for (Index c = 0; c < channels; ++c) {
      auto* row = conv_state.pointer(b, c);
      for (Index i = 0; i < kept; ++i) row[i] = row[i + length];
      for (Index i = kept; i < size; ++i) row[i] = static_cast<accumulate_t<T>>(x(b, length - size + i, c));
    }
}

// On a GPU.
template <class T, int Rank>
Tensor<std::remove_const_t<T>, Rank, cuda> negative_exp(const View<T, Rank, cuda>& A_log);
template <class A, class B, class T, int Rank>
void add_product(const View<A, Rank, cuda>& a, const View<B, Rank, cuda>& b, const View<T, Rank, cuda>& to);
template <class From, class T, int Rank>
void add_over_batch(const View<From, Rank + 1, cuda>& from, const View<T, Rank, cuda>& to);
template <class From, class T, int Rank>
void add_to(const View<From, Rank, cuda>& from, const View<T, Rank, cuda>& to);
template <class T>
void multiply_by(const View<T, 1, cuda>& to, const View<const T, 1, cuda>& factor);
template <class T>
void subtract_paths(const View<const T, 3, cuda>& paths, const View<T, 3, cuda>& out);
template <class T>
void subtract_paths_backward(const View<const T, 3, cuda>& dout, const View<T, 3, cuda>& dpaths);
template <class T>
void add_paths(const View<const T, 3, cuda>& paths, const View<T, 3, cuda>& out);
template <class T, class R>
void fold_halves(const View<const T, 2, cuda>& w, const View<const R, 1, cuda>& lambda, const View<T, 2, cuda>& folded);
template <class T, class R>
void fold_halves_backward(const View<const T, 2, cuda>& w, const View<const R, 1, cuda>& lambda,
                          const View<const R, 2, cuda>& dfolded, const View<R, 2, cuda>& dw,
                          const View<R, 1, cuda>& dlambda);
template <class T>
void remember_inputs(const View<const T, 3, cuda>& x, const View<accumulate_t<T>, 3, cuda>& conv_state);

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
