// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/causal_conv1d/causal_conv1d.hpp"

#include <cstring>

#include "diffmamba/math/silu.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;
namespace conv = diffmamba::causal_conv1d;

namespace {

constexpr conv::Options with_silu{.activation = conv::Activation::silu};

template <class T>
struct Problem {
  using A = accumulate_t<T>;
  Tensor<T, 3> x, dout;
  Tensor<A, 2> weight;
  Tensor<A, 1> bias;
  Tensor<A, 3> initial_state, dfinal_state;

  Problem(Index batch, Index length, Index channels, Index width)
      : x(random_tensor<T, 3>({batch, length, channels}, 1)),
        dout(random_tensor<T, 3>({batch, length, channels}, 2)),
        weight(random_tensor<A, 2>({channels, width}, 3)),
        bias(random_tensor<A, 1>(Extents{channels}, 4)),
        initial_state(random_tensor<A, 3>({batch, channels, width - 1}, 5)),
        dfinal_state(random_tensor<A, 3>({batch, channels, width - 1}, 6)) {}

  conv::Inputs<T> inputs() const { return {.x = x, .weight = weight, .bias = bias, .initial_state = initial_state}; }
  double loss(const conv::Options& options) const {
    const auto result = conv::forward(inputs(), options);
    return dot(result.out, dout) + dot(result.final_state, dfinal_state);
  }
};

/// The formula, one element at a time.
Tensor<double, 3> plain(const Problem<double>& p, bool silu_after) {
  Tensor<double, 3> out(p.x.extents());
  const Index width = p.weight.extent(1);
  for (Index b = 0; b < out.extent(0); ++b)
    for (Index t = 0; t < out.extent(1); ++t)
      for (Index c = 0; c < out.extent(2); ++c) {
        double sum = p.bias(c);
        for (Index w = 0; w < width; ++w) {
          const Index s = t - (width - 1) + w;
          sum += p.weight(c, w) * (s >= 0 ? p.x(b, s, c) : p.initial_state(b, c, s + width - 1));
        }
        out(b, t, c) = silu_after ? silu(sum) : sum;
      }
  return out;
}

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return a.extents() == b.extents() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE("causal_conv1d: the formula, the last inputs as final state") {
  for (Index width : {1, 2, 3, 4, 5, 7})
    for (Index length : {0, 1, 2, 5, 131})
      for (Index channels : {1, 5, 37}) {
        CAPTURE(width);
        CAPTURE(length);
        CAPTURE(channels);
        const Problem<double> p(2, length, channels, width);
        const auto result = conv::forward(p.inputs(), with_silu);
        CHECK(relative_error(result.out, plain(p, true)) < 1e-14);
        CHECK(relative_error(conv::forward(p.inputs()).out, plain(p, false)) < 1e-14);
        for (Index b = 0; b < 2; ++b)
          for (Index c = 0; c < channels; ++c)
            for (Index j = 0; j + 1 < width; ++j) {
              const Index t = length - (width - 1) + j;
              CHECK(result.final_state(b, c, j) == (t >= 0 ? p.x(b, t, c) : p.initial_state(b, c, t + width - 1)));
            }
      }
}

TEST_CASE("causal_conv1d: gradients of every input") {
  for (const auto& options : {conv::Options{}, with_silu})
    for (Index width : {1, 2, 4, 6})
      for (Index length : {0, 1, 3, 9}) {
        CAPTURE(width);
        CAPTURE(length);
        Problem<double> p(2, length, 3, width);
        const auto forward = conv::forward(p.inputs(), options);
        const auto d = conv::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
        const auto loss = [&] { return p.loss(options); };
        check_gradient("x", p.x, d.dx, loss, 1e-8);
        check_gradient("weight", p.weight, d.dweight, loss, 1e-8);
        check_gradient("bias", p.bias, d.dbias, loss, 1e-8);
        check_gradient("initial_state", p.initial_state, d.dinitial_state, loss, 1e-8);
      }
  // Past the run of tokens that one tile takes, and more channels than one strip.
  Problem<double> p(1, 260, 530, 4);
  const auto forward = conv::forward(p.inputs(), with_silu);
  const auto d = conv::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
  const auto loss = [&] { return p.loss(with_silu); };
  check_gradient("x", p.x, d.dx, loss, 1e-7, 1e-3, 12);
  check_gradient("weight", p.weight, d.dweight, loss, 1e-7, 1e-3, 12);
  check_gradient("bias", p.bias, d.dbias, loss, 1e-7, 1e-3, 12);
  check_gradient("initial_state", p.initial_state, d.dinitial_state, loss, 1e-7, 1e-3, 12);
}

TEST_CASE("causal_conv1d: absent inputs, upstream gradients and outputs; adding to gradients") {
  Problem<double> p(2, 7, 5, 4);
  const conv::Inputs<double> bare{.x = p.x, .weight = p.weight};
  const auto forward = conv::forward(bare, with_silu);
  p.initial_state.fill(0);
  p.bias.fill(0);
  CHECK(same_bits(forward.out, conv::forward(p.inputs(), with_silu).out));
  const auto d = conv::backward(bare, forward.saved, {.dout = p.dout});
  CHECK(!d.dbias);
  CHECK(!d.dinitial_state);

  // Only the state carries a gradient: it goes straight to the last inputs.
  const auto through_state = conv::backward(bare, forward.saved, {.dfinal_state = p.dfinal_state});
  CHECK(through_state.dx(1, 6, 3) == p.dfinal_state(1, 3, 2));
  CHECK(through_state.dx(1, 3, 3) == 0);

  Tensor<double, 2> twice({5, 4});
  Workspace<cpu> workspace(conv::workspace_bytes(bare));
  for (int call = 0; call < 2; ++call)
    conv::backward(bare, forward.saved, {.dout = p.dout}, {.dweight = twice}, workspace,
                   call == 0 ? GradientMode::assign : GradientMode::add);
  for (Index i = 0; i < twice.size(); ++i) CHECK(twice.data()[i] == doctest::Approx(2 * d.dweight.data()[i]));
}

TEST_CASE("causal_conv1d: in pieces, forward and step are one forward") {
  for (Index width : {1, 2, 4, 7}) {
    CAPTURE(width);
    const Index length = 11;
    const Problem<double> p(2, length, 19, width);
    const auto whole = conv::forward(p.inputs(), with_silu);
    for (Index cut : {0, 1, 2, 5, 11}) {
      CAPTURE(cut);
      const auto x = p.x.view();
      auto first_in = p.inputs(), second_in = p.inputs();
      first_in.x = x.slice<1>(0, cut);
      const auto first = conv::forward(first_in, with_silu);
      second_in.x = x.slice<1>(cut, length);
      second_in.initial_state = first.final_state;
      const auto second = conv::forward(second_in, with_silu);
      Tensor<double, 3> out(p.x.extents());
      copy(first.out, out.slice<1>(0, cut));
      copy(second.out, out.slice<1>(cut, length));
      CHECK(relative_error(out, whole.out) < 1e-15);
      CHECK(same_bits(second.final_state, whole.final_state));

      // The rest in steps of 1, 2, 1, 2, ... tokens; a state wider than needed, and a ring.
      for (Index extra : {0, 3})
        for (bool ring : {false, true}) {
          const Index size = width - 1 + extra;
          if (ring && size == 0) continue;
          Tensor<double, 3> state({2, 19, size});
          Tensor<Index, 1> seen(Extents{2}, cut);
          for (Index b = 0; b < 2; ++b)
            for (Index c = 0; c < 19; ++c)
              for (Index j = 0; j < width - 1; ++j) {
                const Index column = ring ? (cut - (width - 1) + j + 10 * size) % size : extra + j;
                state(b, c, column) = first.final_state(b, c, j);
              }
          Tensor<double, 3> rest({2, length - cut, 19});
          for (Index t = cut, n = 1; t < length; t += n, n = 3 - n) {
            n = std::min(n, length - t);
            conv::StepInputs<double> in{.x = x.slice<1>(t, t + n), .weight = p.weight, .bias = p.bias};
            if (ring) in.cache_seqlens = seen;
            copy(conv::step(in, state, with_silu), rest.slice<1>(t - cut, t - cut + n));
            for (Index& count : seen) count += n;
          }
          CHECK(relative_error(rest, second.out) < 1e-15);
        }
    }
  }
}

TEST_CASE("causal_conv1d: slots of a step; padding touches none") {
  const Problem<float> p(3, 1, 21, 4);
  auto state = random_tensor<float, 3>({5, 21, 3}, 9);
  const auto before = state;
  Tensor<Index, 1> slots(Extents{3});
  slots(0) = 4;
  slots(1) = -1;
  slots(2) = 1;
  const auto out =
      conv::step<float>({.x = p.x, .weight = p.weight, .bias = p.bias, .conv_state_indices = slots}, state);
  for (Index c = 0; c < 21; ++c) {
    CHECK(out(1, 0, c) == 0);
    float sum = p.bias(c);
    for (Index w = 0; w < 3; ++w) sum += p.weight(c, w) * before(4, c, w);
    CHECK(out(0, 0, c) == doctest::Approx(sum + p.weight(c, 3) * p.x(0, 0, c)).epsilon(1e-5));
    CHECK(state(4, c, 2) == p.x(0, 0, c));
    CHECK(state(1, c, 0) == before(1, c, 1));
    for (Index j = 0; j < 3; ++j) CHECK(state(0, c, j) == before(0, c, j));
  }
}

TEST_CASE("causal_conv1d: strided rows at any address have the same bits") {
  const Index channels = 42;
  const Problem<float> p(2, 150, channels, 4);
  const auto whole = conv::forward(p.inputs(), with_silu);
  const auto dwhole = conv::backward(p.inputs(), whole.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
  Tensor<float, 3> rows({2, 150, channels + 13}), drows(rows.extents());
  const auto x = rows.view().slice<2>(7, 7 + channels), dx = drows.view().slice<2>(7, 7 + channels);
  copy(p.x, x);
  auto in = p.inputs();
  in.x = x;
  const auto result = conv::forward(in, with_silu);
  Tensor<float, 2> dweight(p.weight.extents());
  Tensor<float, 1> dbias(p.bias.extents());
  Tensor<float, 3> dinitial_state(p.initial_state.extents());
  Workspace<cpu> workspace(conv::workspace_bytes(in));
  conv::backward(in, result.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state},
                 {.dx = dx, .dweight = dweight, .dbias = dbias, .dinitial_state = dinitial_state}, workspace);
  CHECK(same_bits(result.out, whole.out));
  CHECK(same_bits(result.final_state, whole.final_state));
  CHECK(same_bits(to_tensor(dx), dwhole.dx));
  CHECK(same_bits(dweight, dwhole.dweight));
  CHECK(same_bits(dbias, dwhole.dbias));
  CHECK(same_bits(dinitial_state, dwhole.dinitial_state));
  CHECK(drows(0, 0, 6) == 0);  // nothing beside the slice is written
  CHECK(drows(1, 149, 7 + channels) == 0);
}

TEST_CASE("causal_conv1d: float and bfloat16 against double, the same bits on one and two threads") {
  const Problem<double> exact(3, 300, 70, 4);
  const auto want = conv::forward(exact.inputs(), with_silu);
  const auto dwant =
      conv::backward(exact.inputs(), want.saved, {.dout = exact.dout, .dfinal_state = exact.dfinal_state});
  const auto compare = [&]<class T>(T, double tolerance) {
    const Problem<T> p(3, 300, 70, 4);
    const auto run = [&](int threads) {
      const Threads scope(threads);
      auto forward = conv::forward(p.inputs(), with_silu);
      auto d = conv::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
      return std::pair{std::move(forward), std::move(d)};
    };
    const auto one = run(1), two = run(2);
    CHECK(relative_error(one.first.out, want.out) < tolerance);
    CHECK(relative_error(one.second.dx, dwant.dx) < tolerance);
    CHECK(relative_error(one.second.dweight, dwant.dweight) < tolerance);
    CHECK(relative_error(one.second.dbias, dwant.dbias) < tolerance);
    CHECK(relative_error(one.second.dinitial_state, dwant.dinitial_state) < tolerance);
    CHECK(same_bits(one.first.out, two.first.out));
    CHECK(same_bits(one.second.dx, two.second.dx));
    CHECK(same_bits(one.second.dweight, two.second.dweight));
    CHECK(same_bits(one.second.dbias, two.second.dbias));
    CHECK(same_bits(one.second.dinitial_state, two.second.dinitial_state));
  };
  compare(float{}, 1e-5);
  compare(bfloat16{}, 2e-2);
}

TEST_CASE("causal_conv1d: the writing forms allocate nothing") {
  const Problem<float> p(2, 33, 40, 4);
  Tensor<float, 3> out(p.x.extents()), dx(p.x.extents()), state({2, 40, 3});
  Tensor<float, 2> dweight(p.weight.extents());
  conv::Saved<float> saved;
  Workspace<cpu> workspace(conv::workspace_bytes(p.inputs()));
  arena<cpu>().reset_peak();
  const auto before = arena<cpu>().peak_bytes();
  conv::forward(p.inputs(), with_silu, {.out = out, .final_state = state}, &saved, workspace);
  conv::backward(p.inputs(), saved, {.dout = p.dout}, {.dx = dx, .dweight = dweight}, workspace);
  conv::step<float>({.x = p.x, .weight = p.weight}, state, with_silu, out);
  CHECK(arena<cpu>().peak_bytes() == before);
}

TEST_CASE("causal_conv1d: mistakes are named") {
  Problem<float> p(2, 8, 6, 4);
  auto in = p.inputs();
  const Tensor<float, 2> other({5, 4});
  in.weight = other;
  CHECK_THROWS_WITH_AS(conv::forward(in),
                       "causal_conv1d: weight is for 5 channels but x has 6 (weight: (5, 4), x: (2, 8, 6))", Error);
  in = p.inputs();
  const Tensor<float, 3> state({2, 6, 4});
  in.initial_state = state;
  CHECK_THROWS_WITH_AS(conv::forward(in), "causal_conv1d: initial_state has the shape (2, 6, 4), expected (2, 6, 3)",
                       Error);
  in = p.inputs();
  in.weight = View<const float, 2>(p.weight.data(), {6, 0});
  CHECK_THROWS_WITH_AS(conv::forward(in), "causal_conv1d: weight is (6, 0); the width must be 1 or more", Error);
  in = p.inputs();
  const Tensor<float, 3> transposed({2, 6, 8});
  in.x = transposed.view().permute<0, 2, 1>();
  CHECK_THROWS_WITH_AS(conv::forward(in),
                       "causal_conv1d: x, (2, 8, 6), must be dense along its last axis; its stride there is 8", Error);
  Tensor<float, 3> narrow({2, 6, 2});
  CHECK_THROWS_WITH_AS(conv::step<float>({.x = p.x, .weight = p.weight}, narrow),
                       "causal_conv1d::step: conv_state is (2, 6, 2), expected (slots, 6, 3 or more)", Error);
  Tensor<float, 3> slots({3, 6, 3});
  CHECK_THROWS_WITH_AS(conv::step<float>({.x = p.x, .weight = p.weight}, slots),
                       "causal_conv1d::step: conv_state has 3 slots for a batch of 2; give conv_state_indices", Error);
  Tensor<Index, 1> indices(Extents{2}, 3);
  CHECK_THROWS_WITH_AS(conv::step<float>({.x = p.x, .weight = p.weight, .conv_state_indices = indices}, slots),
                       "causal_conv1d::step: conv_state_indices[0] is 3, expected -1 (padding) or a slot below 3",
                       Error);
  const conv::Saved<float> saved{};
  const Tensor<float, 3> shorter({2, 7, 6});
  CHECK_THROWS_WITH_AS(conv::backward(p.inputs(), saved, {.dout = shorter}),
                       "causal_conv1d: dout has the shape (2, 7, 6), expected (2, 8, 6)", Error);
}
