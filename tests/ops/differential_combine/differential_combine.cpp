// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/differential_combine/differential_combine.hpp"

#include <cmath>
#include <cstring>

#include "diffmamba/ops/differential_combine/differential_combine_backward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"
#include "diffmamba/ops/differential_combine/lambda.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;
namespace combine = diffmamba::differential_combine;

namespace {

constexpr Norm norms[] = {Norm::after, Norm::before, Norm::before_and_after, Norm::none};

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return a.extents() == b.extents() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

template <class T>
struct Problem {
  using A = accumulate_t<T>;
  Tensor<T, 3> y1, y2, dout;
  Tensor<A, 1> lambda, lambdas, norm_weight, subln_weight;

  Problem(Index batch, Index length, Index channels)
      : y1(random_tensor<T, 3>({batch, length, channels}, 1)),
        y2(random_tensor<T, 3>({batch, length, channels}, 2)),
        dout(random_tensor<T, 3>({batch, length, channels}, 3)),
        lambda(random_tensor<A, 1>(Extents{1}, 4, 0.2, 0.7)),
        lambdas(random_tensor<A, 1>(Extents{channels}, 5, 0.2, 0.7)),
        norm_weight(random_tensor<A, 1>(Extents{channels}, 6, 0.5, 1.0)),
        subln_weight(random_tensor<A, 1>(Extents{channels}, 7, 0.5, 1.0)) {}

  /// `which`: 0 no lambda, 1 one, 2 one for each channel.
  combine::Inputs<T> inputs(Norm norm, int which) const {
    combine::Inputs<T> in{.y1 = y1, .y2 = y2};
    if (which == 1) in.lambda = lambda;
    if (which == 2) in.lambda = lambdas;
    if (norm == Norm::before || norm == Norm::before_and_after) in.norm_weight = norm_weight;
    if (norm == Norm::after || norm == Norm::before_and_after) in.subln_weight = subln_weight;
    return in;
  }
};

/// The formula, one row at a time.
Tensor<double, 3> plain(const combine::Inputs<double>& in, const combine::Options& options) {
  Tensor<double, 3> out(in.y1.extents());
  const Index channels = out.extent(2);
  const auto rms = [&](const auto& value) {
    double sum = 0;
    for (Index c = 0; c < channels; ++c) sum += value(c) * value(c) / static_cast<double>(channels);
    return std::sqrt(sum + options.eps);
  };
  for (Index b = 0; b < out.extent(0); ++b)
    for (Index t = 0; t < out.extent(1); ++t) {
      const auto y1 = [&](Index c) { return in.y1(b, t, c); };
      const auto y2 = [&](Index c) { return in.y2(b, t, c); };
      const double r1 = in.norm_weight ? rms(y1) : 1.0, r2 = in.norm_weight ? rms(y2) : 1.0;
      const auto u = [&](Index c) {
        const double lambda = !in.lambda ? 1.0 : in.lambda(in.lambda.extent(0) == 1 ? 0 : c);
        const double w = in.norm_weight ? in.norm_weight(c) : 1.0;
        return w * y1(c) / r1 - lambda * w * y2(c) / r2;
      };
      const double r = in.subln_weight ? rms(u) : 1.0;
      for (Index c = 0; c < channels; ++c)
        out(b, t, c) = options.scale * u(c) / r * (in.subln_weight ? in.subln_weight(c) : 1.0);
    }
  return out;
}

}  // namespace

TEST_CASE("differential_combine: every norm with every kind of lambda, against the formula") {
  for (Norm norm : norms)
    for (int which : {0, 1, 2})
      for (Index channels : {2, 16, 37})
        for (Index length : {0, 1, 5}) {
          CAPTURE(static_cast<int>(norm));
          CAPTURE(which);
          CAPTURE(channels);
          const Problem<double> p(2, length, channels);
          const combine::Options options{.norm = norm, .scale = 0.53, .eps = 1e-3};
          const auto in = p.inputs(norm, which);
          CHECK(relative_error(combine::forward(in, options).out, plain(in, options)) < 1e-13);
        }
}

TEST_CASE("differential_combine: gradients of every input") {
  for (Norm norm : norms)
    for (int which : {0, 1, 2})
      for (Index channels : {3, 21}) {
        CAPTURE(static_cast<int>(norm));
        CAPTURE(which);
        Problem<double> p(1, 3, channels);
        const combine::Options options{.norm = norm, .scale = 0.53, .eps = 1e-2};
        const auto in = p.inputs(norm, which);
        const auto forward = combine::forward(in, options);
        const auto d = combine::backward(in, forward.saved, {.dout = p.dout});
        const auto loss = [&] { return dot(combine::forward(p.inputs(norm, which), options).out, p.dout); };
        check_gradient("y1", p.y1, d.dy1, loss, 1e-7);
        check_gradient("y2", p.y2, d.dy2, loss, 1e-7);
        if (which == 0) CHECK(!d.dlambda);
        if (which == 1) check_gradient("lambda", p.lambda, d.dlambda, loss, 1e-7);
        if (which == 2) check_gradient("lambdas", p.lambdas, d.dlambda, loss, 1e-7);
        if (in.norm_weight) check_gradient("norm_weight", p.norm_weight, d.dnorm_weight, loss, 1e-7);
        if (in.subln_weight) check_gradient("subln_weight", p.subln_weight, d.dsubln_weight, loss, 1e-7);
      }
}

