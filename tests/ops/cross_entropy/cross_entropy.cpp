// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/cross_entropy/cross_entropy.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using cross_entropy::Options;
using cross_entropy::Reduction;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;

namespace {

/// Labels of which every fourth is ignored.
Tensor<std::int32_t, 1> some_labels(Index rows, Index vocab_size) {
  Tensor<std::int32_t, 1> labels{Extents<1>(rows)};
  for (Index i = 0; i < rows; ++i) labels(i) = i % 4 == 1 ? -100 : static_cast<std::int32_t>(i * 5 % vocab_size);
  return labels;
}

/// The formula, row by row.
Tensor<double, 1> plain(const Tensor<double, 2>& logits, const Tensor<std::int32_t, 1>& labels,
                        const Options& options) {
  const Index rows = logits.extent(0), size = options.vocab_size > 0 ? options.vocab_size : logits.extent(1);
  Tensor<double, 1> loss{Extents<1>(rows)};
  double kept = 0;
  for (Index i = 0; i < rows; ++i) {
    if (labels(i) == options.ignore_index) continue;
    ++kept;
    double sum = 0;
    for (Index v = 0; v < size; ++v) sum += std::exp(logits(i, v));
    for (Index v = 0; v < size; ++v) {
      const double weight =
          (v == labels(i) ? 1 - options.label_smoothing : 0.0) + options.label_smoothing / static_cast<double>(size);
      loss(i) -= weight * std::log(std::exp(logits(i, v)) / sum);
    }
  }
  if (options.reduction == Reduction::none) return loss;
  Tensor<double, 1> total{Extents<1>(1)};
  for (double value : loss) total(0) += value;
  if (options.reduction == Reduction::mean) total(0) /= kept;
  return total;
}

const Options variants[] = {{},
                            {.label_smoothing = 0.1},
                            {.reduction = Reduction::sum},
                            {.label_smoothing = 0.3, .reduction = Reduction::none},
                            {.vocab_size = 21, .label_smoothing = 0.2},
                            {.vocab_size = 17, .reduction = Reduction::none}};

}  // namespace

TEST_CASE("cross_entropy: the formula, in double and in float; one pass gives what two give") {
  for (const Options& options : variants)
    for (const Index rows : {2, 9, 700}) {
      const auto logits = random_tensor<double, 2>({rows, 23}, 1, 3.0);
      const auto single = to_tensor<float>(logits.view());
      const auto labels = some_labels(rows, 17);
      const cross_entropy::Inputs<double> in{.logits = logits, .labels = labels};
      const cross_entropy::Inputs<float> in_float{.logits = single, .labels = labels};
      const auto want = plain(logits, labels, options);
      const auto [loss, saved] = cross_entropy::forward(in, options);
      CHECK(relative_error(loss, want) < 1e-14);
      CHECK(relative_error(cross_entropy::forward(in_float, options).loss, want) < 1e-6);

      Tensor<double, 1> dloss(loss.extents(), 0.25);
      const auto dlogits = cross_entropy::backward(in, saved, dloss);
      auto fused = logits;  // in place
      const auto again = cross_entropy::forward_backward(
          cross_entropy::Inputs<double>{.logits = fused, .labels = labels}, options, fused.view(), 0.25);
      CHECK(relative_error(again, loss) < 1e-14);
      CHECK(relative_error(fused, dlogits) < 1e-14);
      auto fused_float = single;
      cross_entropy::forward_backward(cross_entropy::Inputs<float>{.logits = fused_float, .labels = labels}, options,
                                      fused_float.view(), 0.25);
      CHECK(relative_error(fused_float, dlogits) < 1e-6);
      if (options.vocab_size > 0)
        for (Index v = options.vocab_size; v < 23; ++v) CHECK((dlogits(0, v) == 0 && fused(0, v) == 0));
      for (Index v = 0; v < 23; ++v) CHECK((dlogits(1, v) == 0 && fused(1, v) == 0));  // an ignored row
    }
}

TEST_CASE("cross_entropy: the gradient against central differences") {
  for (const Options& options : variants) {
    auto logits = random_tensor<double, 2>({6, 23}, 1);
    const auto labels = some_labels(6, 17);
    const cross_entropy::Inputs<double> in{.logits = logits, .labels = labels};
    const auto [loss, saved] = cross_entropy::forward(in, options);
    const auto dloss = random_tensor<double, 1>(loss.extents(), 2);
    check_gradient(
        "logits", logits, cross_entropy::backward(in, saved, dloss),
        [&] { return dot(cross_entropy::forward(in, options).loss, dloss); }, 1e-6, 1e-3, 200);
  }
}

