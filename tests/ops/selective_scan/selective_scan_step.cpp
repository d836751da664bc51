// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/selective_scan/selective_scan_step.hpp"

#include <string>

#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;
namespace scan = diffmamba::selective_scan;

namespace {

template <class T, int Rank>
Tensor<T, Rank> negative(const Extents<Rank>& extents, unsigned seed) {
  auto result = random_tensor<T, Rank>(extents, seed);
  for (T& x : result) x = -std::abs(x) - T(0.1f);
  return result;
}

/// L steps against one scan over L tokens.
template <class T>
void check_step_is_scan(Index channels, Index d_state, Index groups, double tolerance) {
  CAPTURE(channels);
  CAPTURE(d_state);
  const Index batch = 3, length = 9;
  const auto u = random_tensor<T, 3>({batch, length, channels}, 1),
             delta = random_tensor<T, 3>({batch, length, channels}, 2),
             z = random_tensor<T, 3>({batch, length, channels}, 3);
  const auto A = negative<T, 2>({channels, d_state}, 4);
  const auto B = random_tensor<T, 4>({batch, length, groups, d_state}, 5),
             C = random_tensor<T, 4>({batch, length, groups, d_state}, 6);
  const auto D = random_tensor<T, 1>({channels}, 7), bias = random_tensor<T, 1>({channels}, 8);
  const auto initial = random_tensor<T, 3>({batch, channels, d_state}, 9);
  const scan::Options options{.delta_softplus = true};
  const scan::Inputs<T> in{
      .u = u, .delta = delta, .A = A, .B = B, .C = C, .D = D, .z = z, .delta_bias = bias, .initial_state = initial};
  const auto expected = scan::forward(in, options);
  Tensor<T, 3> state = initial;
  for (Index t = 0; t < length; ++t) {
    const auto out = scan::step<T>({.u = u.template select<1>(t),
                                    .delta = delta.template select<1>(t),
                                    .A = A,
                                    .B = B.template select<1>(t),
                                    .C = C.template select<1>(t),
                                    .D = D,
                                    .z = z.template select<1>(t),
                                    .delta_bias = bias},
                                   state, options);
    CHECK(relative_error(out, to_tensor(expected.out.template select<1>(t))) < tolerance);
  }
  CHECK(relative_error(state, expected.final_state) < tolerance);
}

}  // namespace

TEST_CASE("selective_scan::step: as many steps as tokens are one scan") {
  for (Index channels : {2, 70, 512})
    for (Index d_state : {1, 8, 16, 19}) {
      check_step_is_scan<double>(channels, d_state, 1, 1e-13);
      check_step_is_scan<float>(channels, d_state, 2, 3e-6);
    }
}

TEST_CASE("selective_scan::step: heads, tied by strides of zero, against the elements written out") {
  const Index batch = 3, nheads = 4, headdim = 5, d_state = 6, groups = 2;
  const auto x = random_tensor<double, 3>({batch, nheads, headdim}, 1),
             z = random_tensor<double, 3>({batch, nheads, headdim}, 2);
  const auto dt = random_tensor<double, 2>({batch, nheads}, 3);
  const auto A = negative<double, 1>({nheads}, 4);
  const auto B = random_tensor<double, 3>({batch, groups, d_state}, 5),
             C = random_tensor<double, 3>({batch, groups, d_state}, 6);
  const auto D = random_tensor<double, 1>({nheads}, 7), bias = random_tensor<double, 1>({nheads}, 8);
  auto state = random_tensor<double, 4>({batch, nheads, headdim, d_state}, 9);
  const auto before = state;
  const scan::HeadStepInputs<double> in{
      .x = x,
      .dt = View<const double, 3>(dt.data(), {batch, nheads, headdim}, {nheads, Index{1}, Index{0}}),
      .A = View<const double, 3>(A.data(), {nheads, headdim, d_state}, {Index{1}, Index{0}, Index{0}}),
      .B = B,
      .C = C,
      .D = View<const double, 2>(D.data(), {nheads, headdim}, {Index{1}, Index{0}}),
      .z = z,
      .dt_bias = View<const double, 2>(bias.data(), {nheads, headdim}, {Index{1}, Index{0}})};
  const auto out = scan::step(in, state, {.delta_softplus = true});
  for (Index b = 0; b < batch; ++b)
    for (Index h = 0; h < nheads; ++h)
      for (Index p = 0; p < headdim; ++p) {
        const double step = softplus(dt(b, h) + bias(h));
        double y = D(h) * x(b, h, p);
        for (Index n = 0; n < d_state; ++n) {
          const double next = std::exp(step * A(h)) * before(b, h, p, n) + step * B(b, h / 2, n) * x(b, h, p);
          CHECK(state(b, h, p, n) == doctest::Approx(next).epsilon(1e-13));
          y += C(b, h / 2, n) * next;
        }
        CHECK(out(b, h, p) == doctest::Approx(y * silu(z(b, h, p))).epsilon(1e-12));
      }
}

