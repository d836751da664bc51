// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/expr/reduce.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "diffmamba/expr/expr.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::random_tensor;
using test::relative_error;

namespace {

/// sum over the marked axes in double, element after element.
template <int Rank>
Tensor<double, Rank> plain_sum(const Tensor<double, Rank>& x, const bool (&reduced)[Rank]) {
  Extents<Rank> kept = x.extents();
  for (int a = 0; a < Rank; ++a)
    if (reduced[a]) kept[a] = 1;
  Tensor<double, Rank> result(kept);
  for (Index linear = 0; linear < x.size(); ++linear) {
    Index rest = linear, at = 0, step = 1;
    for (int a = Rank - 1; a >= 0; --a) {
      const Index i = rest % x.extent(a);
      rest /= x.extent(a);
      if (!reduced[a]) at += i * step;
      step *= kept[a];
    }
    result.data()[at] += x.data()[linear];
  }
  return result;
}

template <class T>
constexpr double tolerance = std::is_same_v<T, double> ? 1e-13 : 1e-5;  // without SIMD a sum has only four strands

template <class T, int Rank, int... Axes>
void check_sum(const Extents<Rank>& extents, AxisList<Axes...> axes, const bool (&reduced)[Rank]) {
  INFO("sum of ", extents);
  const auto exact = random_tensor<double>(extents, 3);
  Tensor<T, Rank> x(extents);
  copy(exact, x);
  const auto want = plain_sum(exact, reduced);
  Tensor<T, Rank - static_cast<int>(sizeof...(Axes))> got = sum(x, axes);
  CHECK(relative_error(got, want) < tolerance<T>);
  // In an expression, on a strided operand, and broadcast back.
  Tensor<T, Rank> y = x - sum(x * 2, axes, keepdims);
  Tensor<double, Rank> expected = exact - 2 * want;
  CHECK(relative_error(y, expected) < tolerance<T>);
  const Threads two(2);
  Tensor<T, Rank> again = x - sum(x * 2, axes, keepdims);
  CHECK(std::memcmp(again.data(), y.data(), static_cast<std::size_t>(y.size()) * sizeof(T)) == 0);
}

}  // namespace

TEST_CASE("sums over any axes") {
  using T = float;
  const bool last[2] = {false, true}, first[2] = {true, false}, both[2] = {true, true};
  for (const Extents<2>& e : {Extents<2>{1, 1},
                              {3, 1},
                              {1, 5},
                              {300, 4},
                              {301, 7},
                              {1000, 16},
                              {37, 255},
                              {37, 257},
                              {300, 1030},
                              {3, 100001},
                              {2000, 33}}) {
    check_sum<T>(e, axis<1>, last);
    check_sum<T>(e, axis<0>, first);
  }
  check_sum<T>(Extents<2>{130, 1031}, axis<0, 1>, both);
  check_sum<double>(Extents<2>{301, 257}, axis<1>, last);
  check_sum<double>(Extents<2>{2000, 33}, axis<0>, first);
  const bool middle[3] = {false, true, false}, ends[3] = {true, false, true}, tail[3] = {false, true, true};
  for (const Extents<3>& e : {Extents<3>{2, 3, 4}, {13, 17, 19}, {5, 300, 70}, {300, 7, 5}, {4, 1, 1300}}) {
    check_sum<T>(e, axis<1>, middle);
    check_sum<T>(e, axis<0, 2>, ends);
    check_sum<T>(e, axis<1, -1>, tail);
  }
}

TEST_CASE("all elements: threads share the work, the bits stay") {
  const auto x = random_tensor<float>(Extents{1234567}, 1);
  double want = 0, squares = 0;
  float largest = -1e9f, smallest = 1e9f;
  for (float v : x) {
    want += double(v);
    squares += double(v) * double(v);
    largest = std::max(largest, v);
    smallest = std::min(smallest, v);
  }
  const float one = sum(x), mean_square = mean(x * x);
  CHECK(std::abs(double(one) - want) < 1e-2);
  CHECK(std::abs(double(mean_square) - squares / 1234567) < 1e-5);
  CHECK(max(x).value() == largest);
  CHECK(min(x).value() == smallest);
  {
    const Threads two(2);
    const float again = sum(x);
    CHECK(again == one);
  }
  const float of_expression = sum(exp(x) / sum(exp(x)));
  CHECK(std::abs(of_expression - 1.0f) < 1e-4f);
  const auto b = random_tensor<bfloat16>(Extents{5000}, 1, 0.01, 1.0);
  const float long_sum = sum(b);  // kept in float: a bfloat16 sum would stop at 256
  CHECK(std::abs(long_sum - 5000.0f) < 10.0f);
  const double wide = sum(cast<double>(x));
  CHECK(std::abs(wide - want) < 1e-9);
}