TEST_CASE_TEMPLATE("cross_entropy: large logits lose nothing, NaN is not hidden", T, float, double) {
  Tensor<T, 2> logits({3, 40});
  for (Index i = 0; i < 3; ++i)
    for (Index v = 0; v < 40; ++v) logits(i, v) = T(30000 + (v == 7 ? 2 : 0));
  logits(2, 3) = T(-1e30);
  Tensor<std::int32_t, 1> labels({3}, 7);
  const cross_entropy::Inputs<T> in{.logits = logits, .labels = labels};
  const double want = std::log(std::exp(2.0) + 39) - 2;
  const auto loss = cross_entropy::forward(in, {.reduction = Reduction::none}).loss;
  CHECK(static_cast<double>(loss(0)) == doctest::Approx(want).epsilon(1e-6));
  CHECK(static_cast<double>(loss(2)) == doctest::Approx(std::log(std::exp(2.0) + 38) - 2).epsilon(1e-6));
  for (const Index where : {0, 7, 39}) {
    auto broken = logits;
    broken(1, where) = std::numeric_limits<T>::quiet_NaN();
    const cross_entropy::Inputs<T> bad{.logits = broken, .labels = labels};
    CHECK(std::isnan(cross_entropy::forward(bad).loss(0)));
    CHECK(std::isnan(cross_entropy::forward_backward(bad, {}, broken.view())(0)));
  }
}

TEST_CASE("cross_entropy: no label kept is NaN as in torch, with zero gradients; no rows at all sum to 0") {
  const auto logits = random_tensor<float, 2>({3, 10}, 1);
  const Tensor<std::int32_t, 1> ignored({3}, -100);
  const cross_entropy::Inputs<float> in{.logits = logits, .labels = ignored};
  CHECK(std::isnan(cross_entropy::forward(in).loss(0)));
  CHECK(cross_entropy::forward(in, {.reduction = Reduction::sum}).loss(0) == 0.0f);
  Tensor<float, 2> dlogits({3, 10}, 1.0f);
  cross_entropy::forward_backward(in, {}, dlogits.view());
  for (float value : dlogits) CHECK(value == 0.0f);
  const Tensor<float, 2> empty({0, 10});
  const Tensor<std::int32_t, 1> none({0});
  CHECK(cross_entropy::forward(cross_entropy::Inputs<float>{.logits = empty, .labels = none},
                               {.reduction = Reduction::sum})
            .loss(0) == 0.0f);
}

TEST_CASE("cross_entropy: 16-bit logits, strided logits, 64-bit labels") {
  const auto logits = random_tensor<bfloat16, 2>({20, 50}, 1, 2.0);
  const auto wide = to_tensor<double>(logits.view());
  const auto labels = some_labels(20, 50);
  const auto want = plain(wide, labels, {});
  const cross_entropy::Inputs<bfloat16> in{.logits = logits, .labels = labels};
  const auto [loss, saved] = cross_entropy::forward(in);
  CHECK(relative_error(loss, want) < 1e-6);
  const auto reference = cross_entropy::forward(cross_entropy::Inputs<double>{.logits = wide, .labels = labels});
  const auto dwant = cross_entropy::backward(cross_entropy::Inputs<double>{.logits = wide, .labels = labels},
                                             reference.saved, Tensor<double, 1>({1}, 1.0));
  CHECK(relative_error(cross_entropy::backward(in, saved, Tensor<float, 1>({1}, 1.0f)), dwant) < 4e-3);
  auto in_place = logits;
  cross_entropy::forward_backward(cross_entropy::Inputs<bfloat16>{.logits = in_place, .labels = labels}, {},
                                  in_place.view());
  CHECK(relative_error(in_place, dwant) < 4e-3);

  Tensor<std::int64_t, 1> longer({20});
  for (Index i = 0; i < 20; ++i) longer(i) = labels(i);
  Tensor<double, 2> padded({20, 60}, 1e6);
  copy(wide, padded.slice<1>(4, 54));
  const cross_entropy::Inputs<double, std::int64_t> strided{.logits = padded.slice<1>(4, 54), .labels = longer};
  CHECK(relative_error(cross_entropy::forward(strided).loss, want) < 1e-14);
}

