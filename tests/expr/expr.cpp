// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/expr/expr.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "support/check_elements.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::check_elements;
using test::random_tensor;
using test::tolerance;

TEST_CASE_TEMPLATE("element-wise, dense, any size", T, float, double, bfloat16) {
  for (const Index size : {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 100, 1023, 1024, 1025, 5000, 16384, 16385, 100003}) {
    const auto a = random_tensor<T>(Extents{size}, 1), b = random_tensor<T>(Extents{size}, 2),
               c = random_tensor<T>(Extents{size}, 3);
    Tensor<T, 1> y = a * b + c;
    INFO("size ", size);
    check_elements(
        y.view(), tolerance<T>, [](double x, double u, double v) { return x * u + v; }, a.view(), b.view(), c.view());
    if constexpr (std::is_same_v<T, double>) continue;
    y = silu(a) * b + 0.5f;
    check_elements(
        y.view(), tolerance<T>, [](double x, double u) { return x / (1 + std::exp(-x)) * u + 0.5; }, a.view(),
        b.view());
    y = -a / (abs(b) + 1) - 2 * c;
    check_elements(
        y.view(), tolerance<T>, [](double x, double u, double v) { return -x / (std::abs(u) + 1) - 2 * v; }, a.view(),
        b.view(), c.view());
  }
}

TEST_CASE("an element's bits do not depend on where it lies, on the shape or on the threads") {
  const auto x = random_tensor<float>(Extents{20011}, 1);
  Tensor<float, 1> y = silu(x) * 1.7f + exp(x);
  for (const Index begin : {1, 3, 17, 1000}) {
    const Tensor<float, 1> part = silu(x.slice<0>(begin, 20011)) * 1.7f + exp(x.slice<0>(begin, 20011));
    CHECK(std::memcmp(part.data(), y.data() + begin, static_cast<std::size_t>(part.size()) * 4) == 0);
  }
  const Threads two(2);
  const Tensor<float, 1> z = silu(x) * 1.7f + exp(x);
  CHECK(std::memcmp(z.data(), y.data(), static_cast<std::size_t>(z.size()) * 4) == 0);
}

TEST_CASE("bfloat16 is computed in float and rounded once") {
  const auto x = random_tensor<bfloat16>(Extents{1000}, 1), y = random_tensor<bfloat16>(Extents{1000}, 2);
  const Tensor<bfloat16, 1> z = x * y + x / 3;
  for (Index i = 0; i < 1000; ++i) {
    const float a = x(i), b = y(i);
    const float near = std::fma(a, b, a / 3.0f), exact = a * b + a / 3.0f;
    CHECK((z(i).bits == bfloat16(near).bits || z(i).bits == bfloat16(exact).bits));
  }
  const Tensor<float, 1> w = x + y;  // and a float target takes the float
  for (Index i = 0; i < 1000; ++i) CHECK(w(i) == float(x(i)) + float(y(i)));
  const Tensor<float, 1> f({1000}, 1.0f);  // float and bfloat16 both compute in float
  const Tensor<float, 1> m = f + x;
  CHECK(m(5) == 1.0f + float(x(5)));
  const auto h = random_tensor<half>(Extents{100}, 3);
  const Tensor<half, 1> g = h + h;
  for (Index i = 0; i < 100; ++i) CHECK(float(g(i)) == 2 * float(h(i)));
}

TEST_CASE("conversions, comparisons, where") {
  const auto x = random_tensor<float>(Extents{37, 21}, 1), y = random_tensor<float>(Extents{37, 21}, 2);
  const Tensor<double, 2> d = cast<double>(x) * 2;
  check_elements(
      d.view(), 0.0, [](double a) { return 2 * a; }, x.view());
  const Tensor<double, 2> e = cast<double>(x * y) + d;
  check_elements(
      e.view(), 0.0,
      [](double a, double b) { return static_cast<double>(static_cast<float>(a) * static_cast<float>(b)) + 2 * a; },
      x.view(), y.view());
  const Tensor<float, 2> back = cast<float>(d * d);
  check_elements(
      back.view(), 1e-6, [](double a) { return 4 * a * a; }, x.view());
  Tensor<std::int32_t, 1> ids({50});
  for (Index i = 0; i < 50; ++i) ids(i) = static_cast<std::int32_t>(i - 20);
  const Tensor<float, 1> numbers = cast<float>(ids) * 0.5f;
  CHECK(numbers(0) == -10.0f);
  CHECK(numbers(49) == 14.5f);

  const Tensor<bool, 2> larger = x > y;
  for (Index i = 0; i < 37; ++i)
    for (Index j = 0; j < 21; ++j) CHECK(larger(i, j) == (x(i, j) > y(i, j)));
  const Tensor<float, 2> w = where(larger, x, -y), v = where((x <= y) | (x > 1), 0, x),
                         u = where(larger & (!(x == x)), 1, 2);
  check_elements(
      w.view(), 0.0, [](double a, double b) { return a > b ? a : -b; }, x.view(), y.view());
  check_elements(
      v.view(), 0.0, [](double a, double b) { return a <= b || a > 1 ? 0.0 : a; }, x.view(), y.view());
  check_elements(
      u.view(), 0.0, [](double) { return 2.0; }, x.view());
  const Tensor<float, 2> count = cast<float>(x >= y) + cast<float>(larger) + cast<float>(x != y) + cast<float>(x < y);
  check_elements(
      count.view(), 0.0, [](double a, double b) { return double(a >= b) + (a > b) + (a != b) + (a < b); }, x.view(),
      y.view());
  const Tensor<float, 2> mm = maximum(x, y) - minimum(x, 0.25f), cl = clamp(x, -0.5f, 0.5f);
  check_elements(
      mm.view(), 1e-6, [](double a, double b) { return std::max(a, b) - std::min(a, 0.25); }, x.view(), y.view());
  check_elements(
      cl.view(), 0.0, [](double a) { return std::min(std::max(a, -0.5), 0.5); }, x.view());
  const Tensor<double, 2> narrow_where = where(cast<double>(x) > 0.0, 1.0, 0.0);
  check_elements(
      narrow_where.view(), 0.0, [](double a) { return a > 0 ? 1.0 : 0.0; }, x.view());
}

