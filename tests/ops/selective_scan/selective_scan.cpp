// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/selective_scan/selective_scan.hpp"

#include <cstring>
#include <string>

#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;
namespace scan = diffmamba::selective_scan;

namespace {

struct Shape {
  Index batch = 2, length = 7, channels = 6, d_state = 4;
  Index groups_B = 1, groups_C = 1;  // 0: constant
  bool optional = true;              // D, z, delta_bias, initial_state
  bool softplus = true;
  double dt_mean = -1;  // of delta
};

template <class T>
struct Problem {
  using S = accumulate_t<T>;
  Shape shape;
  Tensor<T, 3> u, delta, z, dout;
  Tensor<S, 2> A, B_constant, C_constant;
  Tensor<T, 4> B, C;
  Tensor<S, 1> D, delta_bias;
  Tensor<S, 3> initial_state, dfinal_state;

  explicit Problem(const Shape& s)
      : shape(s),
        u(random_tensor<T, 3>({s.batch, s.length, s.channels}, 1)),
        delta(random_tensor<T, 3>({s.batch, s.length, s.channels}, 2, 0.7, s.dt_mean)),
        dout(random_tensor<T, 3>({s.batch, s.length, s.channels}, 3)),
        A(random_tensor<S, 2>({s.channels, s.d_state}, 4)),
        dfinal_state(random_tensor<S, 3>({s.batch, s.channels, s.d_state}, 5)) {
    for (S& a : A) a = -std::abs(a) - S(0.125);
    if (s.groups_B > 0)
      B = random_tensor<T, 4>({s.batch, s.length, s.groups_B, s.d_state}, 6);
    else
      B_constant = random_tensor<S, 2>({s.channels, s.d_state}, 6);
    if (s.groups_C > 0)
      C = random_tensor<T, 4>({s.batch, s.length, s.groups_C, s.d_state}, 7);
    else
      C_constant = random_tensor<S, 2>({s.channels, s.d_state}, 7);
    if (!s.softplus)
      for (T& x : delta) x = T(0.125f * static_cast<float>(x) * static_cast<float>(x));
    if (!s.optional) return;
    D = random_tensor<S, 1>({s.channels}, 8);
    z = random_tensor<T, 3>({s.batch, s.length, s.channels}, 9);
    delta_bias = random_tensor<S, 1>({s.channels}, 10, 0.3);
    initial_state = random_tensor<S, 3>({s.batch, s.channels, s.d_state}, 11);
  }
  scan::Inputs<T> inputs() const {
    return {.u = u,
            .delta = delta,
            .A = A,
            .B = B,
            .B_constant = B_constant,
            .C = C,
            .C_constant = C_constant,
            .D = D,
            .z = z,
            .delta_bias = delta_bias,
            .initial_state = initial_state};
  }
  scan::Options options() const { return {.delta_softplus = shape.softplus}; }
  double loss() const {
    const auto result = scan::forward(inputs(), options());
    return dot(result.out, dout) + dot(result.final_state, dfinal_state);
  }
};

/// The formula, one element at a time, in double.
template <class T>
void plain(const Problem<T>& p, Tensor<double, 3>& out, Tensor<double, 3>& state) {
  const Shape& s = p.shape;
  out = Tensor<double, 3>({s.batch, s.length, s.channels});
  state = Tensor<double, 3>({s.batch, s.channels, s.d_state});
  for (Index b = 0; b < s.batch; ++b)
    for (Index c = 0; c < s.channels; ++c) {
      if (p.initial_state)
        for (Index n = 0; n < s.d_state; ++n) state(b, c, n) = p.initial_state(b, c, n);
      for (Index t = 0; t < s.length; ++t) {
        const double u = p.u(b, t, c), raw = p.delta(b, t, c) + (p.delta_bias ? double(p.delta_bias(c)) : 0.0);
        const double dt = s.softplus ? softplus(raw) : raw;
        double y = p.D ? p.D(c) * u : 0.0;
        for (Index n = 0; n < s.d_state; ++n) {
          const double B = p.B ? double(p.B(b, t, c / (s.channels / s.groups_B), n)) : double(p.B_constant(c, n));
          const double C = p.C ? double(p.C(b, t, c / (s.channels / s.groups_C), n)) : double(p.C_constant(c, n));
          state(b, c, n) = std::exp(dt * p.A(c, n)) * state(b, c, n) + dt * B * u;
          y += C * state(b, c, n);
        }
        out(b, t, c) = p.z ? y * silu(double(p.z(b, t, c))) : y;
      }
    }
}

template <class T>
double error_of_forward(const Shape& shape) {
  const Problem<T> p(shape);
  Tensor<double, 3> out, state;
  plain(p, out, state);
  const auto result = scan::forward(p.inputs(), p.options());
  return std::max(relative_error(result.out, out), relative_error(result.final_state, state));
}

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return a.extents() == b.extents() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0);
}

