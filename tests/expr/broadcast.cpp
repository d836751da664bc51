// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <utility>

#include "diffmamba/expr/expr.hpp"
#include "support/check_elements.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::check_elements;
using test::random_tensor;
using test::tolerance;

TEST_CASE("broadcasting against the plain definition") {
  using T = float;
  const auto check = [](auto ea, auto eb) {
    const auto a = random_tensor<T>(ea, 1);
    const auto b = random_tensor<T>(eb, 2);
    constexpr int rank = std::max(decltype(a)::rank, decltype(b)::rank);
    INFO("shapes ", ea, " and ", eb);
    Tensor<T, rank> y = a - b * 2;
    check_elements(
        y.view(), tolerance<T>, [](double x, double u) { return x - 2 * u; }, a.view(), b.view());
    Tensor<T, rank> z = b * a + 1;
    check_elements(
        z.view(), tolerance<T>, [](double x, double u) { return x * u + 1; }, a.view(), b.view());
  };
  check(Extents{64, 256}, Extents{256});
  check(Extents{301, 4}, Extents{4});
  check(Extents{301, 8}, Extents{301, 1});
  check(Extents{301, 16}, Extents{1, 16});
  check(Extents{301, 5}, Extents{5});
  check(Extents{301, 5}, Extents{301, 1});
  check(Extents{301, 1}, Extents{5});
  check(Extents{7, 1025}, Extents{7, 1});
  check(Extents{7, 3001}, Extents{3001});
  check(Extents{3, 1, 5}, Extents{4, 1});
  check(Extents{3, 4, 5}, Extents{3, 1, 5});
  check(Extents{9, 7, 33}, Extents{7, 1});
  check(Extents{9, 7, 300}, Extents{9, 1, 300});
  check(Extents{2, 3, 4, 5}, Extents{3, 1, 5});
  check(Extents{2, 1, 4, 1}, Extents{1, 3, 1, 5});
  check(Extents{5, 6}, Extents{1});
  check(Extents{1}, Extents{1, 1, 1});
  check(Extents{0, 5}, Extents{5});
  check(Extents{4, 0}, Extents{4, 1});
  check(Extents{5, 6}, Extents<0>{});
}

TEST_CASE_TEMPLATE("strided and transposed operands and targets", T, float, bfloat16) {
  for (const auto& size : {std::pair<Index, Index>{3, 5}, {8, 8}, {33, 47}, {64, 96}, {130, 70}, {300, 1100}}) {
    const Index m = size.first, n = size.second;  // clang with OpenMP captures no structured bindings
    INFO("m ", m, " n ", n);
    const auto x = random_tensor<T>(Extents{m, n}, 1), t = random_tensor<T>(Extents{n, m}, 2),
               wide = random_tensor<T>(Extents{m, 2 * n}, 3);
    const auto turned = t.view().template permute<1, 0>();
    const auto right = wide.view().template slice<1>(n, 2 * n);
    const View<const T, 2> every_second(wide.data(), {m, n}, {2 * n, 2});
    const auto sum = [](double a, double b) { return a + b; };
    Tensor<T, 2> y({m, n}, T(0.0f));
    y = x + turned;
    check_elements(y.view(), tolerance<T>, sum, x.view(), turned);
    y = x + right;
    check_elements(y.view(), tolerance<T>, sum, x.view(), right);
    y = every_second + turned;
    check_elements(y.view(), tolerance<T>, sum, every_second, turned);
    Tensor<T, 2> back({n, m});
    assign(back.view().template permute<1, 0>(), x + right);
    check_elements(View<const T, 2>(back.view().template permute<1, 0>()), tolerance<T>, sum, x.view(), right);
    Tensor<T, 2> half_written({m, 2 * n}, T(7.0f));
    assign(half_written.template slice<1>(n, 2 * n), x + turned);
    check_elements(View<const T, 2>(half_written.template slice<1>(n, 2 * n)), tolerance<T>, sum, x.view(), turned);
    check_elements(
        View<const T, 2>(half_written.template slice<1>(0, n)), 0.0, [](double) { return 7.0; }, x.view());
    Tensor<T, 2> spread({m, 2 * n}, T(7.0f));
    assign(View<T, 2>(spread.data(), {m, n}, {2 * n, 2}), x + turned);
    check_elements(View<const T, 2>(spread.data(), {m, n}, {2 * n, 2}), tolerance<T>, sum, x.view(), turned);
    CHECK(static_cast<float>(spread(m - 1, 1)) == 7.0f);
  }
  const auto q = random_tensor<T>(Extents{6, 10, 12, 14}, 5);
  const auto p = q.view().template permute<2, 0, 3, 1>();
  Tensor<T, 4> r = p * 2;
  check_elements(
      r.view(), tolerance<T>, [](double v) { return 2 * v; }, p);
}
