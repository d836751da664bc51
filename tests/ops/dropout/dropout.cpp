// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/dropout/dropout.hpp"

#include <cmath>
#include <limits>

#include "diffmamba/ops/dropout/dropout_backward.hpp"
#include "diffmamba/ops/dropout/dropout_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;

TEST_CASE("dropout: an element is kept by its own word of the generator, scaled by 1 / (1 - p)") {
  const dropout::Options options{.p = 0.3, .random = Philox{42, 7}};
  const auto x = random_tensor<double, 3>({3, 5, 337}, 1);
  const auto out = dropout::forward(x, options);
  Index dropped = 0;
  for (Index i = 0; i < x.size(); ++i) {
    const auto word = options.random.get()(static_cast<std::uint64_t>(i / 4))[static_cast<int>(i % 4)];
    const bool kept = static_cast<double>(word) >= 0.3 * 4294967296.0 - 1;
    CHECK(out.data()[i] == doctest::Approx(kept ? x.data()[i] / 0.7 : 0.0).epsilon(1e-14));
    dropped += !kept;
  }
  CHECK(std::abs(static_cast<double>(dropped) / static_cast<double>(x.size()) - 0.3) < 0.02);
}

TEST_CASE("dropout: the gradient against central differences") {
  const dropout::Options options{.p = 0.5, .random = Philox{3}};
  auto x = random_tensor<double, 2>({5, 7}, 1);
  const auto dout = random_tensor<double, 2>({5, 7}, 2);
  check_gradient("x", x, dropout::backward(dout, options), [&] { return dot(dropout::forward(x, options), dout); });
}

TEST_CASE_TEMPLATE("dropout: p = 0 copies, p = 1 leaves nothing, not even of infinity", T, float, double, bfloat16) {
  auto x = random_tensor<T, 2>({9, 11}, 1);
  CHECK(relative_error(dropout::forward(x, {.p = 0}), x) == 0);
  x(0, 0) = T(std::numeric_limits<float>::infinity());
  for (T value : dropout::forward(x, {.p = 1})) CHECK(static_cast<float>(value) == 0.0f);
}

TEST_CASE("dropout: the mask does not depend on strides, type or threads, only on the generator") {
  const dropout::Options options{.p = 0.4, .random = Philox{1, 2}};
  const Tensor<float, 2> ones({70, 130}, 1.0f);
  const auto want = dropout::forward(ones, options);
  Tensor<float, 2> wide({70, 150}, 1.0f);
  const auto window = wide.slice<1>(10, 140);
  dropout::forward(window, options, window);  // in place, strided
  CHECK(relative_error(to_tensor(window), want) == 0);
  CHECK((wide(3, 9) == 1.0f && wide(3, 140) == 1.0f));
  CHECK(relative_error(dropout::forward(Tensor<double, 2>({70, 130}, 1.0), options), want) < 1e-7);
  {
    Threads threads(1);
    CHECK(relative_error(dropout::forward(ones, options), want) == 0);
  }
  CHECK(relative_error(dropout::forward(ones, {.p = 0.4, .random = Philox{1, 3}}), want) > 0.5);
  CHECK(dropout::forward(Tensor<float, 2>({0, 3}), options).size() == 0);
}

TEST_CASE("dropout: mistakes") {
  Tensor<float, 1> x({3}), y({4});
  CHECK_THROWS_WITH_AS(dropout::forward(x, {.p = -0.1}), "dropout: p is -0.1, expected 0 to 1", Error);
  CHECK_THROWS_WITH_AS(dropout::forward(x, {.p = std::nan("")}), "dropout: p is nan, expected 0 to 1", Error);
  CHECK_THROWS_WITH_AS(dropout::forward(x, {.p = 0.1}, y), "dropout: out has the shape (4), expected (3)", Error);
}
