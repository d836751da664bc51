// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// differential_combine and its lambda on a GPU against the CPU in double.
#include <doctest/doctest.h>

#include "diffmamba/ops/differential_combine/differential_combine_backward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"
#include "support/on_both.hpp"

using namespace diffmamba;
using diffmamba::test::norm_error;
using diffmamba::test::OnBoth;
using diffmamba::test::output_tolerance;
using diffmamba::test::same_bits;
using diffmamba::test::sum_tolerance;
namespace combine = diffmamba::differential_combine;

namespace {

/// `which`: 0 no lambda, 1 one, 2 one for each channel. Rows of both paths are halves of one tensor, from `begin` on.
template <class T>
void check(Index length, Index channels, Norm norm, int which, Index begin = 0) {
  using A = accumulate_t<T>;
  INFO("length ", length, ", channels ", channels, ", norm ", static_cast<int>(norm), ", lambda ", which, ", bytes ",
       sizeof(T));
  const OnBoth<T, 3> both({2, length, begin + 2 * channels}, 1), dout({2, length, channels}, 3);
  const OnBoth<A, 1> lambda(Extents{which == 2 ? channels : 1}, 4, 0.2, 0.7);
  const OnBoth<A, 1> norm_weight(Extents{channels}, 6, 0.5, 1.0), subln_weight(Extents{channels}, 7, 0.5, 1.0);
  combine::Inputs<double> host{.y1 = both.exact_slice(begin, begin + channels),
                               .y2 = both.exact_slice(begin + channels, begin + 2 * channels)};
  combine::Inputs<T, cuda> in{.y1 = both.device_slice(begin, begin + channels),
                              .y2 = both.device_slice(begin + channels, begin + 2 * channels)};
  if (which > 0) {
    host.lambda = lambda.exact;
    in.lambda = lambda.device;
  }
  if (norm == Norm::before || norm == Norm::before_and_after) {
    host.norm_weight = norm_weight.exact;
    in.norm_weight = norm_weight.device;
  }
  if (norm == Norm::after || norm == Norm::before_and_after) {
    host.subln_weight = subln_weight.exact;
    in.subln_weight = subln_weight.device;
  }
  const combine::Options options{.norm = norm, .scale = 0.53, .eps = 1e-4};
  const auto want = combine::forward(host, options);
  const auto got = combine::forward(in, options);
  CHECK(norm_error(got.out, want.out) < output_tolerance<T>(want.out.size()));
  const auto dwant = combine::backward(host, want.saved, {.dout = dout.exact});
  const auto d = combine::backward(in, got.saved, {.dout = dout.device});
  CHECK(norm_error(d.dy1, dwant.dy1) < output_tolerance<T>(dwant.dy1.size()));
  CHECK(norm_error(d.dy2, dwant.dy2) < output_tolerance<T>(dwant.dy2.size()));
  // One number, the sum of many of both signs, has fewer digits.
  if (in.lambda) CHECK(norm_error(d.dlambda, dwant.dlambda) < (which == 1 ? 100 : 4) * sum_tolerance<T>);
  if (in.norm_weight) CHECK(norm_error(d.dnorm_weight, dwant.dnorm_weight) < 4 * sum_tolerance<T>);
  if (in.subln_weight) CHECK(norm_error(d.dsubln_weight, dwant.dsubln_weight) < 4 * sum_tolerance<T>);
  const auto again = combine::backward(in, got.saved, {.dout = dout.device});
  CHECK(same_bits(d.dy2, again.dy2));
  CHECK(same_bits(d.dlambda, again.dlambda));
  CHECK(same_bits(d.dnorm_weight, again.dnorm_weight));
}

template <class T>
void check_all() {
  for (Norm norm : {Norm::after, Norm::before, Norm::before_and_after, Norm::none})
    for (int which : {0, 1, 2}) {
      for (Index channels : {2, 37, 1024, 4096, 9000}) check<T>(11, channels, norm, which);
      for (Index length : {0, 1, 1100}) check<T>(length, 64, norm, which);
      check<T>(5, 64, norm, which, 3);
      check<T>(301, 1024, norm, which);  // several rows in a row for every group of threads
    }
}

/// lambda of every form, and its gradients, assigned and added.
template <class T>
void check_lambda() {
  const double init = lambda_init(2);
  for (Lambda form :
       {Lambda::sigmoid_sum, Lambda::sigmoid_scalar, Lambda::sigmoid_per_channel, Lambda::exponential, Lambda::none}) {
    INFO("form ", static_cast<int>(form), ", bytes ", sizeof(T));
    const Index size = form == Lambda::sigmoid_scalar ? 1 : 700, count = combine::lambda_count(form, size);
    const double scale = form == Lambda::exponential ? 0.2 : 0.05;
    const OnBoth<T, 1> q1(Extents{size}, 1, scale), k1(Extents{size}, 2, scale), q2(Extents{size}, 3, scale),
        k2(Extents{size}, 4, scale), dlambda(Extents{count}, 5);
    combine::LambdaInputs<double> host;
    combine::LambdaInputs<T, cuda> in;
    if (form != Lambda::none) {
      host.lambda_q1 = q1.exact;
      in.lambda_q1 = q1.device;
    }
    if (form == Lambda::exponential) {
      host.lambda_k1 = k1.exact, host.lambda_q2 = q2.exact, host.lambda_k2 = k2.exact;
      in.lambda_k1 = k1.device, in.lambda_q2 = q2.device, in.lambda_k2 = k2.device;
    }
    Tensor<double, 1> want(Extents{count});
    Tensor<T, 1, cuda> got(Extents{count});
    combine::lambda_forward(form, init, host, want);
    combine::lambda_forward(form, init, in, got);
    CHECK(norm_error(got, want) < sum_tolerance<T>);
    if (form == Lambda::none) continue;
    Tensor<double, 1> dwant[4];
    Tensor<T, 1, cuda> d[4];
    for (int k = 0; k < (form == Lambda::exponential ? 4 : 1); ++k) {
      dwant[k] = Tensor<double, 1>(Extents{size}, 0.5);
      d[k] = Tensor<T, 1, cuda>(Extents{size}, T(0.5));
    }
    for (GradientMode mode : {GradientMode::assign, GradientMode::add}) {
      combine::lambda_backward(
          form, host, dlambda.exact,
          {.dlambda_q1 = dwant[0], .dlambda_k1 = dwant[1], .dlambda_q2 = dwant[2], .dlambda_k2 = dwant[3]}, mode);
      combine::lambda_backward(form, in, dlambda.device,
                               {.dlambda_q1 = d[0], .dlambda_k1 = d[1], .dlambda_q2 = d[2], .dlambda_k2 = d[3]}, mode);
      for (int k = 0; k < (form == Lambda::exponential ? 4 : 1); ++k)
        CHECK(norm_error(d[k], dwant[k]) < sum_tolerance<T>);
    }
  }
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("differential_combine equals the CPU's, with every norm and lambda") {
    check_all<float>();
    check_all<double>();
    check_all<bfloat16>();
  }
  TEST_CASE("lambda equals the CPU's in every form") {
    check_lambda<float>();
    check_lambda<double>();
  }
}