TEST_CASE("selective_scan::step: rows choose their slots; padding touches none") {
  const Index channels = 6, d_state = 4, slots = 5;
  const auto u = random_tensor<float, 2>({3, channels}, 1), delta = random_tensor<float, 2>({3, channels}, 2);
  const auto A = negative<float, 2>({channels, d_state}, 3);
  const auto B = random_tensor<float, 3>({3, 1, d_state}, 4), C = random_tensor<float, 3>({3, 1, d_state}, 5);
  auto state = random_tensor<float, 3>({slots, channels, d_state}, 6);
  const auto before = state;
  Tensor<Index, 1> indices({3});
  indices(0) = 4, indices(1) = -1, indices(2) = 1;
  scan::StepInputs<float> in{.u = u, .delta = delta, .A = A, .B = B, .C = C, .state_batch_indices = indices};
  const auto out = scan::step<float>(in, state, {.delta_softplus = true});
  Tensor<float, 3> gathered({3, channels, d_state});
  copy(before.select<0>(4), gathered.select<0>(0));
  copy(before.select<0>(1), gathered.select<0>(2));
  scan::StepInputs<float> plain{.u = u, .delta = delta, .A = A, .B = B, .C = C};
  const auto expected = scan::step<float>(plain, gathered, {.delta_softplus = true});
  for (Index c = 0; c < channels; ++c) {
    CHECK(out(0, c) == expected(0, c));
    CHECK(out(1, c) == 0.0f);
    CHECK(out(2, c) == expected(2, c));
    for (Index n = 0; n < d_state; ++n) {
      CHECK(state(4, c, n) == gathered(0, c, n));
      CHECK(state(1, c, n) == gathered(2, c, n));
      for (Index untouched : {0, 2, 3}) CHECK(state(untouched, c, n) == before(untouched, c, n));
    }
  }

  const auto says = [&]() -> std::string {
    try {
      scan::step<float>(in, state, {});
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing";
  };
  indices(1) = 5;
  CHECK(says() == "selective_scan::step: state_batch_indices[1] is 5, expected -1 (padding) to 4");
  indices(1) = 4;
  CHECK(says() == "selective_scan::step: state_batch_indices names slot 4 twice, at 0 and 1");
  CHECK_THROWS_WITH_AS(
      scan::step<float>(plain, state, {}),
      "selective_scan::step: state has 5 rows for a batch of 3; give state_batch_indices to choose among them", Error);
  const Tensor<float, 3> odd({3, 4, d_state});
  plain.B = View<const float, 3>(odd);
  CHECK_THROWS_WITH_AS(
      scan::step<float>(plain, state, {}),
      "selective_scan::step: B has 4 groups, which do not divide the 6 channels (B: (3, 4, 4), u: (3, 6))", Error);
}

TEST_CASE("selective_scan::step: the same bits on one and two threads; bfloat16 keeps a float state") {
  const Index batch = 2, channels = 300, d_state = 16;
  const auto u = random_tensor<bfloat16, 2>({batch, channels}, 1),
             delta = random_tensor<bfloat16, 2>({batch, channels}, 2);
  const auto A = negative<float, 2>({channels, d_state}, 3);
  const auto B = random_tensor<bfloat16, 3>({batch, 1, d_state}, 4),
             C = random_tensor<bfloat16, 3>({batch, 1, d_state}, 5);
  const scan::StepInputs<bfloat16> in{.u = u, .delta = delta, .A = A, .B = B, .C = C};
  const auto run = [&](int count) {
    const Threads threads(count);
    Tensor<float, 3> state({batch, channels, d_state}, 0.25f);
    scan::step<bfloat16>(in, state, {.delta_softplus = true});
    return state;
  };
  const auto one = run(1), two = run(2);
  CHECK(std::equal(one.begin(), one.end(), two.begin()));
  const auto wide_u = to_tensor<float>(u.view()), wide_delta = to_tensor<float>(delta.view());
  const auto wide_B = to_tensor<float>(B.view()), wide_C = to_tensor<float>(C.view());
  Tensor<float, 3> state({batch, channels, d_state}, 0.25f);
  scan::step<float>({.u = wide_u, .delta = wide_delta, .A = A, .B = wide_B, .C = wide_C}, state,
                    {.delta_softplus = true});
  CHECK(std::equal(one.begin(), one.end(), state.begin()));
}