template <class T>
bool same_bits(const scan::Gradients<T>& a, const scan::Gradients<T>& b) {
  return same_bits(a.du, b.du) && same_bits(a.ddelta, b.ddelta) && same_bits(a.dA, b.dA) && same_bits(a.dB, b.dB) &&
         same_bits(a.dB_constant, b.dB_constant) && same_bits(a.dC, b.dC) && same_bits(a.dC_constant, b.dC_constant) &&
         same_bits(a.dD, b.dD) && same_bits(a.dz, b.dz) && same_bits(a.ddelta_bias, b.ddelta_bias) &&
         same_bits(a.dinitial_state, b.dinitial_state);
}

void check_all_gradients(const Shape& shape, double tolerance = 1e-8, Index samples = 24) {
  CAPTURE(shape.length);
  CAPTURE(shape.channels);
  CAPTURE(shape.groups_B);
  CAPTURE(shape.groups_C);
  Problem<double> p(shape);
  const auto forward = scan::forward(p.inputs(), p.options());
  const auto d = scan::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
  const auto check = [&](const char* name, auto& input, const auto& gradient) {
    if (input)
      check_gradient(
          name, input, gradient, [&] { return p.loss(); }, tolerance, 1e-3, samples);
    else
      CHECK(!gradient);
  };
  check("u", p.u, d.du);
  check("delta", p.delta, d.ddelta);
  check("A", p.A, d.dA);
  check("B", p.B, d.dB);
  check("B_constant", p.B_constant, d.dB_constant);
  check("C", p.C, d.dC);
  check("C_constant", p.C_constant, d.dC_constant);
  check("D", p.D, d.dD);
  check("z", p.z, d.dz);
  check("delta_bias", p.delta_bias, d.ddelta_bias);
  if (p.initial_state) check("initial_state", p.initial_state, d.dinitial_state);
}

}  // namespace

TEST_CASE("selective_scan: the formula on every form of B and C, odd sizes, past checkpoints and tiles") {
  for (Index length : {0, 1, 2, 31, 32, 33, 64, 131})
    for (Index groups_B : {0, 1, 2})
      for (Index groups_C : {0, 1, 6}) {
        CAPTURE(length);
        CAPTURE(groups_B);
        CAPTURE(groups_C);
        const Shape shape{.length = length, .d_state = 5, .groups_B = groups_B, .groups_C = groups_C};
        CHECK(error_of_forward<double>(shape) < 1e-13);
        CHECK(error_of_forward<float>(shape) < 3e-6);
      }
  for (Index channels : {1, 5, 63, 64, 65, 134})
    for (Index d_state : {1, 3, 16, 17}) {
      CAPTURE(channels);
      CAPTURE(d_state);
      CHECK(error_of_forward<double>({.length = 37, .channels = channels, .d_state = d_state}) < 1e-13);
      CHECK(error_of_forward<float>({.length = 37, .channels = channels, .d_state = d_state, .optional = false}) <
            3e-6);
    }
  CHECK(error_of_forward<double>({.softplus = false}) < 1e-13);
  CHECK(error_of_forward<double>({.batch = 0}) == 0);
  CHECK(error_of_forward<double>({.channels = 0}) == 0);
  CHECK(error_of_forward<double>({.d_state = 0, .optional = false}) == 0);
  CHECK(error_of_forward<float>({.batch = 1, .length = 1500, .channels = 3}) < 1e-5);
}

