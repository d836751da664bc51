// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/fold_difference/fold_difference.hpp"

#include <cstring>
#include <utility>

#include "diffmamba/ops/fold_difference/fold_difference_backward.hpp"
#include "diffmamba/ops/fold_difference/fold_difference_forward.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;
namespace fold = diffmamba::fold_difference;

namespace {

template <class T>
struct Problem {
  using A = accumulate_t<T>;
  Tensor<T, 3> weight;
  Tensor<A, 1> lambda;
  Tensor<A, 2> bias, dfolded;
  Tensor<A, 1> dfolded_bias;
  fold::Options options;

  Problem(Index rows, Index width, bool per_row, const fold::Options& how)
      : weight(random_tensor<T, 3>({Index{2}, rows, width}, 1)),
        lambda(random_tensor<A, 1>(Extents{per_row ? rows : 1}, 2, 0.2, 0.7)),
        bias(random_tensor<A, 2>({Index{2}, rows}, 3)),
        dfolded(random_tensor<A, 2>({rows, 2 * width}, 4)),
        dfolded_bias(random_tensor<A, 1>(Extents{rows}, 5)),
        options(how) {}

  fold::Inputs<T> inputs() const { return {.weight = weight, .lambda = lambda, .bias = bias}; }
  auto forward() const {
    std::pair result(Tensor<T, 2>(dfolded.extents()), Tensor<A, 1>(dfolded_bias.extents()));
    fold::forward(inputs(), options, {.weight = result.first, .bias = result.second});
    return result;
  }
};

template <class T>
struct Result {
  Tensor<T, 3> dweight;
  Tensor<T, 2> dbias;
  Tensor<T, 1> dlambda;
};
template <class T, class A = accumulate_t<T>>
Result<A> backward(const Problem<T>& p, GradientMode mode, A start) {
  Result<A> d{Tensor<A, 3>(p.weight.extents(), start), Tensor<A, 2>(p.bias.extents(), start),
              Tensor<A, 1>(p.lambda.extents(), start)};
  Workspace<cpu> workspace(fold::workspace_bytes(p.inputs()));
  fold::backward(p.inputs(), p.options, {.dweight = p.dfolded, .dbias = p.dfolded_bias},
                 {.dweight = d.dweight, .dbias = d.dbias, .dlambda = d.dlambda}, workspace, mode);
  return d;
}

}  // namespace

TEST_CASE("fold_difference: roles alternate between the paths, the second with -lambda") {
  const auto p = Problem<double>(3, 7, true, {.scale = 0.5, .roles = {2, 5}});
  const auto [folded, folded_bias] = p.forward();
  for (Index row = 0; row < 3; ++row) {
    for (Index i = 0; i < 7; ++i) {
      const Index first = i < 2 ? i : 4 + (i - 2), second = i < 2 ? 2 + i : 9 + (i - 2);
      CHECK(folded(row, first) == 0.5 * p.weight(0, row, i));
      CHECK(folded(row, second) == -0.5 * p.lambda(row) * p.weight(1, row, i));
    }
    CHECK(folded_bias(row) == 0.5 * p.bias(0, row) - 0.5 * p.lambda(row) * p.bias(1, row));
  }
}

TEST_CASE("fold_difference: gradients of every input") {
  for (bool per_row : {false, true})
    for (const auto& options : {fold::Options{.scale = 0.7}, fold::Options{.scale = 0.7, .roles = {3, 0, 6}}}) {
      Problem<double> p(5, 9, per_row, options);
      const auto d = backward(p, GradientMode::assign, 3.0);
      const auto loss = [&] {
        const auto [folded, folded_bias] = p.forward();
        return dot(folded, p.dfolded) + dot(folded_bias, p.dfolded_bias);
      };
      check_gradient("weight", p.weight, d.dweight, loss, 1e-9);
      check_gradient("bias", p.bias, d.dbias, loss, 1e-9);
      check_gradient("lambda", p.lambda, d.dlambda, loss, 1e-9);
      const auto sum = backward(p, GradientMode::add, 3.0);
      CHECK(sum.dweight(1, 4, 8) == doctest::Approx(3 + d.dweight(1, 4, 8)));
      CHECK(sum.dbias(1, 4) == doctest::Approx(3 + d.dbias(1, 4)));
      CHECK(sum.dlambda(0) == doctest::Approx(3 + d.dlambda(0)));
    }
}

TEST_CASE("fold_difference: float and bfloat16 against double, the same bits on one and two threads") {
  const fold::Options options{.scale = 0.5, .roles = {33, 100}};
  const Problem<double> exact(70, 133, false, options);
  const auto want = exact.forward();
  const auto dwant = backward(exact, GradientMode::assign, 0.0);
  const auto compare = [&]<class T>(T, double tolerance) {
    const Problem<T> p(70, 133, false, options);
    const auto run = [&](int threads) {
      const Threads scope(threads);
      return backward(p, GradientMode::assign, accumulate_t<T>(0));
    };
    CHECK(relative_error(p.forward().first, want.first) < tolerance);
    CHECK(relative_error(p.forward().second, want.second) < 1e-6);
    const auto one = run(1), two = run(2);
    CHECK(relative_error(one.dweight, dwant.dweight) < tolerance);
    CHECK(relative_error(one.dlambda, dwant.dlambda) < tolerance);
    CHECK(relative_error(one.dweight, two.dweight) == 0);
    CHECK(relative_error(one.dlambda, two.dlambda) == 0);
  };
  compare(float{}, 1e-5);
  compare(bfloat16{}, 1e-2);
}

TEST_CASE("fold_difference: mistakes are named") {
  const Problem<float> p(4, 6, false, {.roles = {2, 3}});
  CHECK_THROWS_WITH_AS(p.forward(), "fold_difference: the roles have 5 columns, the weights 6", Error);
  const Problem<float> good(4, 6, false, {});
  auto in = good.inputs();
  const Tensor<float, 1> three(Extents{3});
  in.lambda = three;
  Tensor<float, 2> folded({4, 12});
  CHECK_THROWS_WITH_AS(fold::forward(in, {}, {.weight = folded}), "fold_difference: lambda is (3), expected (1) or (4)",
                       Error);
  CHECK_THROWS_WITH_AS(fold::forward(good.inputs(), {}, {.weight = folded}),
                       "fold_difference: bias and folded bias must be given together", Error);
  CHECK_THROWS_WITH_AS(fold::options_of(1.0, std::array<Index, 5>{1, 1, 1, 1, 1}), "fold_difference: more than 4 roles",
                       Error);
}