TEST_CASE("a formula of the user's, powers, derivatives") {
  const auto x = random_tensor<double>(Extents{700}, 1);
  const Tensor<double, 1> y = map([](auto v) { return v * sigmoid(v) + decltype(v)(2); }, x);
  check_elements(
      y.view(), 1e-14, [](double v) { return v / (1 + std::exp(-v)) + 2; }, x.view());
  const Tensor<double, 1> z = pow(abs(x), 1.5) + pow(x, 2.0);
  check_elements(
      z.view(), 1e-14, [](double v) { return std::pow(std::abs(v), 1.5) + v * v; }, x.view());
  const Tensor<double, 1> g = silu_derivative(x), n = (silu(x + 1e-5) - silu(x - 1e-5)) / 2e-5;
  CHECK(test::relative_error(g, n) < 1e-9);
}

namespace {
Tensor<float, 2> made(float value) {
  return Tensor<float, 2>({100, 33}, value);
}
}  // namespace

TEST_CASE("temporaries live as long as the expression, and are used once") {
  const Tensor<float, 2> x({100, 33}, 1.0f);
  Tensor<float, 2> y({100, 33});
  y = x + made(2.0f) * made(3.0f);
  for (float value : y) CHECK(value == 7.0f);
  auto kept = x + made(4.0f);
  y = std::move(kept);
  CHECK(y(99, 32) == 5.0f);
  Tensor<float, 2> first = made(1.0f), second;
  second = std::move(first) + 1.0f;
  CHECK(!first);
  CHECK(second(0, 0) == 2.0f);
  CHECK_THROWS_WITH_AS(y = first + 1.0f, "expression: an operand of rank 2 is absent or was moved from", Error);
}

TEST_CASE("assignment: shapes, empty targets, compound forms, numbers") {
  const auto x = random_tensor<float>(Extents{4, 6}, 1);
  const auto row = random_tensor<float>(Extents{6}, 2);
  Tensor<float, 2> y;
  y = x * 2;
  CHECK(y.extents() == Extents{4, 6});
  const float* memory = y.data();
  y = x * 3;
  CHECK(y.data() == memory);
  Tensor<float, 2> wrong({4, 5});
  CHECK_THROWS_WITH_AS(wrong = x * 2, "assignment: the target has the shape (4, 5), the expression (4, 6)", Error);
  CHECK_THROWS_WITH_AS(y = x + wrong, "expression: the shapes (4, 6) and (4, 5) do not broadcast", Error);
  CHECK_THROWS_WITH_AS(assign(wrong, row), "assignment: the target has the shape (4, 5), the expression (6)", Error);

  y = x + 0;
  y += row;
  y *= 2;
  y -= x;
  y /= row * row + 1;
  check_elements(
      y.view(), 1e-6, [](double a, double r) { return ((a + r) * 2 - a) / (r * r + 1); }, x.view(), row.view());
  y.slice<1>(0, 3) += 100.0f;
  y.select<0>(1) += row;
  CHECK(y(0, 1) > 90.0f);
  CHECK(y(0, 4) < 90.0f);
  assign(y, row);
  check_elements(
      y.view(), 0.0, [](double r) { return r; }, row.view());
  assign(y.slice<0>(1, 2), 3);
  CHECK(y(1, 5) == 3.0f);
  CHECK(y(0, 5) == row(5));
  assign(y, x.view());
  CHECK(std::memcmp(y.data(), x.data(), 24 * 4) == 0);
  const View<float, 2> flat(y.data(), {4, 6}, {0, 1});
  CHECK_THROWS_WITH_AS(assign(flat, x), "assignment: the target (4, 6) is broadcast and cannot be written", Error);

  std::vector<float> foreign(24, 2.0f);
  const View<float, 2> mine(foreign.data(), {4, 6});
  y = mine + x;
  assign(mine, y * 2);
  CHECK(foreign[23] == 2 * (2.0f + x(3, 5)));
}

TEST_CASE("an expression of rank 0 is a number") {
  const Tensor<float, 0> a({}, 3.0f), b({}, 4.0f);
  float c = a * b;
  CHECK(c == 12.0f);
  CHECK((a + b).value() == 7.0f);
  const bool larger = a > b;
  CHECK(!larger);
  Tensor<float, 0> s = a - b;
  CHECK(s() == -1.0f);
}