TEST_CASE_TEMPLATE("cross_entropy: the same bits on one and two threads", T, float, double) {
  const auto logits = random_tensor<T, 2>({400, 257}, 1, 2.0);
  const auto labels = some_labels(400, 257);
  const auto run = [&](int count) {
    Threads threads(count);
    auto dlogits = logits;
    auto loss = cross_entropy::forward_backward(cross_entropy::Inputs<T>{.logits = logits, .labels = labels},
                                                {.label_smoothing = 0.1}, dlogits.view());
    return std::pair(loss(0), std::move(dlogits));
  };
  const auto [loss1, d1] = run(1);
  const auto [loss2, d2] = run(2);
  CHECK(loss1 == loss2);
  CHECK(std::memcmp(d1.data(), d2.data(), static_cast<std::size_t>(d1.size()) * sizeof(T)) == 0);
}

TEST_CASE("cross_entropy: slices of rows with a factor for all of them make the mean and its gradient") {
  auto want = random_tensor<double, 2>({70, 33}, 1);
  auto logits = want;
  auto labels = some_labels(70, 33);
  labels(3) = -100;
  const auto mean = cross_entropy::forward_backward(cross_entropy::Inputs<double>{.logits = want, .labels = labels}, {},
                                                    want.view(), 0.5);
  const Options options{.reduction = Reduction::sum};
  Tensor<double, 1> factors({2}), loss({1}), loss_only({1});
  cross_entropy::kept_scale(std::as_const(labels).view(), options, 0.5, factors.view());
  Workspace<cpu> workspace(cross_entropy::workspace_bytes<double>(70));
  for (const Index begin : {0, 40}) {
    const Index end = begin == 0 ? 40 : 70;
    const auto some = logits.slice<0>(begin, end);
    const cross_entropy::Inputs<double> in{.logits = some, .labels = labels.slice<0>(begin, end)};
    const auto mode = begin == 0 ? GradientMode::assign : GradientMode::add;
    cross_entropy::forward(in, options, loss_only.view(), mode, workspace);
    cross_entropy::forward_backward(in, options, some, factors.view(), loss.view(), mode, workspace);
  }
  CHECK(relative_error(logits, want) < 1e-14);
  CHECK(loss(0) * factors(1) == doctest::Approx(mean(0)).epsilon(1e-13));
  CHECK(loss_only(0) == loss(0));
  for (std::int32_t& label : labels) label = -100;
  cross_entropy::kept_scale(std::as_const(labels).view(), options, 0.5, factors.view());
  CHECK(factors(0) == 0.0);
  CHECK(std::isnan(factors(1)));
}

TEST_CASE("cross_entropy: labels shifted by one position") {
  Tensor<std::int32_t, 2> tokens({2, 4});
  for (Index i = 0; i < 8; ++i) tokens.data()[i] = static_cast<std::int32_t>(i);
  const auto labels = cross_entropy::shifted(tokens);
  const std::int32_t want[] = {1, 2, 3, -100, 5, 6, 7, -100};
  for (Index i = 0; i < 8; ++i) CHECK(labels(i) == want[i]);
  CHECK(cross_entropy::shifted(Tensor<std::int32_t, 2>({3, 0})).size() == 0);
}

TEST_CASE("cross_entropy: mistakes") {
  const Tensor<float, 2> logits({3, 10});
  Tensor<std::int32_t, 1> labels({3}), two({2});
  labels(2) = 10;
  const cross_entropy::Inputs<float> in{.logits = logits, .labels = labels};
  CHECK_THROWS_WITH_AS(cross_entropy::forward(in), "cross_entropy: label 10 at row 2 is outside the vocabulary of 10",
                       Error);
  labels(2) = 8;
  CHECK_THROWS_WITH_AS(cross_entropy::forward(in, {.vocab_size = 8}),
                       "cross_entropy: label 8 at row 2 is outside the vocabulary of 8", Error);
  CHECK_THROWS_WITH_AS(cross_entropy::forward(in, {.vocab_size = 11}),
                       "cross_entropy: vocab_size 11 does not fit logits (3, 10)", Error);
  CHECK_THROWS_WITH_AS(cross_entropy::forward(in, {.label_smoothing = 1.5}),
                       "cross_entropy: label_smoothing is 1.5, expected 0 to 1", Error);
  CHECK_THROWS_WITH_AS(cross_entropy::forward(cross_entropy::Inputs<float>{.logits = logits, .labels = two}),
                       "cross_entropy: 2 labels for 3 rows of logits", Error);
}
