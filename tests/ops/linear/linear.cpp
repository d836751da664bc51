// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/linear/linear.hpp"

#include <cstring>

#include "diffmamba/ops/linear/linear_backward.hpp"
#include "diffmamba/ops/linear/linear_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;

namespace {

template <class T>
struct Problem {
  Tensor<T, 2> x, weight, dy;
  Tensor<accumulate_t<T>, 1> bias;
  Problem(Index rows, Index in, Index out)
      : x(random_tensor<T, 2>({rows, in}, 1)),
        weight(random_tensor<T, 2>({out, in}, 2)),
        dy(random_tensor<T, 2>({rows, out}, 3)),
        bias(random_tensor<accumulate_t<T>, 1>(Extents<1>(out), 4)) {}
  linear::Inputs<T> inputs() const { return {.x = x, .weight = weight, .bias = bias}; }
};

Tensor<double, 2> plain(const Problem<double>& p) {
  Tensor<double, 2> y(p.dy.extents());
  for (Index r = 0; r < y.extent(0); ++r)
    for (Index o = 0; o < y.extent(1); ++o) {
      y(r, o) = p.bias(o);
      for (Index i = 0; i < p.x.extent(1); ++i) y(r, o) += p.x(r, i) * p.weight(o, i);
    }
  return y;
}

}  // namespace

TEST_CASE("linear: the formula, few rows and many, in double and in float") {
  for (const Index rows : {0, 1, 2, 7, 16, 17, 50})
    for (const Index out : {1, 5, 33, 70})
      for (const Index in : {1, 19, 270}) {
        INFO(rows, " rows, ", in, " -> ", out);
        const Problem<double> p(rows, in, out);
        const Problem<float> f(rows, in, out);
        const auto want = plain(p);
        CHECK(relative_error(linear::forward(p.inputs()), want) < 1e-14);
        CHECK(relative_error(linear::forward(f.inputs()), want) < 2e-6);
      }
}

TEST_CASE("linear: every gradient against central differences") {
  for (const Index rows : {3, 20}) {
    Problem<double> p(rows, 11, 18);
    const auto d = linear::backward(p.inputs(), p.dy);
    const auto loss = [&] { return dot(linear::forward(p.inputs()), p.dy); };
    check_gradient("x", p.x, d.dx, loss);
    check_gradient("weight", p.weight, d.dweight, loss);
    check_gradient("bias", p.bias, d.dbias, loss);
  }
}

TEST_CASE("linear: gradients are assigned or added, absent ones left out, without a bias none") {
  const Problem<double> p(70, 30, 100);
  const auto once = linear::backward(p.inputs(), p.dy);
  Tensor<double, 2> dweight(p.weight.extents(), 5.0);
  Tensor<double, 1> dbias(p.bias.extents(), 5.0);
  linear::backward(p.inputs(), p.dy, {.dweight = dweight, .dbias = dbias});
  CHECK(relative_error(dweight, once.dweight) == 0);
  linear::backward(p.inputs(), p.dy, {.dweight = dweight, .dbias = dbias}, GradientMode::add);
  for (Index i = 0; i < dweight.size(); ++i)
    CHECK(dweight.data()[i] == doctest::Approx(2 * once.dweight.data()[i]).epsilon(1e-12));
  for (Index i = 0; i < dbias.size(); ++i)
    CHECK(dbias.data()[i] == doctest::Approx(2 * once.dbias.data()[i]).epsilon(1e-12));
  const auto without = linear::backward(linear::Inputs<double>{.x = p.x, .weight = p.weight}, p.dy);
  CHECK(!without.dbias);
}

TEST_CASE("linear: one product forward, two backward") {
  const Problem<float> p(40, 30, 50);
  auto before = matmul_count();
  linear::forward(p.inputs());
  CHECK(matmul_count().calls - before.calls == 1);
  CHECK(matmul_count().flops - before.flops == 2 * 40 * 30 * 50);
  before = matmul_count();
  linear::backward(p.inputs(), p.dy);
  CHECK(matmul_count().calls - before.calls == 2);
  CHECK(matmul_count().flops - before.flops == 4 * 40 * 30 * 50);
}