TEST_CASE("selective_scan: gradients of every input, through the output and the final state") {
  check_all_gradients({});
  check_all_gradients({.length = 1});
  check_all_gradients({.length = 2, .optional = false});
  check_all_gradients({.length = 11, .groups_B = 0, .groups_C = 0});
  check_all_gradients({.length = 11, .groups_B = 0, .groups_C = 2});
  check_all_gradients({.length = 11, .groups_B = 3, .groups_C = 0, .softplus = false});
  check_all_gradients({.length = 9, .groups_B = 2, .groups_C = 6});
  check_all_gradients({.batch = 3, .length = 71, .channels = 5, .d_state = 3}, 1e-8, 8);
  check_all_gradients({.batch = 1, .length = 33, .channels = 67, .d_state = 2}, 1e-8, 8);
}

TEST_CASE("selective_scan: gradients of the output alone and of the final state alone add up; float follows double") {
  const Shape shape{.length = 45, .channels = 70, .d_state = 3};
  const Problem<double> p(shape);
  const auto forward = scan::forward(p.inputs(), p.options());
  const auto both = scan::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
  const auto out = scan::backward(p.inputs(), forward.saved, {.dout = p.dout});
  const auto state = scan::backward(p.inputs(), forward.saved, {.dfinal_state = p.dfinal_state});
  double error = 0;
  for (Index i = 0; i < both.du.size(); ++i)
    error = std::max(error, std::abs(both.du.data()[i] - out.du.data()[i] - state.du.data()[i]));
  CHECK(error < 1e-12);

  const Problem<float> q(shape);
  const auto forward_q = scan::forward(q.inputs(), q.options());
  const auto d = scan::backward(q.inputs(), forward_q.saved, {.dout = q.dout, .dfinal_state = q.dfinal_state});
  CHECK(relative_error(forward_q.out, forward.out) < 3e-6);
  CHECK(relative_error(d.du, both.du) < 3e-6);
  CHECK(relative_error(d.ddelta, both.ddelta) < 3e-6);
  CHECK(relative_error(d.dA, both.dA) < 1e-5);
  CHECK(relative_error(d.dB, both.dB) < 3e-6);
  CHECK(relative_error(d.dC, both.dC) < 3e-6);
  CHECK(relative_error(d.dD, both.dD) < 3e-6);
  CHECK(relative_error(d.dz, both.dz) < 3e-6);
  CHECK(relative_error(d.ddelta_bias, both.ddelta_bias) < 3e-6);
  CHECK(relative_error(d.dinitial_state, both.dinitial_state) < 3e-6);
}

TEST_CASE("selective_scan: decay that underflows and steps that vanish") {
  for (double mean : {-30.0, -8.0, 8.0, 300.0}) {
    CAPTURE(mean);
    const Shape shape{.length = 70, .dt_mean = mean};
    CHECK(error_of_forward<double>(shape) < 1e-12);
    CHECK(error_of_forward<float>(shape) < 1e-5);
    // (Where dt is 1e-13 there is nothing for differences to see.)
    if (std::abs(mean) < 10) check_all_gradients({.length = 5, .dt_mean = mean}, 1e-6, 12);
    const Problem<float> p(shape);
    const auto forward = scan::forward(p.inputs(), p.options());
    const auto d = scan::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
    for (float g : d.dA) CHECK(std::isfinite(g));
    for (float g : d.ddelta) CHECK(std::isfinite(g));
  }
}

