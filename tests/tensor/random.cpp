// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/tensor/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace diffmamba;

TEST_CASE("philox gives the published known answers") {
  // counter and key of zeros, of ones, and the digits of pi (known-answer tests of the authors' Random123)
  const RandomWords zeros = philox(0, 0, 0), ones = philox(~0ull, ~0ull, ~0ull),
                    pi = philox(0x299f31d0a4093822ull, 0x0370734413198a2eull, 0x85a308d3243f6a88ull);
  const std::uint32_t want[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                    {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                    {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 4; ++i) {
    CHECK(zeros[i] == want[0][i]);
    CHECK(ones[i] == want[1][i]);
    CHECK(pi[i] == want[2][i]);
  }
  static_assert(philox(0, 0, 0)[0] == 0x6627e8d5, "philox is constexpr");
}

TEST_CASE("streams and children differ, and are the same again") {
  const Philox a{42};
  CHECK(a(7)[0] == philox(42, 0, 7)[0]);
  CHECK(a.child(0)(0)[0] == a.child(0)(0)[0]);
  CHECK(a.child(0)(0)[0] != a.child(1)(0)[0]);
  CHECK(a.child(0).child(1)(0)[0] != a.child(1).child(0)(0)[0]);
  CHECK(a.child(0)(0)[0] != a(0)[0]);
  CHECK(Philox{42, 1}(0)[0] != a(0)[0]);
}

TEST_CASE_TEMPLATE("fill_normal has the asked mean and deviation", T, float, double, bfloat16) {
  Tensor<T, 2> x({501, 407});
  fill_normal(x, Philox{42}, 1.5, 2.0);
  double sum = 0, squares = 0, cubes = 0, fourth = 0;
  for (T value : x) {
    const double z = (static_cast<double>(value) - 1.5) / 2.0;
    sum += z, squares += z * z, cubes += z * z * z, fourth += z * z * z * z;
  }
  const double n = static_cast<double>(x.size());
  CHECK(std::abs(sum / n) < 4 / std::sqrt(n));
  CHECK(std::abs(squares / n - 1) < 4 * std::sqrt(2 / n));
  CHECK(std::abs(cubes / n) < 4 * std::sqrt(15 / n));
  CHECK(std::abs(fourth / n - 3) < 4 * std::sqrt(96 / n));
}

TEST_CASE("fill_uniform covers its interval") {
  Tensor<float, 1> x({100003});
  fill_uniform(x, Philox{1}, -2.0, 6.0);
  double sum = 0, low = 9, high = -9;
  for (float value : x) {
    sum += value;
    low = std::min(low, double{value});
    high = std::max(high, double{value});
  }
  CHECK(low >= -2.0);
  CHECK(high < 6.0);
  CHECK(low < -1.99);
  CHECK(high > 5.99);
  CHECK(std::abs(sum / 100003 - 2.0) < 4 * 8 / std::sqrt(12.0 * 100003));
  CHECK_THROWS_WITH_AS(fill_uniform(x, Philox{1}, 2.0, 1.0), "fill_uniform: low 2 is above high 1", Error);
}

TEST_CASE("the same numbers for any threads, strides and element type") {
  Tensor<double, 3> x({7, 31, 45}), y({7, 31, 45});
  {
    const Threads one(1);
    fill_normal(x, Philox{3, 9});
  }
  const Threads two(2);
  fill_normal(y, Philox{3, 9});
  CHECK(std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * sizeof(double)) == 0);

  Tensor<float, 3> transposed({45, 7, 31});
  fill_normal(transposed.view().permute<1, 2, 0>(), Philox{3, 9});  // seen as (7, 31, 45)
  bool same = true;
  for (Index i = 0; i < 7; ++i)
    for (Index j = 0; j < 31; ++j)
      for (Index k = 0; k < 45; ++k) same = same && transposed(k, i, j) == static_cast<float>(x(i, j, k));
  CHECK(same);
}

TEST_CASE("odd sizes: nothing, a scalar, less than a block") {
  Tensor<float, 2> empty({0, 5});
  fill_normal(empty, Philox{1});
  Tensor<float, 0> scalar({}, 0.0f);
  fill_normal(scalar, Philox{1});
  Tensor<float, 1> three({3}), many({10000});
  fill_normal(three, Philox{1});
  fill_normal(many, Philox{1});
  CHECK(scalar() == many(0));
  for (int i = 0; i < 3; ++i) CHECK(three(i) == many(i));
}
