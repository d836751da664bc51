// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The selective scan backward on a GPU against the CPU in double, every gradient.
#include <functional>
#include <string>

#include "gpu_selective_scan_problem.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

template <class T>
scan::Gradients<T, cuda> gradients(const GpuProblem<T>& p) {
  const auto forward = scan::forward(p.inputs(), p.options());
  return scan::backward(p.inputs(), forward.saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
}

/// f(name, gradient on the GPU, gradient in double)
template <class T, class F>
void each_gradient(const scan::Gradients<T, cuda>& got, const scan::Gradients<double>& want, F&& f) {
  f("du", got.du, want.du);
  f("ddelta", got.ddelta, want.ddelta);
  f("dA", got.dA, want.dA);
  f("dB", got.dB, want.dB);
  f("dB_constant", got.dB_constant, want.dB_constant);
  f("dC", got.dC, want.dC);
  f("dC_constant", got.dC_constant, want.dC_constant);
  f("dD", got.dD, want.dD);
  f("dz", got.dz, want.dz);
  f("ddelta_bias", got.ddelta_bias, want.ddelta_bias);
  f("dinitial_state", got.dinitial_state, want.dinitial_state);
}

/// `tolerance(name)` of the norm of each gradient's error.
template <class T>
void check_gradients(const ScanShape& s, const std::function<double(const std::string&)>& tolerance) {
  CAPTURE(s.batch);
  CAPTURE(s.length);
  CAPTURE(s.channels);
  CAPTURE(s.d_state);
  CAPTURE(s.groups_B);
  CAPTURE(s.groups_C);
  const WideProblem<T> wide(s);
  const auto forward = scan::forward(wide.inputs(), wide.options());
  const auto want =
      scan::backward(wide.inputs(), forward.saved, {.dout = wide.dout, .dfinal_state = wide.dfinal_state});
  const GpuProblem<T> p(s);
  each_gradient(gradients(p), want, [&](const std::string& name, const auto& got, const auto& expected) {
    CAPTURE(name);
    if (!expected) {
      CHECK(!got);
      return;
    }
    CHECK(norm_error(got, expected) < tolerance(name));
  });
}
template <class T>
void check_gradients(const ScanShape& s, double tolerance) {
  check_gradients<T>(s, [tolerance](const std::string&) { return tolerance; });
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("selective_scan backward in double and float, any length, width, state and form of B and C") {
    for (Index length : {0, 1, 2, 15, 16, 17, 33, 67})
      for (Index groups_B : {0, 1, 2})
        for (Index groups_C : {0, 1, 3}) {
          check_gradients<double>({.length = length, .d_state = 5, .groups_B = groups_B, .groups_C = groups_C}, 1e-12);
          check_gradients<float>({.length = length, .d_state = 5, .groups_B = groups_B, .groups_C = groups_C}, 2e-6);
        }
    for (Index channels : {1, 5, 63, 64, 65, 134})
      for (Index d_state : {1, 8, 16, 17, 32, 33, 80}) {
        check_gradients<double>({.length = 37, .channels = channels, .d_state = d_state}, 1e-12);
        check_gradients<float>({.length = 37, .channels = channels, .d_state = d_state, .optional = false}, 2e-6);
      }
    check_gradients<double>({.softplus = false}, 1e-12);
    check_gradients<double>({.batch = 0}, 1e-12);
    check_gradients<double>({.channels = 0}, 1e-12);
  }

  TEST_CASE("selective_scan backward over long sequences: segments") {
    for (Index length : {64, 129, 1500, 4099}) {
      check_gradients<double>({.batch = 1, .length = length, .channels = 70, .d_state = 16}, 1e-11);
      check_gradients<float>({.batch = 1, .length = length, .channels = 70, .d_state = 16}, 3e-6);
    }
    check_gradients<double>({.batch = 1, .length = 700, .channels = 5, .d_state = 70, .groups_B = 0}, 1e-11);
    check_gradients<double>({.batch = 1, .length = 700, .channels = 5, .d_state = 70, .groups_C = 0}, 1e-11);
    check_gradients<double>({.batch = 1, .length = 300, .channels = 64, .d_state = 3, .optional = false}, 1e-11);
  }

  TEST_CASE("selective_scan backward: decay that underflows and steps that vanish") {
    for (double mean : {-30.0, -8.0, 8.0, 300.0}) {
      CAPTURE(mean);
      check_gradients<double>({.length = 70, .dt_mean = mean}, 1e-11);
      check_gradients<float>({.length = 70, .dt_mean = mean}, 1e-5);
    }
  }

  TEST_CASE("selective_scan backward in bfloat16: sums in float, rounded once") {
    const auto tolerance = [](const std::string& name) {
      if (name == "dz") return 2.0e-3;
      return name == "du" || name == "ddelta" || name == "dB" || name == "dC" ? 1.85e-3 : 2e-6;
    };
    check_gradients<bfloat16>({.batch = 2, .length = 300, .channels = 256, .d_state = 16}, tolerance);
    check_gradients<bfloat16>({.batch = 1, .length = 2000, .channels = 64, .d_state = 16}, tolerance);
  }

  TEST_CASE_TEMPLATE("selective_scan backward: rows copied in pieces or by numbers, the same bits", T, float,
                     bfloat16) {
    const GpuProblem<T> p({.batch = 2, .length = 83, .channels = 136, .d_state = 16});
    const auto saved = scan::forward(p.inputs(), p.options()).saved;
    const auto expected = scan::backward(p.inputs(), saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
    const Shifted<T, 3> u(p.u), delta(p.delta), z(p.z), dout(p.dout);
    const Shifted<T, 4> B(p.B), C(p.C);
    auto shifted = p.inputs();
    shifted.u = u.view;
    shifted.delta = delta.view;
    shifted.z = z.view;
    shifted.B = B.view;
    shifted.C = C.view;
    const auto got = scan::backward(shifted, saved, {.dout = dout.view, .dfinal_state = p.dfinal_state});
    CHECK(same_bits(got.du, expected.du));
    CHECK(same_bits(got.ddelta, expected.ddelta));
    CHECK(same_bits(got.dz, expected.dz));
    CHECK(same_bits(got.dA, expected.dA));
    CHECK(same_bits(got.dB, expected.dB));
    CHECK(same_bits(got.dC, expected.dC));
    CHECK(same_bits(got.dinitial_state, expected.dinitial_state));
  }

  TEST_CASE("selective_scan backward: some gradients, strided, added, from the output or the state alone, same bits") {
    const ScanShape s{.batch = 2, .length = 83, .channels = 70, .d_state = 16, .groups_B = 2, .groups_C = 2};
    const GpuProblem<float> p(s);
    const auto in = p.inputs();
    const auto saved = scan::forward(in, p.options()).saved;
    const auto expected = scan::backward(in, saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
    const auto again = scan::backward(in, saved, {.dout = p.dout, .dfinal_state = p.dfinal_state});
    CHECK(same_bits(again.du, expected.du));
    CHECK(same_bits(again.dA, expected.dA));
    CHECK(same_bits(again.dB, expected.dB));
    CHECK(same_bits(again.ddelta_bias, expected.ddelta_bias));

    Tensor<float, 3, cuda> both({s.batch, s.length, 2 * s.channels + 1});
    Tensor<float, 4, cuda> dBC({s.batch, s.length, 2, 2 * s.d_state + 3});
    Tensor<float, 2, cuda> dA(p.A.extents(), 1.0f);
    Tensor<float, 1, cuda> dD({s.channels}, 1.0f);
    const auto du = both.view().slice<2>(1, 1 + s.channels);
    const auto dC = dBC.view().slice<3>(3, 3 + s.d_state);
    Workspace<cuda> workspace(scan::workspace_bytes(in, saved));
    scan::backward<float>(in, saved, {.dout = p.dout, .dfinal_state = p.dfinal_state},
                          {.du = du, .dA = dA, .dC = dC, .dD = dD}, workspace, GradientMode::add);
    Tensor<float, 3, cuda> dense_du(p.u.extents());
    Tensor<float, 4, cuda> dense_dC(p.C.extents());
    copy(du, dense_du.view());
    copy(dC, dense_dC.view());
    CHECK(same_bits(dense_du, expected.du));
    CHECK(same_bits(dense_dC, expected.dC));
    const auto host_dA = to<cpu>(dA), want_dA = to<cpu>(expected.dA);
    for (Index i = 0; i < host_dA.size(); ++i) CHECK(host_dA.data()[i] == want_dA.data()[i] + 1.0f);

    const auto out = scan::backward(in, saved, {.dout = p.dout});
    const auto state = scan::backward(in, saved, {.dfinal_state = p.dfinal_state});
    auto sum = to<cpu>(out.ddelta);
    const auto rest = to<cpu>(state.ddelta);
    for (Index i = 0; i < sum.size(); ++i) sum.data()[i] += rest.data()[i];
    CHECK(norm_error(expected.ddelta, sum) < 1e-6);
  }
}
