// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/generate/sampler.hpp"

#include <cmath>
#include <limits>

#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::random_tensor;

namespace {

constexpr double gone = -std::numeric_limits<double>::infinity();

Tensor<double, 1> logits_of(std::initializer_list<double> values) {
  Tensor<double, 1> logits{Extents<1>(static_cast<Index>(values.size()))};
  std::copy(values.begin(), values.end(), logits.begin());
  return logits;
}
void check_equal(const Tensor<double, 1>& got, std::initializer_list<double> want) {
  Index i = 0;
  for (double value : want) {
    CHECK(got(i) == doctest::Approx(value));
    ++i;
  }
}
View<const double, 1> reading(const Tensor<double, 1>& logits) {
  return logits.view();
}

}  // namespace

TEST_CASE("filters: what each of them keeps") {
  auto l = logits_of({1, 4, 2, 4, 3});
  logits_filter::top_k(l.view(), 3);
  CHECK((l(0) == gone && l(1) == 4 && l(2) == gone && l(3) == 4 && l(4) == 3));
  l = logits_of({1, 4, 2, 4, 3});
  logits_filter::top_k(l.view(), 1);  // equals stay
  CHECK((l(1) == 4 && l(3) == 4 && l(4) == gone));
  logits_filter::top_k(l.view(), 0);
  logits_filter::top_k(l.view(), 100);
  CHECK(l(1) == 4);

  // Probabilities 0.1, 0.2, 0.3, 0.4.
  const auto p = [](double x) { return std::log(x) + 5; };
  l = logits_of({p(0.3), p(0.1), p(0.4), p(0.2)});
  logits_filter::top_p(l.view(), 0.75);  // 0.1 may go, 0.1 + 0.2 may not
  CHECK((l(1) == gone && l(3) != gone && l(0) != gone && l(2) != gone));
  logits_filter::top_p(l.view(), 0.0);  // the largest stays
  CHECK((l(2) != gone && l(0) == gone && l(3) == gone));

  l = logits_of({p(0.3), p(0.1), p(0.4), p(0.2)});
  logits_filter::min_p(l.view(), 0.6);
  CHECK((l(0) != gone && l(1) == gone && l(2) != gone && l(3) == gone));

  l = logits_of({2, -2, 0, 3});
  const std::int32_t seen[] = {1, 3, 1};
  logits_filter::repetition_penalty(l.view(), std::span<const std::int32_t>(seen), 2.0);
  check_equal(l, {2, -4, 0, 1.5});
  logits_filter::temperature(l.view(), 0.5);
  check_equal(l, {4, -8, 0, 3});
}

TEST_CASE("filters work on a row of any stride") {
  auto rows = random_tensor<float, 2>({9, 2}, 1);
  rows(4, 1) = 50;
  rows(7, 1) = 40;
  logits_filter::top_k(rows.select<1>(1), 2);
  for (Index v = 0; v < 9; ++v) {
    CHECK(std::isfinite(rows(v, 1)) == (v == 4 || v == 7));
    CHECK(std::isfinite(rows(v, 0)));
  }
}

TEST_CASE("sampler: tokens come as often as their probability says") {
  const auto logits = logits_of({std::log(0.1), std::log(0.2), gone, std::log(0.7)});
  Sampler sampler({.seed = 5});
  int count[4] = {};
  for (int i = 0; i < 20000; ++i) ++count[sampler(reading(logits))];
  CHECK(count[2] == 0);
  CHECK(std::abs(count[0] - 2000) < 200);
  CHECK(std::abs(count[1] - 4000) < 250);
  Sampler hot({.temperature = 100.0, .seed = 5});  // nearly uniform over the three
  int flat[4] = {};
  for (int i = 0; i < 6000; ++i) ++flat[hot(reading(logits))];
  CHECK(std::abs(flat[0] - 2000) < 200);
}

