// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/train/adamw.hpp"

#include <cmath>
#include <cstring>

#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;

namespace {

/// The formula, one number at a time in double.
struct Plain {
  double p, m = 0, v = 0;
  void step(double g, int t, const AdamWOptions& o) {
    p *= 1 - o.lr * o.weight_decay;
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    p -= o.lr / (1 - std::pow(o.beta1, t)) * m / (std::sqrt(v) / std::sqrt(1 - std::pow(o.beta2, t)) + o.eps);
  }
};

/// What AdamW asks of a model, in miniature.
struct Model {
  using device_type = cpu;
  using value_type = float;
  enum class Decay { yes, no };
  struct Segment {
    Index offset, size;
    Decay decay;
  };
  struct Flat {
    Tensor<float, 1> value, gradient;
    std::vector<Segment> segments;
    View<float, 1> values() { return value; }
    View<float, 1> gradients() { return gradient; }
  };
  Flat flat_;
  Flat& flat() { return flat_; }
};

}  // namespace

TEST_CASE_TEMPLATE("adamw: the formula, step by step, on any size", T, float, double) {
  const AdamWOptions options{.lr = 0.02, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.3};
  for (const Index size : {0, 1, 17, 16384, 16391}) {
    auto p = random_tensor<T, 1>(Extents<1>(size), 1);
    Tensor<double, 1> want{Extents<1>(size)};
    std::vector<Plain> plain;
    for (T value : p) plain.push_back({.p = static_cast<double>(value)});
    AdamW<T> optimizer(size, options);
    for (int t = 1; t <= 4; ++t) {
      const auto g = random_tensor<T, 1>(Extents<1>(size), static_cast<unsigned>(t + 1));
      optimizer.step(p.view(), g.view(), options.lr, 0.5);
      for (Index i = 0; i < size; ++i) {
        plain[static_cast<std::size_t>(i)].step(0.5 * static_cast<double>(g(i)), t, options);
        want(i) = plain[static_cast<std::size_t>(i)].p;
      }
    }
    CHECK(optimizer.steps() == 4);
    CHECK(relative_error(p, want) < (std::is_same_v<T, float> ? 1e-6 : 1e-14));
  }
}

TEST_CASE("adamw: groups have their own rate and decay, what is in none stays") {
  Tensor<double, 1> p({10}, 1.0), g({10}, 0.0);
  g(9) = 5;
  AdamW<double> optimizer(
      10, {.lr = 0.1, .weight_decay = 0.5},
      {{.begin = 0, .end = 3}, {.begin = 3, .end = 5, .lr_scale = 2}, {.begin = 5, .end = 8, .decay_scale = 0}});
  optimizer.step(p.view(), g.view());
  CHECK(p(0) == doctest::Approx(0.95));
  CHECK(p(4) == doctest::Approx(0.9));
  CHECK(p(7) == 1.0);
  CHECK(p(9) == 1.0);
}

TEST_CASE("adamw: over a model, decay only where the model says so") {
  Model model{{Tensor<float, 1>({8}, 1.0f),
               Tensor<float, 1>({8}, 0.0f),
               {{0, 3, Model::Decay::yes}, {4, 4, Model::Decay::no}}}};
  AdamW optimizer(model, {.lr = 0.1, .weight_decay = 0.5});
  optimizer.step(model, 0.2);
  CHECK(model.flat_.value(0) == doctest::Approx(0.9));
  CHECK(model.flat_.value(3) == 1.0f);
  CHECK(model.flat_.value(5) == 1.0f);
}

TEST_CASE("adamw: a run that is saved and continued is the same run, on one thread and on two") {
  const Index size = 40000;
  const auto start = random_tensor<float, 1>(Extents<1>(size), 1);
  const auto gradient = [&](int t) { return random_tensor<float, 1>(Extents<1>(size), static_cast<unsigned>(t)); };
  auto straight = start, resumed = start;
  {
    Threads one(1);
    AdamW<float> optimizer(size);
    for (int t = 0; t < 4; ++t) optimizer.step(straight.view(), gradient(t).view());
  }
  Threads two(2);
  AdamW<float> first(size), second(size);
  for (int t = 0; t < 2; ++t) first.step(resumed.view(), gradient(t).view());
  copy(std::as_const(first).exp_avg(), second.exp_avg());
  copy(std::as_const(first).exp_avg_sq(), second.exp_avg_sq());
  second.set_steps(first.steps());
  for (int t = 2; t < 4; ++t) second.step(resumed.view(), gradient(t).view());
  CHECK(std::memcmp(straight.data(), resumed.data(), static_cast<std::size_t>(size) * sizeof(float)) == 0);
}

TEST_CASE("adamw: mistakes") {
  Tensor<float, 1> p({3}), g({4});
  AdamW<float> optimizer(3);
  CHECK_THROWS_WITH_AS(optimizer.step(p.view(), g.view()), "adamw: gradients has the shape (4), expected (3)", Error);
  CHECK(optimizer.steps() == 0);
  AdamW<float> wrong(3, {.beta1 = 1.0});
  CHECK_THROWS_WITH_AS(wrong.step(p.view(), p.view()), "adamw: betas (1, 0.999), expected 0 <= beta < 1", Error);
  AdamW<float> outside(3, {}, {{.begin = 1, .end = 4}});
  CHECK_THROWS_WITH_AS(outside.step(p.view(), p.view()), "adamw: a group [1, 4) of 3 parameters", Error);
}