TEST_CASE("differential_combine: lambda of every form and its gradients") {
  CHECK(lambda_init(0) == doctest::Approx(0.2));
  CHECK(lambda_init(2) == doctest::Approx(0.8 - 0.6 * std::exp(-0.6)));
  CHECK_THROWS_WITH_AS(lambda_init(-1), "lambda_init: depth is -1, expected 0 or more", Error);
  CHECK(combine::output_scale(Lambda::sigmoid_sum, 0.2) == doctest::Approx(0.8));
  CHECK(combine::output_scale(Lambda::none, 0.2) == 1.0);

  const double init = lambda_init(1);
  for (Lambda form : {Lambda::sigmoid_sum, Lambda::sigmoid_scalar, Lambda::sigmoid_per_channel, Lambda::exponential}) {
    CAPTURE(static_cast<int>(form));
    const Index size = form == Lambda::sigmoid_scalar ? 1 : 6, count = combine::lambda_count(form, 6);
    auto q1 = random_tensor<double, 1>(Extents{size}, 1, 0.5), k1 = random_tensor<double, 1>(Extents{size}, 2, 0.5);
    auto q2 = random_tensor<double, 1>(Extents{size}, 3, 0.5), k2 = random_tensor<double, 1>(Extents{size}, 4, 0.5);
    combine::LambdaInputs<double> in{.lambda_q1 = q1};
    if (form == Lambda::exponential) {
      in.lambda_k1 = k1;
      in.lambda_q2 = q2;
      in.lambda_k2 = k2;
    }
    Tensor<double, 1> lambda(Extents{count});
    const auto dlambda = random_tensor<double, 1>(Extents{count}, 5);
    const auto loss = [&] {
      combine::lambda_forward(form, init, in, lambda);
      return dot(lambda, dlambda);
    };
    loss();
    double expected = 0;
    for (Index i = 0; i < size; ++i) expected += q1(i);
    if (form == Lambda::exponential) {
      CHECK(lambda(0) == doctest::Approx(std::exp(dot(q1, k1)) - std::exp(dot(q2, k2)) + init).epsilon(1e-14));
    } else if (form == Lambda::sigmoid_per_channel) {
      for (Index i = 0; i < size; ++i) CHECK(lambda(i) == doctest::Approx(1 / (1 + std::exp(-q1(i))) + init));
    } else {
      CHECK(lambda(0) == doctest::Approx(1 / (1 + std::exp(-expected)) + init).epsilon(1e-14));
    }
    Tensor<double, 1> dq1(Extents{size}), dk1(Extents{size}), dq2(Extents{size}), dk2(Extents{size});
    combine::LambdaGradientViews<double> gradients{.dlambda_q1 = dq1};
    if (form == Lambda::exponential)
      gradients = {.dlambda_q1 = dq1, .dlambda_k1 = dk1, .dlambda_q2 = dq2, .dlambda_k2 = dk2};
    combine::lambda_backward(form, in, dlambda, gradients);
    check_gradient("lambda_q1", q1, dq1, loss, 1e-8);
    if (form == Lambda::exponential) {
      check_gradient("lambda_k1", k1, dk1, loss, 1e-8);
      check_gradient("lambda_q2", q2, dq2, loss, 1e-8);
      check_gradient("lambda_k2", k2, dk2, loss, 1e-8);
    }
    const auto once = dq1;
    combine::lambda_backward(form, in, dlambda, gradients, GradientMode::add);
    for (Index i = 0; i < size; ++i) CHECK(dq1(i) == doctest::Approx(2 * once(i)));
  }

  Tensor<double, 1> one(Extents{1});
  combine::lambda_forward<double>(Lambda::none, init, {}, one);
  CHECK(one(0) == 1);
}

