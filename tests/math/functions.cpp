// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "diffmamba/math/exp.hpp"
#include "diffmamba/math/gelu.hpp"
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/math/log.hpp"
#include "diffmamba/math/minmax.hpp"
#include "diffmamba/math/power.hpp"
#include "diffmamba/math/relu.hpp"
#include "diffmamba/math/sigmoid.hpp"
#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"
#include "diffmamba/math/sqrt.hpp"
#include "diffmamba/math/tanh.hpp"

namespace dm = diffmamba;

namespace {

// Calls visit(name, f, derivative, low, high) for every function of one argument.
template <class Visit>
void each_function(Visit&& visit) {
#define FUNCTION(name, low, high) \
  visit(                          \
      #name, [](auto x) { return dm::name(x); }, [](auto x) { return dm::name##_derivative(x); }, low, high)
  FUNCTION(exp, -5.0, 5.0);
  FUNCTION(log, 0.1, 9.0);
  FUNCTION(log1p, -0.9, 9.0);
  FUNCTION(sqrt, 0.1, 9.0);
  FUNCTION(rsqrt, 0.1, 9.0);
  FUNCTION(tanh, -4.0, 4.0);
  FUNCTION(sigmoid, -9.0, 9.0);
  FUNCTION(silu, -9.0, 9.0);
  FUNCTION(softplus, -9.0, 19.0);
  FUNCTION(relu, -3.0, 3.0);
  FUNCTION(erf, -3.0, 3.0);
  FUNCTION(gelu, -5.0, 5.0);
  FUNCTION(square, -3.0, 3.0);
  FUNCTION(abs, -3.0, 3.0);
#undef FUNCTION
}

double ulps(float got, double want) {  // distance in units of the last place of want; below 2^-125 it may be 0
  if (want < 0x1p-125 && got == 0.0f) return 0;
  if (std::isnan(got) || std::isnan(want)) return std::isnan(got) && std::isnan(want) ? 0 : INFINITY;
  if (static_cast<double>(got) == want || got == static_cast<float>(want)) return 0;
  const float near = std::abs(static_cast<float>(want));
  const double unit =
      static_cast<double>(std::nextafter(near, std::numeric_limits<float>::infinity())) - static_cast<double>(near);
  return std::abs(static_cast<double>(got) - want) / unit;
}

}  // namespace

TEST_CASE("derivatives agree with central differences") {
  each_function([](const char* name, auto f, auto derivative, double low, double high) {
    INFO(name);
    for (int i = 0; i <= 100; ++i) {
      const double x = low + (high - low) * (i + 0.37) / 101, h = 1e-3 * (low == 0.1 || low == -0.9 ? 0.2 : 1.0);
      const double numeric = (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h);
      INFO("x = ", x);
      CHECK(std::abs(derivative(x) - numeric) <= 1e-8 * std::max(1.0, std::abs(numeric)));
    }
  });
  for (const double p : {2.0, 0.5, -1.5, 3.0}) {
    const double x = 1.7, h = 1e-3;
    const auto f = [&](double t) { return dm::pow(t, p); };
    const double numeric = (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h);
    CHECK(std::abs(dm::pow_derivative(x, p) - numeric) < 1e-8);
  }
  CHECK(dm::relu_derivative(0.0) == 0.0);
  CHECK(dm::abs_derivative(0.0) == 0.0);
  CHECK(dm::clamp(7.0, -1.0, 2.0) == 2.0);
  CHECK(dm::clamp_derivative(7.0, -1.0, 2.0) == 0.0);
  CHECK(dm::clamp_derivative(1.0, -1.0, 2.0) == 1.0);
}

TEST_CASE_TEMPLATE("the same formulas on registers", T, float, double) {
  using L = dm::Lanes<T>;
  const double tolerance = 24 * static_cast<double>(std::numeric_limits<T>::epsilon());
  each_function([&](const char* name, auto f, auto derivative, double low, double high) {
    INFO(name);
    T x[L::size], y[L::size], dy[L::size];
    for (int i = 0; i < 500; i += L::size) {
      for (int k = 0; k < L::size; ++k) x[k] = static_cast<T>(low + (high - low) * (i + k) / 520);
      f(L::load(x)).store(y);
      derivative(L::load(x)).store(dy);
      for (int k = 0; k < L::size; ++k) {
        INFO("x = ", x[k]);
        const double exact = f(static_cast<double>(x[k])), slope = derivative(static_cast<double>(x[k]));
        CHECK(std::abs(static_cast<double>(y[k]) - exact) <= tolerance * std::max(0.05, std::abs(exact)));
        CHECK(std::abs(static_cast<double>(dy[k]) - slope) <= tolerance * std::max(1.0, std::abs(slope)));
      }
    }
  });
}

TEST_CASE("exp of a register: every range of float, two units in the last place") {
  using L = dm::Lanes<float>;
  double worst = 0;
  for (std::uint64_t bits = 0; bits < (1ull << 32); bits += 1999) {  // 2 million floats over all of them
    float x[L::size], y[L::size];
    for (int k = 0; k < L::size; ++k) {
      const auto word = static_cast<std::uint32_t>(bits + static_cast<std::uint64_t>(k) * 104729);
      std::memcpy(&x[k], &word, 4);
    }
    dm::exp(L::load(x)).store(y);
    worst = std::max(worst, ulps(y[0], std::exp(static_cast<double>(x[0]))));
  }
  CHECK(worst <= 2.0);
  for (int i = 0; i < 400000; ++i) {
    float x[L::size], y[L::size];
    for (int k = 0; k < L::size; ++k)
      x[k] = -104.5f + static_cast<float>(i) * (194.0f / 400000) + static_cast<float>(k);
    dm::exp(L::load(x)).store(y);
    worst = std::max(worst, ulps(y[0], std::exp(static_cast<double>(x[0]))));
  }
  INFO("worst ", worst);
  CHECK(worst <= 2.0);
}

TEST_CASE_TEMPLATE("the ends of the number line", T, float, double) {
  using L = dm::Lanes<T>;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto lane = [](auto lanes) {
    T out[L::size];
    lanes.store(out);
    for (T value : out) CHECK(std::memcmp(&value, &out[0], sizeof(T)) == 0);
    return out[0];
  };
  const auto all = [](T value) { return L(static_cast<double>(value)); };
  for (const T x : {inf, T(1e4)}) {
    CHECK(lane(dm::exp(all(x))) == inf);
    CHECK(lane(dm::exp(all(-x))) == T(0));
    CHECK(lane(dm::sigmoid(all(x))) == T(1));
    CHECK(lane(dm::sigmoid(all(-x))) == T(0));
    CHECK(lane(dm::softplus(all(x))) == x);
    CHECK(lane(dm::softplus(all(-x))) == T(0));
  }
  CHECK(lane(dm::silu(all(T(-1e4)))) == T(0));
  CHECK(lane(dm::log(all(T(0)))) == -inf);
  CHECK(std::isnan(lane(dm::log(all(T(-1))))));
  CHECK(lane(dm::log1p(all(inf))) == inf);
  CHECK(std::abs(lane(dm::log1p(all(T(1e-12)))) / std::log1p(T(1e-12)) - 1) < 4 * std::numeric_limits<T>::epsilon());
  CHECK(lane(dm::log1p(all(T(-1)))) == -inf);
  const auto nan_stays = [&](auto f) {
    CHECK(std::isnan(lane(f(all(nan)))));
    CHECK(std::isnan(f(nan)));
  };
  nan_stays([](auto x) { return dm::exp(x); });
  nan_stays([](auto x) { return dm::log(x); });
  nan_stays([](auto x) { return dm::log1p(x); });
  nan_stays([](auto x) { return dm::sqrt(x); });
  nan_stays([](auto x) { return dm::sigmoid(x); });
  nan_stays([](auto x) { return dm::silu(x); });
  nan_stays([](auto x) { return dm::softplus(x); });
  nan_stays([](auto x) { return dm::relu(x); });
  nan_stays([](auto x) { return dm::gelu(x); });
  nan_stays([](auto x) { return dm::abs(x); });
  nan_stays([](auto x) { return dm::maximum(x, decltype(x)(1)); });
  nan_stays([](auto x) { return dm::maximum(decltype(x)(1), x); });
  nan_stays([](auto x) { return dm::minimum(x, decltype(x)(1)); });
  nan_stays([](auto x) { return dm::minimum(decltype(x)(1), x); });
  nan_stays([](auto x) { return dm::clamp(x, decltype(x)(0), decltype(x)(1)); });
  CHECK(lane(dm::maximum(all(T(2)), all(T(3)))) == T(3));
  CHECK(lane(dm::minimum(all(T(2)), all(T(3)))) == T(2));
  CHECK(lane(dm::select(all(T(2)) < all(T(3)), all(T(5)), all(T(7)))) == T(5));
  CHECK(lane(dm::select(!(all(T(2)) < all(T(3))), all(T(5)), all(T(7)))) == T(7));
  CHECK(lane(dm::select(all(T(2)) != all(T(3)), all(T(5)), all(T(7)))) == T(5));
}
