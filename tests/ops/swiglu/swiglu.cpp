// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/swiglu/swiglu.hpp"

#include "diffmamba/math/silu.hpp"
#include "diffmamba/ops/swiglu/swiglu_backward.hpp"
#include "diffmamba/ops/swiglu/swiglu_forward.hpp"
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
  Tensor<T, 3> x, z, dout;
  Problem(Index batch, Index length, Index channels)
      : x(random_tensor<T, 3>({batch, length, channels}, 1)),
        z(random_tensor<T, 3>({batch, length, channels}, 2)),
        dout(random_tensor<T, 3>({batch, length, channels}, 3)) {}
  swiglu::Inputs<T> inputs() const { return {.x = x, .z = z}; }
};

}  // namespace

TEST_CASE("swiglu: the formula and its gradients") {
  for (Index channels : {1, 16, 37})
    for (Index length : {0, 1, 3}) {
      Problem<double> p(2, length, channels);
      const auto out = swiglu::forward(p.inputs());
      for (Index i = 0; i < out.size(); ++i)
        CHECK(out.data()[i] == doctest::Approx(silu(p.z.data()[i]) * p.x.data()[i]).epsilon(1e-14));
      const auto d = swiglu::backward(p.inputs(), p.dout);
      const auto loss = [&] { return dot(swiglu::forward(p.inputs()), p.dout); };
      check_gradient("x", p.x, d.dx, loss, 1e-8);
      check_gradient("z", p.z, d.dz, loss, 1e-8);
    }
}

TEST_CASE("swiglu: float and bfloat16 against double; halves of one tensor, in place") {
  const Problem<double> exact(2, 50, 45);
  const auto want = swiglu::forward(exact.inputs());
  const auto dwant = swiglu::backward(exact.inputs(), exact.dout);
  const auto compare = [&]<class T>(T, double tolerance) {
    const Problem<T> p(2, 50, 45);
    Tensor<T, 3> both({2, 50, 90}), dout = p.dout;
    const auto z = both.template slice<2>(0, 45), x = both.template slice<2>(45, 90);
    copy(p.z, z);
    copy(p.x, x);
    const swiglu::Inputs<T> in{.x = x, .z = z};
    CHECK(relative_error(swiglu::forward(in), want) < tolerance);
    swiglu::backward(in, dout, {.dx = x, .dz = dout});
    CHECK(relative_error(to_tensor(View<const T, 3>(x)), dwant.dx) < tolerance);
    CHECK(relative_error(dout, dwant.dz) < tolerance);
  };
  compare(float{}, 1e-6);
  compare(bfloat16{}, 1e-2);
}

TEST_CASE("swiglu: mistakes are named") {
  const Problem<float> p(2, 3, 8), other(2, 3, 7);
  CHECK_THROWS_WITH_AS(swiglu::forward(swiglu::Inputs<float>{.x = p.x, .z = other.z}),
                       "swiglu: z has the shape (2, 3, 7), expected (2, 3, 8)", Error);
  CHECK_THROWS_WITH_AS(swiglu::backward(p.inputs(), other.dout),
                       "swiglu: out has the shape (2, 3, 7), expected (2, 3, 8)", Error);
}