TEST_CASE("differential_combine: float and bfloat16 against double, the same bits on one and two threads") {
  const combine::Options options{.norm = Norm::before_and_after, .scale = 0.5};
  const Problem<double> exact(3, 200, 45);
  const auto want = combine::forward(exact.inputs(options.norm, 1), options);
  const auto dwant = combine::backward(exact.inputs(options.norm, 1), want.saved, {.dout = exact.dout});
  const auto compare = [&]<class T>(T, double tolerance) {
    const Problem<T> p(3, 200, 45);
    const auto in = p.inputs(options.norm, 1);
    const auto run = [&](int threads) {
      const Threads scope(threads);
      auto forward = combine::forward(in, options);
      auto d = combine::backward(in, forward.saved, {.dout = p.dout});
      return std::pair{std::move(forward), std::move(d)};
    };
    const auto one = run(1), two = run(2);
    CHECK(relative_error(one.first.out, want.out) < tolerance);
    CHECK(relative_error(one.second.dy1, dwant.dy1) < tolerance);
    CHECK(relative_error(one.second.dy2, dwant.dy2) < tolerance);
    CHECK(relative_error(one.second.dlambda, dwant.dlambda) < tolerance);
    CHECK(relative_error(one.second.dnorm_weight, dwant.dnorm_weight) < tolerance);
    CHECK(relative_error(one.second.dsubln_weight, dwant.dsubln_weight) < tolerance);
    CHECK(same_bits(one.first.out, two.first.out));
    CHECK(same_bits(one.second.dy2, two.second.dy2));
    CHECK(same_bits(one.second.dlambda, two.second.dlambda));
    CHECK(same_bits(one.second.dnorm_weight, two.second.dnorm_weight));
    CHECK(same_bits(one.second.dsubln_weight, two.second.dsubln_weight));
  };
  compare(float{}, 1e-4);
  compare(bfloat16{}, 5e-2);
}

TEST_CASE("differential_combine: two halves of one tensor, into the caller's memory, adding") {
  const Index channels = 37;
  const combine::Options options{.norm = Norm::before, .scale = 0.5};
  const Problem<float> p(2, 20, channels);
  const auto in = p.inputs(options.norm, 1);
  const auto want = combine::forward(in, options);
  const auto dwant = combine::backward(in, want.saved, {.dout = p.dout});

  Tensor<float, 3> both({2, 20, 2 * channels}), dboth(both.extents()), out(p.y1.extents());
  for (Index b = 0; b < 2; ++b)
    for (Index t = 0; t < 20; ++t)
      for (Index c = 0; c < channels; ++c) {
        both(b, t, c) = p.y1(b, t, c);
        both(b, t, channels + c) = p.y2(b, t, c);
      }
  auto halves = in;
  halves.y1 = both.slice<2>(0, channels);
  halves.y2 = both.slice<2>(channels, 2 * channels);
  combine::Saved<float> saved = want.saved;
  Tensor<float, 1> dlambda(Extents{1}, 1.0f), dnorm_weight(Extents{channels}, 1.0f);
  Workspace<cpu> workspace(combine::workspace_bytes(halves));
  arena<cpu>().reset_peak();
  const auto before = arena<cpu>().peak_bytes();
  combine::forward(halves, options, {.out = out}, &saved);
  combine::backward(halves, saved, {.dout = p.dout},
                    {.dy1 = dboth.slice<2>(0, channels),
                     .dy2 = dboth.slice<2>(channels, 2 * channels),
                     .dlambda = dlambda,
                     .dnorm_weight = dnorm_weight},
                    workspace, GradientMode::add);
  CHECK(arena<cpu>().peak_bytes() == before);
  CHECK(same_bits(out, want.out));
  for (Index c = 0; c < channels; ++c) {
    CHECK(dboth(1, 19, c) == dwant.dy1(1, 19, c));
    CHECK(dboth(1, 19, channels + c) == dwant.dy2(1, 19, c));
    CHECK(dnorm_weight(c) == doctest::Approx(1 + dwant.dnorm_weight(c)).epsilon(1e-4));
  }
  CHECK(dlambda(0) == doctest::Approx(1 + dwant.dlambda(0)).epsilon(1e-4));
}

TEST_CASE("differential_combine: mistakes are named") {
  const Problem<float> p(2, 3, 8);
  auto in = p.inputs(Norm::after, 1);
  CHECK_THROWS_WITH_AS(combine::forward(in, {.norm = Norm::before}),
                       "differential_combine: norm_weight must be given exactly with a norm before", Error);
  const Tensor<float, 1> three(Extents{3});
  in.lambda = three;
  CHECK_THROWS_WITH_AS(combine::forward(in, {}), "differential_combine: lambda is (3), expected (1) or (8)", Error);
  in = p.inputs(Norm::after, 1);
  const Tensor<float, 3> other({2, 3, 7});
  in.y2 = other;
  CHECK_THROWS_WITH_AS(combine::forward(in, {}), "differential_combine: y2 has the shape (2, 3, 7), expected (2, 3, 8)",
                       Error);
  Tensor<float, 1> lambda(Extents{1});
  CHECK_THROWS_WITH_AS(combine::lambda_forward<float>(Lambda::exponential, 0.2, {.lambda_q1 = three}, lambda),
                       "differential_combine: lambda_k1 is missing in this form of lambda", Error);
  CHECK_THROWS_WITH_AS(combine::lambda_forward<float>(Lambda::sigmoid_scalar, 0.2, {.lambda_q1 = three}, lambda),
                       "differential_combine: lambda_q1 has the shape (3), expected (1)", Error);
  CHECK_THROWS_WITH_AS(combine::lambda_forward<float>(Lambda::none, 0.2, {.lambda_q1 = three}, lambda),
                       "differential_combine: lambda_q1 is given, but does not belong to this form of lambda", Error);
}
