// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

// One selective scan as the CPU computes it in double and as the GPU computes it in T, from the same numbers.
namespace diffmamba::test {

namespace scan = diffmamba::selective_scan;

struct ScanShape {
  Index batch = 2, length = 7, channels = 6, d_state = 4;
  Index groups_B = 1, groups_C = 1;  // 0: constant
  bool optional = true;              // D, z, delta_bias, initial_state
  bool softplus = true;
  double dt_mean = -1;
};

/// Inputs rounded to T, held as W on a device.
template <class T, class W, class D>
struct ScanProblem {
  using S = accumulate_t<W>;
  ScanShape shape;
  Tensor<W, 3, D> u, delta, z, dout;
  Tensor<S, 2, D> A, B_constant, C_constant;
  Tensor<W, 4, D> B, C;
  Tensor<S, 1, D> D_skip, delta_bias;
  Tensor<S, 3, D> initial_state, dfinal_state;

  explicit ScanProblem(const ScanShape& s) : shape(s) {
    const auto rounded = [](Tensor<double, 3> x) { return to<D>(to_tensor<W>(to_tensor<T>(x.view()).view())); };
    const auto rounded4 = [](Tensor<double, 4> x) { return to<D>(to_tensor<W>(to_tensor<T>(x.view()).view())); };
    const auto parameter = [](const auto& x) { return to<D>(to_tensor<S>(x.view())); };
    const Extents<3> activation{s.batch, s.length, s.channels}, state{s.batch, s.channels, s.d_state};
    const Extents<2> matrix{s.channels, s.d_state};
    const Extents<1> vector{s.channels};
    u = rounded(random_tensor<double>(activation, 1));
    auto step = random_tensor<double>(activation, 2, 0.7, s.dt_mean);
    if (!s.softplus)
      for (double& x : step) x = 0.125 * x * x;
    delta = rounded(std::move(step));
    dout = rounded(random_tensor<double>(activation, 3));
    auto decay = random_tensor<double>(matrix, 4);
    for (double& a : decay) a = -std::abs(a) - 0.125;
    A = parameter(decay);
    dfinal_state = parameter(random_tensor<double>(state, 5));
    if (s.groups_B > 0)
      B = rounded4(random_tensor<double>(Extents{s.batch, s.length, s.groups_B, s.d_state}, 6));
    else
      B_constant = parameter(random_tensor<double>(matrix, 6));
    if (s.groups_C > 0)
      C = rounded4(random_tensor<double>(Extents{s.batch, s.length, s.groups_C, s.d_state}, 7));
    else
      C_constant = parameter(random_tensor<double>(matrix, 7));
    if (!s.optional) return;
    D_skip = parameter(random_tensor<double>(vector, 8));
    z = rounded(random_tensor<double>(activation, 9));
    delta_bias = parameter(random_tensor<double>(vector, 10, 0.3));
    initial_state = parameter(random_tensor<double>(state, 11));
  }
  scan::Inputs<W, D> inputs() const {
    return {.u = u,
            .delta = delta,
            .A = A,
            .B = B,
            .B_constant = B_constant,
            .C = C,
            .C_constant = C_constant,
            .D = D_skip,
            .z = z,
            .delta_bias = delta_bias,
            .initial_state = initial_state};
  }
  scan::Options options() const { return {.delta_softplus = shape.softplus}; }
};
/// The same numbers between others, off the borders of every pack.
template <class T, int Rank>
struct Shifted {
  Tensor<T, Rank, cuda> memory;
  View<const T, Rank, cuda> view;

  explicit Shifted(const Tensor<T, Rank, cuda>& x) {
    Extents<Rank> extents = x.extents();
    const Index size = extents[Rank - 1];
    extents[Rank - 1] += 3;
    memory = Tensor<T, Rank, cuda>(extents);
    const auto inner = memory.view().template slice<Rank - 1>(1, 1 + size);
    copy(x.view(), inner);
    view = inner;
  }
};

/// What the GPU gets, and the same numbers in double for the CPU.
template <class T>
using GpuProblem = ScanProblem<T, T, cuda>;
template <class T>
using WideProblem = ScanProblem<T, double, cpu>;

/// ||got - want|| / ||want|| of a tensor on the GPU; NaN counts as infinite.
template <class T, class W, int Rank>
double norm_error(const Tensor<T, Rank, cuda>& got, const Tensor<W, Rank>& want) {
  const auto host = to<cpu>(got);
  REQUIRE(host.extents() == want.extents());
  double error = 0, norm = 0;
  for (Index i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want.data()[i]), g = static_cast<double>(host.data()[i]);
    error += std::isfinite(g) ? (g - w) * (g - w) : INFINITY;
    norm += w * w;
  }
  return std::sqrt(error / (norm > 0 ? norm : 1.0));
}

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank, cuda>& a, const Tensor<T, Rank, cuda>& b) {
  const auto x = to<cpu>(a), y = to<cpu>(b);
  return x.extents() == y.extents() &&
         (x.size() == 0 || std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * sizeof(T)) == 0);
}

}  // namespace diffmamba::test