TEST_CASE("selective_scan: the same bits on one and two threads") {
  for (Index groups : {0, 1, 2}) {
    const Problem<float> p(
        {.batch = 3, .length = 50, .channels = 260, .d_state = 16, .groups_B = groups, .groups_C = 1});
    const auto run = [&](int count) {
      const Threads threads(count);
      auto forward = scan::forward(p.inputs(), p.options());
      auto d = scan::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
      return std::pair(std::move(forward), std::move(d));
    };
    const auto one = run(1), two = run(2);
    CHECK(same_bits(one.first.out, two.first.out));
    CHECK(same_bits(one.first.final_state, two.first.final_state));
    CHECK(same_bits(one.second, two.second));
  }
}

TEST_CASE("selective_scan: any split into chunks through the states, with the same gradients") {
  const Problem<double> p({.length = 83, .channels = 9});
  const auto whole = scan::forward(p.inputs(), p.options());
  const auto d = scan::backward(p.inputs(), whole.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
  for (Index cut : {1, 32, 50, 82}) {
    CAPTURE(cut);
    const auto part = [&](Index begin, Index end, const Tensor<double, 3>& state) {
      return scan::Inputs<double>{.u = p.u.slice<1>(begin, end),
                                  .delta = p.delta.slice<1>(begin, end),
                                  .A = p.A,
                                  .B = p.B.slice<1>(begin, end),
                                  .C = p.C.slice<1>(begin, end),
                                  .D = p.D,
                                  .z = p.z.slice<1>(begin, end),
                                  .delta_bias = p.delta_bias,
                                  .initial_state = state};
    };
    const auto in1 = part(0, cut, p.initial_state);
    const auto first = scan::forward(in1, p.options());
    const auto in2 = part(cut, 83, first.final_state);
    const auto second = scan::forward(in2, p.options());
    CHECK(relative_error(second.final_state, whole.final_state) < 1e-13);
    CHECK(relative_error(to_tensor(whole.out.slice<1>(cut, 83)), second.out) < 1e-13);
    CHECK(relative_error(to_tensor(whole.out.slice<1>(0, cut)), first.out) < 1e-13);
    const auto d2 =
        scan::backward(in2, second.saved, {.dout = p.dout.slice<1>(cut, 83), .dfinal_state = p.dfinal_state});
    const auto d1 =
        scan::backward(in1, first.saved, {.dout = p.dout.slice<1>(0, cut), .dfinal_state = d2.dinitial_state});
    CHECK(relative_error(d1.dinitial_state, d.dinitial_state) < 1e-13);
    CHECK(relative_error(d1.du, to_tensor(d.du.slice<1>(0, cut))) < 1e-12);
    Tensor<double, 2> dA(d.dA.extents());
    for (Index i = 0; i < dA.size(); ++i) dA.data()[i] = d1.dA.data()[i] + d2.dA.data()[i];
    CHECK(relative_error(dA, d.dA) < 1e-12);
  }
}

TEST_CASE("selective_scan: strided inputs and gradients, added gradients; nothing allocated") {
  // Two paths of d = 35 channels with a group each. x_proj output: (batch, length, path, [dt 3 | B 4 | C 4]), and z in
  // the output of an in_proj: (batch, length, [x 2d | z 2d]).
  const Index batch = 2, length = 40, d = 35, N = 4;
  const Problem<double> p(
      {.batch = batch, .length = length, .channels = 2 * d, .d_state = N, .groups_B = 2, .groups_C = 2});
  auto xz = random_tensor<double, 3>({batch, length, 4 * d}, 20);
  auto projected = random_tensor<double, 4>({batch, length, 2, 3 + 2 * N}, 21);
  copy(p.B, projected.slice<3>(3, 3 + N));
  copy(p.C, projected.slice<3>(3 + N, 3 + 2 * N));
  copy(p.z, xz.slice<2>(2 * d, 4 * d));
  copy(p.u, xz.slice<2>(0, 2 * d));
  const auto dense = p.inputs();
  scan::Inputs<double> strided = dense;
  strided.u = xz.slice<2>(0, 2 * d);
  strided.z = xz.slice<2>(2 * d, 4 * d);
  strided.B = projected.slice<3>(3, 3 + N);
  strided.C = projected.slice<3>(3 + N, 3 + 2 * N);

  const auto expected = scan::forward(dense, p.options());
  const auto gradients = scan::backward(dense, expected.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});

  Tensor<double, 3> out({batch, length, 2 * d}), dxz(xz.extents(), 7.0);
  Tensor<double, 4> dprojected(projected.extents(), 7.0);
  Tensor<double, 3> ddelta(p.delta.extents()), final_state(p.dfinal_state.extents());
  Tensor<double, 2> dA(p.A.extents(), 1.0);
  Tensor<double, 1> dD({2 * d}, 1.0);
  scan::Saved<double> saved;
  Workspace<> forward_space(scan::workspace_bytes(strided, p.options()));
  scan::forward<double>(strided, p.options(), {.out = out, .final_state = final_state}, &saved, forward_space);
  Workspace<> backward_space(scan::workspace_bytes(strided, saved));
  const std::size_t in_use = arena().bytes_in_use();
  arena().reset_peak();
  scan::forward<double>(strided, p.options(), {.out = out, .final_state = final_state}, &saved, forward_space);
  scan::backward<double>(strided, saved, {.dout = p.dout, .dfinal_state = p.dfinal_state},
                         {.du = dxz.slice<2>(0, 2 * d),
                          .ddelta = ddelta,
                          .dA = dA,
                          .dB = dprojected.slice<3>(3, 3 + N),
                          .dC = dprojected.slice<3>(3 + N, 3 + 2 * N),
                          .dD = dD,
                          .dz = dxz.slice<2>(2 * d, 4 * d)},
                         backward_space, GradientMode::add);
  CHECK(arena().peak_bytes() == in_use);
  CHECK(relative_error(out, expected.out) < 1e-14);
  CHECK(relative_error(final_state, expected.final_state) < 1e-14);
  CHECK(relative_error(ddelta, gradients.ddelta) < 1e-13);
  const auto dense_of = [&](auto view) { return to_tensor(view); };
  CHECK(relative_error(dense_of(dxz.slice<2>(0, 2 * d)), gradients.du) < 1e-13);
  CHECK(relative_error(dense_of(dxz.slice<2>(2 * d, 4 * d)), gradients.dz) < 1e-13);
  CHECK(relative_error(dense_of(dprojected.slice<3>(3, 3 + N)), gradients.dB) < 1e-13);
  CHECK(relative_error(dense_of(dprojected.slice<3>(3 + N, 3 + 2 * N)), gradients.dC) < 1e-13);
  for (double untouched : dense_of(dprojected.slice<3>(0, 3))) CHECK(untouched == 7.0);
  for (double& g : dA) g -= 1.0;
  for (double& g : dD) g -= 1.0;
  CHECK(relative_error(dA, gradients.dA) < 1e-12);
  CHECK(relative_error(dD, gradients.dD) < 1e-12);
  CHECK(saved.states.extents() == Extents<4>{batch, Index{1}, N, 2 * d});  // 40 tokens: one checkpoint
}

