// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/ssd/segsum.hpp"

#include "support/gradient_check.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

TEST_CASE_TEMPLATE("ssd::segsum: sums of segments, minus infinity above the diagonal", T, double, float) {
  for (Index length : {0, 1, 2, 13}) {
    const auto x = random_tensor<T>(Extents{3, length}, 1);
    const auto out = ssd::segsum::forward(x.view());
    CHECK(out.extents() == Extents{3, length, length});
    for (Index row = 0; row < 3; ++row)
      for (Index i = 0; i < length; ++i)
        for (Index j = 0; j < length; ++j) {
          double sum = 0;
          for (Index k = j + 1; k <= i; ++k) sum += static_cast<double>(x(row, k));
          if (j > i)
            CHECK(out(row, i, j) == -std::numeric_limits<T>::infinity());
          else
            CHECK(std::abs(static_cast<double>(out(row, i, j)) - sum) < (std::is_same_v<T, double> ? 1e-14 : 2e-6));
        }
  }
}

TEST_CASE("ssd::segsum: the gradient is that of central differences") {
  auto x = random_tensor<double>(Extents{2, 9}, 2);
  const auto dout = random_tensor<double>(Extents{2, 9, 9}, 3);
  const auto loss = [&] {
    const auto out = ssd::segsum::forward(std::as_const(x).view());
    double sum = 0;
    for (Index row = 0; row < 2; ++row)
      for (Index i = 0; i < 9; ++i)
        for (Index j = 0; j <= i; ++j) sum += dout(row, i, j) * out(row, i, j);
    return sum;
  };
  check_gradient("x", x, ssd::segsum::backward(dout.view()), loss, 1e-8);
}

TEST_CASE("ssd::segsum: one sentence for every mistake") {
  const Tensor<double, 3> dout({2, 3, 4});
  CHECK_THROWS_WITH_AS(ssd::segsum::backward(dout.view()), "ssd::segsum: dout is (2, 3, 4), expected square matrices",
                       Error);
}
