// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

// What tests of a GPU compare with: the CPU in double, on the same numbers.
namespace diffmamba::test {

/// Random numbers rounded to T: exactly those in double on the host, and on the GPU.
template <class T, int Rank>
struct OnBoth {
  Tensor<double, Rank> exact;
  Tensor<T, Rank, cuda> device;

  OnBoth(const Extents<Rank>& extents, unsigned seed, double scale = 1.0, double mean = 0.0) {
    const auto rounded = to_tensor<T>(random_tensor<double>(extents, seed, scale, mean).view());
    exact = to_tensor<double>(rounded.view());
    device = to<cuda>(rounded);
  }
  /// The slice [begin, end) of the last of three axes, on either side.
  View<const double, Rank> exact_slice(Index begin, Index end) const {
    return exact.view().template slice<Rank - 1>(begin, end);
  }
  View<const T, Rank, cuda> device_slice(Index begin, Index end) const {
    return device.view().template slice<Rank - 1>(begin, end);
  }
};

/// ||got - want|| / ||want||, of a tensor on the GPU and one of the host; 0 of nothing.
template <class T, int Rank>
double norm_error(const View<T, Rank, cuda>& got, const Tensor<double, Rank>& want) {
  REQUIRE(got.extents() == want.extents());
  const auto host = to<cpu>(got);
  double error = 0, norm = 0;
  for (Index i = 0; i < want.size(); ++i) {
    const double w = want.data()[i], g = static_cast<double>(host.data()[i]);
    error += (g - w) * (g - w);
    norm += w * w;
  }
  return std::sqrt(error / (norm > 0 ? norm : 1.0));
}
template <class T, int Rank>
double norm_error(const Tensor<T, Rank, cuda>& got, const Tensor<double, Rank>& want) {
  return norm_error(got.view(), want);
}

/// The largest |element|: of what vanishes up to rounding, where a relative error means nothing.
template <class T, int Rank>
double largest(const Tensor<T, Rank, cuda>& got) {
  double result = 0;
  for (const T& value : to<cpu>(got)) result = std::max(result, std::abs(static_cast<double>(value)));
  return result;
}

/// The same bits on the GPU.
template <class T, int Rank>
bool same_bits(const Tensor<T, Rank, cuda>& a, const Tensor<T, Rank, cuda>& b) {
  if (!a && !b) return true;
  const auto x = to<cpu>(a), y = to<cpu>(b);
  return x.extents() == y.extents() &&
         std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * sizeof(T)) == 0;
}

/// What a kernel with `size` outputs in T may err by norm. With bfloat16 its own rounding alone is 1.7e-3 on the
/// average of many, and up to twice that of a few; few channels also cancel where a norm takes their mean out.
template <class T>
double output_tolerance(Index size) {
  const double many = sizeof(T) == 2 ? 2.2e-3 : sizeof(T) == 4 ? 1e-6 : 1e-13;
  return size < 200 ? (sizeof(T) == 2 ? 2 : 30) * many : many;
}
/// The same of sums in accumulate_t<T>, over many rows.
template <class T>
inline constexpr double sum_tolerance = sizeof(T) == 8 ? 1e-12 : 5e-6;

}  // namespace diffmamba::test
