// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/train/schedule.hpp"

#include <doctest/doctest.h>

using namespace diffmamba;

TEST_CASE("schedules: rise, fall, and stay") {
  const WarmupCosine cosine{.lr = 1.0, .min_lr = 0.1, .warmup = 10, .steps = 110};
  CHECK(cosine(0) == doctest::Approx(0.1));
  CHECK(cosine(4) == doctest::Approx(0.5));
  CHECK(cosine(9) == doctest::Approx(1.0));
  CHECK(cosine(10) == doctest::Approx(1.0));
  CHECK(cosine(60) == doctest::Approx(0.55));
  CHECK(cosine(35) == doctest::Approx(0.1 + 0.45 * (1 + 0.70710678118654752)));
  CHECK(cosine(110) == doctest::Approx(0.1));
  CHECK(cosine(5000) == doctest::Approx(0.1));
  const WarmupLinear linear{.lr = 1.0, .min_lr = 0.2, .warmup = 0, .steps = 4};
  CHECK(linear(0) == doctest::Approx(1.0));
  CHECK(linear(1) == doctest::Approx(0.8));
  CHECK(linear(4) == doctest::Approx(0.2));
  const WarmupConstant constant{.lr = 3.0, .warmup = 2};
  CHECK(constant(0) == doctest::Approx(1.5));
  CHECK(constant(1) == 3.0);
  CHECK(constant(1000000) == 3.0);
}

TEST_CASE("schedules: a warm-up longer than the run, a run of no steps") {
  const WarmupCosine longer{.lr = 1.0, .warmup = 10, .steps = 5};
  CHECK(longer(9) == doctest::Approx(1.0));
  CHECK(longer(11) == doctest::Approx(0.0));
  const WarmupLinear none{.lr = 1.0, .min_lr = 0.5, .warmup = 0, .steps = 0};
  CHECK(none(0) == 1.0);
  CHECK(none(1) == 0.5);
  CHECK_THROWS_WITH_AS(none(-1), "schedule: step -1, warmup 0: expected 0 or more", Error);
}