TEST_CASE("selective_scan: inference keeps nothing and gives the same bits") {
  const Problem<float> p({.length = 70});
  const auto expected = scan::forward(p.inputs(), p.options());
  Tensor<float, 3> out(p.u.extents());
  Workspace<> workspace(scan::workspace_bytes(p.inputs(), p.options()));
  scan::forward<float>(p.inputs(), p.options(), {.out = out}, nullptr, workspace);
  CHECK(same_bits(out, expected.out));
}

TEST_CASE("selective_scan: bfloat16 rounds what it stores and nothing else") {
  const Shape shape{.length = 40, .channels = 70, .d_state = 3};
  const Problem<bfloat16> p(shape);
  Problem<float> q(shape);
  copy(p.u, q.u), copy(p.delta, q.delta), copy(p.z, q.z), copy(p.dout, q.dout), copy(p.B, q.B), copy(p.C, q.C);
  const auto forward = scan::forward(p.inputs(), p.options());
  const auto wide = scan::forward(q.inputs(), q.options());
  CHECK(same_bits(forward.final_state, wide.final_state));
  CHECK(same_bits(forward.out, to_tensor<bfloat16>(wide.out.view())));
  const auto d = scan::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
  const auto e = scan::backward(q.inputs(), wide.saved, {.dout = q.dout, .dfinal_state = q.dfinal_state});
  CHECK(same_bits(d.dA, e.dA));
  CHECK(same_bits(d.du, to_tensor<bfloat16>(e.du.view())));
  CHECK(same_bits(d.dB, to_tensor<bfloat16>(e.dB.view())));
}