TEST_CASE("linear: slices of wider activations and of stacked weights") {
  const auto wide = random_tensor<double, 3>({2, 9, 40}, 1);
  const auto stacked = random_tensor<double, 2>({30, 12}, 2);
  const auto x = wide.slice<2>(20, 32).reshape(Extents{18, 12});
  const auto w = stacked.slice<0>(7, 20);
  const auto dense_x = to_tensor(x), dense_w = to_tensor(w);
  const auto want = linear::forward(linear::Inputs<double>{.x = dense_x, .weight = dense_w});
  Tensor<double, 2> out({18, 25}, 3.0);
  linear::forward(linear::Inputs<double>{.x = x, .weight = w}, out.slice<1>(4, 17));
  CHECK(relative_error(to_tensor(out.slice<1>(4, 17)), want) == 0);
  CHECK((out(0, 3) == 3.0 && out(17, 17) == 3.0));
  const auto got = linear::backward(linear::Inputs<double>{.x = x, .weight = w}, out.slice<1>(4, 17));
  const auto dense = linear::backward(linear::Inputs<double>{.x = dense_x, .weight = dense_w}, want);
  CHECK(relative_error(got.dx, dense.dx) == 0);
  CHECK(relative_error(got.dweight, dense.dweight) == 0);
}

TEST_CASE("linear: bfloat16 activations and weights, float bias, gradients and logits") {
  const Problem<bfloat16> p(35, 60, 40);
  Problem<double> d(35, 60, 40);
  const auto widen = [](const auto& from, auto& to) {
    for (Index i = 0; i < from.size(); ++i) to.data()[i] = static_cast<double>(from.data()[i]);
  };
  widen(p.x, d.x);
  widen(p.weight, d.weight);
  widen(p.dy, d.dy);
  widen(p.bias, d.bias);
  const auto want = plain(d);
  CHECK(relative_error(linear::forward(p.inputs()), want) < 4e-3);
  Tensor<float, 2> logits({35, 40});
  linear::forward(p.inputs(), logits.view());
  CHECK(relative_error(logits, want) < 1e-6);
  const auto got = linear::backward(p.inputs(), p.dy);
  const auto expected = linear::backward(d.inputs(), d.dy);
  CHECK(relative_error(got.dx, expected.dx) < 4e-3);
  CHECK(relative_error(got.dweight, expected.dweight) < 1e-6);
  CHECK(relative_error(got.dbias, expected.dbias) < 1e-6);
}

TEST_CASE_TEMPLATE("linear: the same bits on one and two threads", T, float, double) {
  for (const Index rows : {1, 300}) {
    const Problem<T> p(rows, 500, 400);
    const auto all = [&](int count) {
      Threads threads(count);
      return std::pair(linear::forward(p.inputs()), linear::backward(p.inputs(), p.dy));
    };
    const auto [y1, d1] = all(1);
    const auto [y2, d2] = all(2);
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
    };
    CHECK(same(y1, y2));
    CHECK(same(d1.dx, d2.dx));
    CHECK(same(d1.dweight, d2.dweight));
    CHECK(same(d1.dbias, d2.dbias));
  }
}

TEST_CASE("linear: mistakes") {
  const Tensor<float, 2> x({2, 3}), w({5, 4}), fits({5, 3}), dy({2, 4});
  const Tensor<float, 1> bias({4});
  CHECK_THROWS_WITH_AS(linear::forward(linear::Inputs<float>{.x = x, .weight = w}),
                       "linear: x has 3 channels but weight takes 4 (x: (2, 3), weight: (5, 4))", Error);
  CHECK_THROWS_WITH_AS(linear::forward(linear::Inputs<float>{.x = x, .weight = fits, .bias = bias}),
                       "linear: bias has the shape (4), expected (5)", Error);
  CHECK_THROWS_WITH_AS(linear::backward(linear::Inputs<float>{.x = x, .weight = fits}, dy),
                       "linear: dy has the shape (2, 4), expected (2, 5)", Error);
}
