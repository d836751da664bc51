// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// fold_difference on a GPU against the CPU in double.
#include <doctest/doctest.h>

#include "diffmamba/ops/fold_difference/fold_difference_backward.hpp"
#include "diffmamba/ops/fold_difference/fold_difference_forward.hpp"
#include "support/on_both.hpp"

using namespace diffmamba;
using diffmamba::test::norm_error;
using diffmamba::test::OnBoth;
using diffmamba::test::output_tolerance;
using diffmamba::test::same_bits;
using diffmamba::test::sum_tolerance;
namespace fold = diffmamba::fold_difference;

namespace {

template <class T, Device D>
struct Gradients {
  Tensor<T, 3, D> dweight;
  Tensor<T, 2, D> dbias;
  Tensor<T, 1, D> dlambda;
};

template <class T, Device D, class A = accumulate_t<T>>
Gradients<A, D> backward(const fold::Inputs<T, D>& in, const fold::Options& options, const Tensor<A, 2, D>& dfolded,
                         const Tensor<A, 1, D>& dfolded_bias, GradientMode mode) {
  Gradients<A, D> d{Tensor<A, 3, D>(in.weight.extents(), A(0.25)), {}, Tensor<A, 1, D>(in.lambda.extents(), A(0.25))};
  if (in.bias) d.dbias = Tensor<A, 2, D>(in.bias.extents(), A(0.25));
  Workspace<D> workspace(fold::workspace_bytes(in));
  fold::OutputGradients<T, D> upstream{.dweight = dfolded};
  if (in.bias) upstream.dbias = dfolded_bias;
  fold::backward(in, options, upstream, {.dweight = d.dweight, .dbias = d.dbias, .dlambda = d.dlambda}, workspace,
                 mode);
  return d;
}

template <class T>
void check(Index rows, const fold::Options& options, Index width, bool per_row, bool with_bias) {
  using A = accumulate_t<T>;
  INFO("rows ", rows, ", width ", width, ", lambda per row ", per_row, ", bias ", with_bias, ", bytes ", sizeof(T));
  const OnBoth<T, 3> weight({Index{2}, rows, width}, 1);
  const OnBoth<A, 1> lambda(Extents{per_row ? rows : 1}, 2, 0.2, 0.7), dfolded_bias(Extents{rows}, 5);
  const OnBoth<A, 2> bias({Index{2}, rows}, 3), dfolded({rows, 2 * width}, 4);
  fold::Inputs<double> host{.weight = weight.exact, .lambda = lambda.exact};
  fold::Inputs<T, cuda> in{.weight = weight.device, .lambda = lambda.device};
  Tensor<double, 2> want(dfolded.exact.extents());
  Tensor<T, 2, cuda> got(want.extents());
  fold::OutputViews<double> to{.weight = want};
  fold::OutputViews<T, cuda> device_to{.weight = got};
  Tensor<double, 1> want_bias(Extents{rows});
  Tensor<A, 1, cuda> got_bias(Extents{rows});
  if (with_bias) {
    host.bias = bias.exact, to.bias = want_bias;
    in.bias = bias.device, device_to.bias = got_bias;
  }
  fold::forward(host, options, to);
  fold::forward(in, options, device_to);
  CHECK(norm_error(got, want) < output_tolerance<T>(want.size()));
  CHECK(norm_error(got_bias, want_bias) < sum_tolerance<T>);
  for (GradientMode mode : {GradientMode::assign, GradientMode::add}) {
    const auto dwant = backward(host, options, dfolded.exact, dfolded_bias.exact, mode);
    const auto d = backward(in, options, dfolded.device, dfolded_bias.device, mode);
    CHECK(norm_error(d.dweight, dwant.dweight) < sum_tolerance<T>);
    if (with_bias) CHECK(norm_error(d.dbias, dwant.dbias) < sum_tolerance<T>);
    // A sum of many numbers of both signs has fewer digits.
    CHECK(norm_error(d.dlambda, dwant.dlambda) < 20 * sum_tolerance<T>);
    const auto again = backward(in, options, dfolded.device, dfolded_bias.device, mode);
    CHECK(same_bits(d.dweight, again.dweight));
    CHECK(same_bits(d.dlambda, again.dlambda));
  }
}

template <class T>
void check_all() {
  for (bool per_row : {false, true})
    for (bool with_bias : {false, true}) {
      check<T>(5, {.scale = 0.7}, 9, per_row, with_bias);
      check<T>(130, {.scale = 0.7, .roles = {64, 128}}, 192, per_row, with_bias);
      check<T>(33, {.scale = 1.0, .roles = {3, 0, 6}}, 9, per_row, with_bias);
      check<T>(300, {}, 1024, per_row, with_bias);
    }
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("fold_difference equals the CPU's") {
    check_all<float>();
    check_all<double>();
    check_all<bfloat16>();
  }
}