TEST_CASE("selective_scan: one sentence for each mistake") {
  const Problem<float> p({});
  const auto says = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing";
  };
  const auto forward = [&](const scan::Inputs<float>& in) { return says([&] { scan::forward(in); }); };
  const Tensor<float, 3> shorter({2, 6, 6}), state({2, 6, 3});
  const Tensor<float, 2> A({5, 4});
  const Tensor<float, 4> groups({2, 7, 4, 4}), narrow({2, 7, 1, 3});
  CHECK(forward({.u = p.u, .delta = shorter, .A = p.A, .B = p.B, .C = p.C}) ==
        "selective_scan: delta has the shape (2, 6, 6), expected (2, 7, 6)");
  CHECK(forward({.u = p.u, .delta = p.delta, .A = A, .B = p.B, .C = p.C}) ==
        "selective_scan: A is for 5 channels but u has 6 (A: (5, 4), u: (2, 7, 6))");
  CHECK(forward({.u = p.u, .delta = p.delta, .A = p.A, .C = p.C}) ==
        "selective_scan: B is missing: give B (per token) or B_constant");
  CHECK(forward({.u = p.u, .delta = p.delta, .A = p.A, .B = p.B, .C = p.C, .C_constant = p.A}) ==
        "selective_scan: both C and C_constant are given");
  CHECK(forward({.u = p.u, .delta = p.delta, .A = p.A, .B = groups, .C = p.C}) ==
        "selective_scan: B has 4 groups, which do not divide the 6 channels (B: (2, 7, 4, 4), u: (2, 7, 6))");
  CHECK(forward({.u = p.u, .delta = p.delta, .A = p.A, .B = p.B, .C = narrow}) ==
        "selective_scan: C has the shape (2, 7, 1, 3), expected (2, 7, 1, 4)");
  CHECK(forward({.u = p.u, .delta = p.delta, .A = p.A, .B = p.B, .C = p.C, .initial_state = state}) ==
        "selective_scan: initial_state has the shape (2, 6, 3), expected (2, 6, 4)");
  CHECK(forward({.u = p.u.view().permute<1, 2, 0>(), .delta = p.delta, .A = p.A, .B = p.B, .C = p.C})
            .starts_with("selective_scan: u, (7, 6, 2), must be dense along its last axis"));

  const auto result = scan::forward(p.inputs(), p.options());
  CHECK(says([&] { scan::backward(p.inputs(), result.saved, {.dout = shorter}); }) ==
        "selective_scan::backward: dout has the shape (2, 6, 6), expected (2, 7, 6)");
  const Problem<float> longer({.length = 40});
  CHECK(says([&] {
          scan::backward(longer.inputs(), result.saved, {.dout = longer.dout});
        }).starts_with("selective_scan::backward: saved holds states (2, 0, 4, 6), expected (2, 1, 4, 6)"));
  Workspace<> small(64), enough(scan::workspace_bytes(p.inputs(), result.saved));
  Tensor<float, 3> out(p.u.extents());
  CHECK(says([&] {
          scan::forward<float>(p.inputs(), p.options(), {.out = out}, nullptr, small);
        }).starts_with("workspace: "));
  Tensor<float, 2> constant(p.A.extents());
  CHECK(says([&] {
          scan::backward<float>(p.inputs(), result.saved, {.dout = p.dout}, {.dB_constant = constant}, enough);
        }) == "selective_scan::backward: dB_constant is asked for, but B is given per token");
}
