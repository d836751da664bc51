// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/train/clip.hpp"

#include <cmath>
#include <limits>

#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::random_tensor;

TEST_CASE_TEMPLATE("global_norm: the root of the sum of squares, kept in double", T, float, double) {
  for (const Index size : {0, 1, 15, 16384, 50001}) {
    const auto x = random_tensor<T, 1>(Extents<1>(size), 1);
    double sum = 0;
    for (T value : x) sum += static_cast<double>(value) * static_cast<double>(value);
    CHECK(global_norm(x.view()) == doctest::Approx(std::sqrt(sum)).epsilon(1e-13));
  }
}

TEST_CASE("global_norm: the same bits on one and two threads") {
  const auto x = random_tensor<float, 1>(Extents<1>(200001), 1);
  const auto norm = [&](int count) {
    Threads threads(count);
    return global_norm(x.view());
  };
  CHECK(norm(1) == norm(2));
}

TEST_CASE("clip_global_norm: over several arrays, only from above") {
  Tensor<float, 1> a({2}), b({1});
  a(0) = 3;
  b(0) = 4;
  const View<float, 1> both[] = {a.view(), b.view()};
  CHECK(clip_global_norm(std::span<const View<float, 1>>(both), 10.0) == 5.0);
  CHECK(a(0) == 3.0f);
  CHECK(clip_global_norm(std::span<const View<float, 1>>(both), 1.0) == 5.0);
  CHECK(a(0) == doctest::Approx(0.6));
  CHECK(b(0) == doctest::Approx(0.8));
  CHECK(clip_factor(5, 2) == doctest::Approx(2 / (5 + 1e-6)).epsilon(1e-15));
  CHECK(clip_factor(5, std::numeric_limits<double>::infinity()) == 1);
  CHECK(clip_factor(0, 0) == 0);
  CHECK(std::isnan(clip_factor(std::nan(""), 1)));
}

TEST_CASE("clip: mistakes") {
  const Tensor<float, 2> x({3, 4});
  const auto column = x.select<1>(0);
  CHECK_THROWS_WITH_AS(global_norm(column), "global_norm: the gradients must be contiguous", Error);
  CHECK_THROWS_WITH_AS(clip_factor(1, -1), "clip: max_norm is -1, expected 0 or more", Error);
}
