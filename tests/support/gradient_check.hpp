// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <type_traits>

#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba::test {

/// Normal numbers from a seed.
template <class T, int Rank>
Tensor<T, Rank> random_tensor(const Extents<Rank>& extents, unsigned seed, double scale = 1.0, double mean = 0.0) {
  Tensor<T, Rank> result(extents);
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(mean, scale);
  for (T& value : result) {
    if constexpr (std::is_same_v<T, double>)
      value = static_cast<double>(static_cast<float>(normal(generator)));  // the same number in float
    else
      value = T(static_cast<float>(normal(generator)));
  }
  return result;
}

/// sum(a * b) in double: the loss L = sum(dout * out) of a gradient check.
template <class A, class B>
double dot(const A& a, const B& b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (Index i = 0; i < a.size(); ++i) sum += static_cast<double>(a.data()[i]) * static_cast<double>(b.data()[i]);
  return sum;
}

/// Largest |got - want| over the largest |want| (1 if that is 0); NaN counts as infinite.
template <class A, class B>
double relative_error(const A& got, const B& want) {
  REQUIRE(got.size() == want.size());
  double error = 0, scale = 0;
  for (Index i = 0; i < got.size(); ++i) {
    const double g = static_cast<double>(got.data()[i]), w = static_cast<double>(want.data()[i]);
    const double difference = std::abs(g - w);
    error = std::isfinite(difference) ? std::max(error, difference) : INFINITY;
    scale = std::max(scale, std::abs(w));
  }
  return error / (scale > 0 ? scale : 1.0);
}

/// Compares an analytic gradient with fourth-order central differences of `loss()` in double: every element of small
/// inputs, `samples` of large ones. `input` is perturbed in place and restored. The error is relative to the gradient's
/// largest element.
template <int Rank, class Loss>
void check_gradient(const char* name, Tensor<double, Rank>& input, const Tensor<double, Rank>& gradient, Loss&& loss,
                    double tolerance = 1e-6, double h = 1e-3, Index samples = 40) {
  INFO("gradient of ", name);
  REQUIRE(input.extents() == gradient.extents());
  double scale = 1e-8;
  for (double g : gradient) {
    REQUIRE(std::isfinite(g));
    scale = std::max(scale, std::abs(g));
  }
  std::mt19937_64 generator(7);
  const Index size = input.size(), count = std::min(size, samples);
  for (Index k = 0; k < count; ++k) {
    const Index i =
        size <= samples ? k : static_cast<Index>(generator() % static_cast<std::uint64_t>(size));
    double& x = input.data()[i];
    const double kept = x;
    const auto at = [&](double step) {
      x = kept + step;
      return static_cast<double>(loss());
    };
    const double numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    x = kept;
    INFO("element ", i, ": analytic ", gradient.data()[i], ", numeric ", numeric);
    CHECK(std::abs(gradient.data()[i] - numeric) <= tolerance * scale);
  }
}

}  // namespace diffmamba::test