TEST_CASE("rows normalised, softmax, in place") {
  for (const Extents<2>& e : {Extents<2>{5, 7}, {300, 16}, {301, 100}, {300, 300}, {700, 1500}}) {
    INFO("shape ", e);
    const auto x = random_tensor<double>(e, 1);
    Tensor<float, 2> f(e), norm(e), soft(e);
    copy(x, f);
    norm = f / sqrt(mean(f * f, axis<1>, keepdims) + 1e-5f);
    soft = exp(f - max(f, axis<1>, keepdims)) / sum(exp(f - max(f, axis<1>, keepdims)), axis<-1>, keepdims);
    Tensor<float, 1> rms = sqrt(mean(f * f, axis<1>));
    double worst = 0;
    for (Index i = 0; i < e[0]; ++i) {
      double squares = 0, largest = -1e9, total = 0;
      for (Index j = 0; j < e[1]; ++j) {
        squares += x(i, j) * x(i, j);
        largest = std::max(largest, x(i, j));
      }
      for (Index j = 0; j < e[1]; ++j) total += std::exp(x(i, j) - largest);
      const double mean_square = squares / double(e[1]);
      worst = std::max(worst, std::abs(double(rms(i)) - std::sqrt(mean_square)));
      for (Index j = 0; j < e[1]; ++j) {
        worst = std::max(worst, std::abs(double(norm(i, j)) - x(i, j) / std::sqrt(mean_square + 1e-5)));
        worst = std::max(worst, std::abs(double(soft(i, j)) - std::exp(x(i, j) - largest) / total));
      }
    }
    CHECK(worst < 2e-6);
    // In place: every row is read before it is overwritten, on any number of threads.
    const Threads two(2);
    Tensor<float, 2> g = f;
    g = g / sqrt(mean(g * g, axis<1>, keepdims) + 1e-5f);
    CHECK(std::memcmp(g.data(), norm.data(), static_cast<std::size_t>(g.size()) * 4) == 0);
    // Columns, back along the first axis, in place.
    Tensor<float, 2> h = f, columns = f - mean(f, axis<0>, keepdims);
    h -= mean(h, axis<0>, keepdims);
    CHECK(std::memcmp(h.data(), columns.data(), static_cast<std::size_t>(h.size()) * 4) == 0);
    const float about_zero = max(abs(mean(h, axis<0>)));
    CHECK(about_zero < 1e-5f);
  }
  // A square matrix minus its own column sums, which a transposed view of it gives: nothing is read too late.
  const auto q = random_tensor<float>(Extents{300, 300}, 4);
  Tensor<float, 2> in_place = q;
  in_place -= sum(in_place.view().permute<1, 0>(), axis<1>, keepdims);
  const Tensor<float, 2> want = q - sum(q.view().permute<1, 0>(), axis<1>, keepdims);
  CHECK(std::memcmp(in_place.data(), want.data(), static_cast<std::size_t>(q.size()) * 4) == 0);
}

TEST_CASE("strided and transposed operands") {
  const auto q = random_tensor<double>(Extents{12, 30, 44}, 2);
  const auto p = q.view().permute<2, 0, 1>();
  const Tensor<double, 2> a = sum(p, axis<1>), b = sum(to_tensor(p), axis<1>);
  CHECK(relative_error(a, b) < 1e-14);
  const Tensor<double, 1> c = max(p, axis<0, 1>), d = max(to_tensor(p), axis<0, 1>);
  CHECK(relative_error(c, d) == 0.0);
  const Tensor<double, 2> e = mean(q.slice<2>(3, 20), axis<2>), f = mean(to_tensor(q.slice<2>(3, 20)), axis<2>);
  CHECK(relative_error(e, f) < 1e-14);
}

TEST_CASE("no elements, NaN, negative axes") {
  const Tensor<float, 2> empty({3, 0});
  const Tensor<float, 1> s = sum(empty, axis<1>);
  for (float v : s) CHECK(v == 0.0f);
  CHECK_THROWS_WITH_AS((void)max(empty), "max: over no element of a tensor (3, 0)", Error);
  CHECK_THROWS_WITH_AS((void)mean(empty, axis<1>), "mean: over no element of a tensor (3, 0)", Error);
  const Tensor<float, 1> t = sum(empty, axis<0>);
  CHECK(t.size() == 0);
  Tensor<float, 1> x({100}, 1.0f);
  x(77) = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(max(x).value()));
  CHECK(std::isnan(min(x).value()));
  x(77) = -std::numeric_limits<float>::infinity();
  CHECK(max(x).value() == 1.0f);
  const Tensor<float, 0> scalar({}, 3.0f);
  CHECK(sum(scalar).value() == 3.0f);
  const Tensor<double, 3> y({2, 3, 4}, 1.0);
  const Tensor<double, 1> z = sum(y, axis<-3, -1>);
  CHECK(z(2) == 8.0);
}
