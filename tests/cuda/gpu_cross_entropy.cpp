// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The loss of a language model on a GPU against the CPU, in double.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using cross_entropy::Options;
using cross_entropy::Reduction;
using test::relative_error;

namespace {

template <class Label>
Tensor<Label, 1> random_labels(Index rows, Index vocab_size, unsigned seed) {
  Tensor<Label, 1> labels({rows});
  std::mt19937 generator(seed);
  for (Label& label : labels)
    label = generator() % 5 == 0 ? Label{-100} : static_cast<Label>(generator() % static_cast<unsigned>(vocab_size));
  return labels;
}

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

struct Case {
  Index rows, vocab_size, columns;
};
/// Short rows, rows of a block, long ones; whole vectors and not; with and without padding.
constexpr Case cases[] = {{0, 5, 5},         {1, 2, 2},         {37, 256, 256},   {70, 250, 256},
                          {33, 67, 67},      {9, 1000, 1024},   {5, 4099, 4099},  {3, 8190, 8192},
                          {3, 50277, 50288}, {2, 50257, 50257}, {2, 70001, 70016}};

template <class T>
struct Data {
  Tensor<T, 2> logits;
  Tensor<double, 2> wide;
  Tensor<std::int32_t, 1> labels;
  explicit Data(const Case& c)
      : logits(test::random_tensor<T>(Extents{c.rows, c.columns}, 1, 3.0)),
        wide(to_tensor<double>(logits.view())),
        labels(random_labels<std::int32_t>(c.rows, c.vocab_size, 2)) {}
};

template <class T>
constexpr double loss_tolerance = std::is_same_v<T, double> ? 1e-13 : 2e-6;
template <class T>
constexpr double gradient_tolerance = std::is_same_v<T, double>  ? 1e-12
                                      : std::is_same_v<T, float> ? 2e-6
                                                                 : 4e-3;

bool same_or_nan(double got, double want, double tolerance) {
  return std::isnan(want) ? std::isnan(got) : std::abs(got - want) <= tolerance * std::max(1.0, std::abs(want));
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("forward, backward and both at once follow the CPU", T, double, float, bfloat16) {
    using S = accumulate_t<T>;
    for (const Case& c : cases)
      for (const double smoothing : {0.0, 0.1})
        for (const auto reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
          CAPTURE(c.rows);
          CAPTURE(c.vocab_size);
          CAPTURE(smoothing);
          CAPTURE(static_cast<int>(reduction));
          const Data<T> data(c);
          const Options options{.vocab_size = c.vocab_size, .label_smoothing = smoothing, .reduction = reduction};
          const cross_entropy::Inputs<double> in{.logits = data.wide, .labels = data.labels};
          const auto [loss, saved] = cross_entropy::forward(in, options);
          const auto dloss = test::random_tensor<S>(loss.extents(), 3);
          const auto dwant = cross_entropy::backward(in, saved, to_tensor<double>(dloss.view()));

          const auto logits = to<cuda>(data.logits);
          const auto labels = to<cuda>(data.labels);
          const cross_entropy::Inputs<T, std::int32_t, cuda> gpu{.logits = logits, .labels = labels};
          const auto result = cross_entropy::forward(gpu, options);
          const auto got = to<cpu>(result.loss);
          for (Index i = 0; i < got.size(); ++i)
            CHECK(same_or_nan(static_cast<double>(got(i)), loss(i), loss_tolerance<T>));
          const auto dgot = to<cpu>(cross_entropy::backward(gpu, result.saved, to<cuda>(dloss)));
          CHECK(relative_error(dgot, dwant) < gradient_tolerance<T>);

          auto want_both = data.wide;
          cross_entropy::forward_backward(cross_entropy::Inputs<double>{.logits = want_both, .labels = data.labels},
                                          options, want_both.view(), 0.25);
          for (const bool in_place : {false, true}) {
            auto target = logits;
            if (!in_place) target.fill(T(NAN));
            const cross_entropy::Inputs<T, std::int32_t, cuda> from{.logits = in_place ? target : logits,
                                                                    .labels = labels};
            const auto both = to<cpu>(cross_entropy::forward_backward(from, options, target.view(), 0.25));
            CHECK(same_bits(both, got));
            CHECK(relative_error(to<cpu>(target), want_both) < gradient_tolerance<T>);
          }
        }
  }

  TEST_CASE_TEMPLATE("slices of a head take their factor from the device", T, double, float, bfloat16) {
    using S = accumulate_t<T>;
    const Data<T> data({300, 1000, 1024});
    const Options options{.vocab_size = 1000, .reduction = Reduction::sum};
    auto want = data.wide;
    const auto mean = cross_entropy::forward_backward(
        cross_entropy::Inputs<double>{.logits = want, .labels = data.labels}, {.vocab_size = 1000}, want.view(), 0.5);
    auto logits = to<cuda>(data.logits);
    const auto labels = to<cuda>(data.labels);
    Tensor<S, 1, cuda> factors({2}), loss({1}, S(NAN)), loss_only({1}, S(NAN));
    cross_entropy::kept_scale(labels.view(), options, 0.5, factors.view());
    Workspace<cuda> workspace(cross_entropy::workspace_bytes<T>(300));
    for (Index begin = 0; begin < 300; begin += 128) {
      const Index end = std::min<Index>(begin + 128, 300);
      const cross_entropy::Inputs<T, std::int32_t, cuda> in{.logits = logits.template slice<0>(begin, end),
                                                            .labels = labels.template slice<0>(begin, end)};
      const auto mode = begin == 0 ? GradientMode::assign : GradientMode::add;
      cross_entropy::forward(in, options, loss_only.view(), mode, workspace);
      cross_entropy::forward_backward(in, options, logits.template slice<0>(begin, end), factors.view(), loss.view(),
                                      mode, workspace);
    }
    const auto scale = to<cpu>(factors);
    CHECK(relative_error(to<cpu>(logits), want) < gradient_tolerance<T>);
    CHECK(
        same_or_nan(static_cast<double>(to<cpu>(loss)(0)) * static_cast<double>(scale(1)), mean(0), loss_tolerance<T>));
    CHECK(same_bits(to<cpu>(loss), to<cpu>(loss_only)));
    CHECK(static_cast<double>(scale(0)) == doctest::Approx(0.5 * static_cast<double>(scale(1))));
  }

  TEST_CASE("wide labels, strided; labels out of range and ignored ones; huge and infinite logits") {
    const auto logits = test::random_tensor<float>(Extents{20, 100}, 1);
    Tensor<std::int64_t, 2> labels({20, 3});
    for (Index i = 0; i < 20; ++i) labels(i, 1) = i * 5;
    const auto column = labels.select<1>(1);
    const auto want = cross_entropy::forward(
        cross_entropy::Inputs<float, std::int64_t>{.logits = logits.slice<1>(3, 99), .labels = column});
    const auto gpu_logits = to<cuda>(logits);
    auto gpu_labels = to<cuda>(labels);
    const cross_entropy::Inputs<float, std::int64_t, cuda> in{.logits = gpu_logits.slice<1>(3, 99),
                                                              .labels = gpu_labels.select<1>(1)};
    CHECK(relative_error(to<cpu>(cross_entropy::forward(in).loss), want.loss) < 1e-6);

    labels(3, 1) = 96;
    labels(4, 1) = -1;
    labels(5, 1) = -100;
    gpu_labels = to<cuda>(labels);
    const cross_entropy::Inputs<float, std::int64_t, cuda> bad{.logits = gpu_logits.slice<1>(3, 99),
                                                               .labels = gpu_labels.select<1>(1)};
    Tensor<float, 2, cuda> dlogits({20, 96}, 7.0f);
    const auto losses = to<cpu>(cross_entropy::forward_backward(bad, {.reduction = Reduction::none}, dlogits.view()));
    const auto gradient = to<cpu>(dlogits);
    for (Index i = 0; i < 20; ++i) {
      CHECK(std::isnan(losses(i)) == (i == 3 || i == 4));
      CHECK((gradient(i, 0) == 0.0f) == (3 <= i && i <= 5));
    }
    CHECK(losses(5) == 0.0f);
    CHECK(std::isnan(to<cpu>(cross_entropy::forward(bad).loss)(0)));

    Tensor<float, 2> hard({3, 2048}, -3e38f);
    hard(0, 7) = 3e38f;
    hard(1, 8) = -INFINITY;
    hard(2, 9) = NAN;
    Tensor<std::int32_t, 1> which({3});
    which(0) = which(1) = 7;
    const auto hard_losses =
        to<cpu>(cross_entropy::forward(cross_entropy::Inputs<float, std::int32_t, cuda>{.logits = to<cuda>(hard),
                                                                                        .labels = to<cuda>(which)},
                                       {.reduction = Reduction::none})
                    .loss);
    CHECK(hard_losses(0) == 0.0f);
    CHECK(hard_losses(1) == doctest::Approx(std::log(2047.0)));
    CHECK(std::isnan(hard_losses(2)));
  }
}
