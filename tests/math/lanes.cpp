// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/math/lanes.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"

using namespace diffmamba;

namespace {

/// Largest distance from the exact value, in units of the last place of the result, over [from, to].
template <class T, class Ours, class Exact>
double worst_ulp(double from, double to, Ours ours, Exact exact) {
  constexpr int width = Lanes<T>::size, samples = 200000;
  double worst = 0;
  T x[width], y[width];
  for (int i = 0; i < samples; i += width) {
    for (int k = 0; k < width; ++k) x[k] = static_cast<T>(from + (to - from) * (i + k) / samples);
    ours(Lanes<T>::load(x)).store(y);
    for (int k = 0; k < width; ++k) {
      const long double want = exact(static_cast<long double>(x[k]));
      const T rounded = std::abs(static_cast<T>(want));
      const T ulp = std::nextafter(rounded, std::numeric_limits<T>::infinity()) - rounded;
      const double error = static_cast<double>(std::abs((static_cast<long double>(y[k]) - want) / ulp));
      worst = error <= worst ? worst : error;  // NaN is the worst
    }
  }
  return worst;
}

template <class T>
T one(Lanes<T> value) {
  T lane[Lanes<T>::size];
  value.store(lane);
  return lane[0];
}

}  // namespace

TEST_CASE_TEMPLATE("lanes: exp2, exp, sigmoid, silu and softplus to a few units in the last place", T, float, double) {
  using L = Lanes<T>;
  const double low = std::is_same_v<T, float> ? -120 : -1000, high = std::is_same_v<T, float> ? 127.9 : 1023.9;
  CHECK(worst_ulp<T>(
            low, high, [](L x) { return exp2(x); }, [](long double x) { return std::exp2(x); }) < 1.6);
  CHECK(worst_ulp<T>(
            -1, 1, [](L x) { return exp2(x); }, [](long double x) { return std::exp2(x); }) < 1.6);
  const auto e = [](long double x) { return std::exp(x); };
  CHECK(worst_ulp<T>(
            low * 0.69, high * 0.69, [](L x) { return exp(x); }, e) < 1.6);
  CHECK(worst_ulp<T>(
            -1, 1, [](L x) { return exp(x); }, e) < 1.6);
  CHECK(worst_ulp<T>(
            -80, 80, [](L x) { return sigmoid(x); }, [](long double x) { return 1 / (1 + std::exp(-x)); }) < 3.5);
  CHECK(worst_ulp<T>(
            -80, 80, [](L x) { return silu(x); }, [](long double x) { return x / (1 + std::exp(-x)); }) < 3.5);
  CHECK(worst_ulp<T>(
            -80, 30, [](L x) { return softplus(x); },
            [](long double x) { return x > 20 ? x : std::log1p(std::exp(x)); }) < 4);
}

TEST_CASE_TEMPLATE("lanes: the ends of the range, zero and NaN", T, float, double) {
  using L = Lanes<T>;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(one(exp2(L::all(0))) == 1);
  CHECK(one(exp(L::all(0))) == 1);
  for (T far : {T(-1e30), -inf}) {
    CHECK(one(exp2(L::all(far))) == 0);
    CHECK(one(exp(L::all(far))) == 0);
    CHECK(one(softplus(L::all(far))) == 0);
    CHECK(one(sigmoid(L::all(far))) == 0);
    CHECK(one(exp2(L::all(-far))) == inf);
    CHECK(one(exp(L::all(-far))) == inf);
    CHECK(one(softplus(L::all(-far))) == -far);
    CHECK(one(sigmoid(L::all(-far))) == 1);
    CHECK(one(softplus_derivative(L::all(-far))) == 1);
  }
  CHECK(std::isnan(one(exp2(L::all(nan)))));
  CHECK(std::isnan(one(exp(L::all(nan)))));
  CHECK(std::isnan(one(softplus(L::all(nan)))));
  CHECK(std::isnan(one(silu(L::all(nan)))));
  for (T x : {T(-30), T(-1), T(0), T(0.5), T(3), T(19.5), T(25)}) {
    CHECK(one(silu_derivative(L::all(x))) == doctest::Approx(static_cast<double>(silu_derivative(x))).epsilon(1e-6));
    CHECK(one(softplus_derivative(L::all(x))) ==
          doctest::Approx(static_cast<double>(softplus_derivative(x))).epsilon(1e-6));
    CHECK(one(softplus(L::all(x))) == doctest::Approx(static_cast<double>(softplus(x))).epsilon(1e-6));
  }
}

TEST_CASE_TEMPLATE("lanes: they are numbers", T, float, double) {
  using L = Lanes<T>;
  T a[L::size], expected = 0;
  for (int i = 0; i < L::size; ++i) expected += a[i] = static_cast<T>(i - 3);
  const L x = L::load(a);
  CHECK(x.sum() == expected);
  CHECK(one(multiply_add(x, x, L::all(1))) == 10);
  CHECK(one(max(x, L::all(2))) == 2);
  CHECK(one(min(x, L::all(-4))) == -4);
  CHECK(one(abs(x)) == 3);
  CHECK(one(select(x > L::all(-4), L::all(5), L::all(6))) == 5);
  CHECK(one((x + x - L::all(1)) / L::all(2)) == T(-3.5));
}