TEST_CASE("sampler: temperature 0 and top_k 1 take the likeliest; the penalty comes first") {
  const auto logits = logits_of({1, 5, 4.9, 0});
  Sampler greedy({.temperature = 0});
  CHECK(greedy(reading(logits)) == 1);
  Sampler top({.top_k = 1, .seed = 3});
  for (int i = 0; i < 20; ++i) CHECK(top(reading(logits)) == 1);
  Sampler wary({.temperature = 0, .repetition_penalty = 1.5});
  const std::int32_t seen[] = {1};
  CHECK(wary(reading(logits), std::span<const std::int32_t>(seen)) == 2);
}

TEST_CASE("sampler: a value that can be copied and continued; seeds and streams differ") {
  const auto logits = random_tensor<double, 1>(Extents<1>(50), 1);
  const auto draw = [&](Sampler& sampler, int count) {
    std::vector<std::int32_t> tokens;
    for (int i = 0; i < count; ++i) tokens.push_back(sampler(reading(logits)));
    return tokens;
  };
  Sampler a({.seed = 9}), b({.seed = 9}), c({.seed = 10}), d({.seed = 9}, 1);
  const auto want = draw(a, 30);
  CHECK(draw(b, 10) == std::vector<std::int32_t>(want.begin(), want.begin() + 10));
  Sampler later = b, set({.seed = 9});
  set.set_position(10);
  CHECK(draw(later, 20) == std::vector<std::int32_t>(want.begin() + 10, want.end()));
  CHECK(draw(set, 20) == std::vector<std::int32_t>(want.begin() + 10, want.end()));
  CHECK(draw(c, 30) != want);
  CHECK(draw(d, 30) != want);
}

TEST_CASE("sampler: mistakes") {
  CHECK_THROWS_WITH_AS(Sampler({.temperature = -1}), "sampler: temperature is -1, expected 0 to inf", Error);
  CHECK_THROWS_WITH_AS(Sampler({.top_k = -3}), "sampler: top_k is -3, expected 0 or more", Error);
  CHECK_THROWS_WITH_AS(Sampler({.top_p = 1.5}), "sampler: top_p is 1.5, expected 0 to 1", Error);
  CHECK_THROWS_WITH_AS(Sampler({.min_p = -0.5}), "sampler: min_p is -0.5, expected 0 to 1", Error);
  CHECK_THROWS_WITH_AS(Sampler({.repetition_penalty = 0}), "sampler: repetition_penalty is 0, expected more than 0",
                       Error);
  Sampler sampler;
  auto logits = logits_of({1, 2, 3});
  logits(1) = std::nan("");
  CHECK_THROWS_WITH_AS(sampler(reading(logits)), "sampler: the logit of token 1 is not a number", Error);
  logits.fill(gone);
  CHECK_THROWS_WITH_AS(sampler(reading(logits)), "sampler: every logit is -infinity", Error);
  CHECK_THROWS_WITH_AS(sampler(reading(Tensor<double, 1>({0}))), "sampler: there are no logits", Error);
  Sampler wary({.repetition_penalty = 1.5});
  logits = logits_of({1, 2, 3});
  const std::int32_t seen[] = {3};
  CHECK_THROWS_WITH_AS(wary(reading(logits), std::span<const std::int32_t>(seen)),
                       "sampler: token 3 is outside the vocabulary of 3", Error);
}

TEST_CASE("sampler: top_p may drop some of several likeliest tokens; the others are drawn equally often") {
  Tensor<double, 1> logits({8}, 1.0);
  Sampler sampler({.top_p = 0.5, .seed = 1});
  std::vector<int> count(8, 0);
  for (int i = 0; i < 4000; ++i) ++count[static_cast<std::size_t>(sampler(View<const double, 1>(logits.view())))];
  for (std::size_t v = 0; v < 8; ++v) CHECK(count[v] == doctest::Approx(v < 4 ? 0.0 : 1000.0).epsilon(0.1));
}
