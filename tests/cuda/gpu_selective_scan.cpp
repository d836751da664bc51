// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The selective scan forward on a GPU against the CPU in double.
#include "gpu_selective_scan_problem.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

template <class T>
double error_of(const ScanShape& s) {
  CAPTURE(s.length);
  CAPTURE(s.channels);
  CAPTURE(s.d_state);
  CAPTURE(s.groups_B);
  CAPTURE(s.groups_C);
  const WideProblem<T> want_problem(s);
  const GpuProblem<T> problem(s);
  const auto want = scan::forward(want_problem.inputs(), want_problem.options());
  const auto got = scan::forward(problem.inputs(), problem.options());
  return std::max(norm_error(got.out, want.out), norm_error(got.final_state, want.final_state));
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("selective_scan forward in double and float, any length, width, state and form of B and C") {
    for (Index length : {0, 1, 2, 15, 16, 17, 33, 67})
      for (Index groups_B : {0, 1, 2})
        for (Index groups_C : {0, 1, 3}) {
          CHECK(error_of<double>({.length = length, .d_state = 5, .groups_B = groups_B, .groups_C = groups_C}) < 1e-13);
          CHECK(error_of<float>({.length = length, .d_state = 5, .groups_B = groups_B, .groups_C = groups_C}) < 1e-6);
        }
    for (Index channels : {1, 5, 63, 64, 65, 134})
      for (Index d_state : {1, 8, 16, 17, 32, 33, 32, 64, 65, 150}) {
        CHECK(error_of<double>({.length = 37, .channels = channels, .d_state = d_state}) < 1e-13);
        CHECK(error_of<float>({.length = 37, .channels = channels, .d_state = d_state, .optional = false}) < 1e-6);
      }
    CHECK(error_of<double>({.softplus = false}) < 1e-13);
    CHECK(error_of<double>({.batch = 0}) == 0);
    CHECK(error_of<double>({.channels = 0}) == 0);
  }

  TEST_CASE("selective_scan forward over long sequences: segments") {
    for (Index length : {64, 129, 1500, 4099}) {
      CHECK(error_of<double>({.batch = 1, .length = length, .channels = 70, .d_state = 16}) < 1e-12);
      CHECK(error_of<float>({.batch = 1, .length = length, .channels = 70, .d_state = 16}) < 2e-6);
    }
    CHECK(error_of<double>({.batch = 1, .length = 700, .channels = 5, .d_state = 70, .groups_B = 0}) < 1e-12);
    CHECK(error_of<double>({.batch = 1, .length = 700, .channels = 5, .d_state = 70, .groups_C = 0}) < 1e-12);
  }

  TEST_CASE("selective_scan forward: decay that underflows and steps that vanish") {
    for (double mean : {-30.0, -8.0, 8.0, 300.0}) {
      CAPTURE(mean);
      CHECK(error_of<double>({.length = 70, .dt_mean = mean}) < 1e-12);
      CHECK(error_of<float>({.length = 70, .dt_mean = mean}) < 1e-5);
    }
  }

  TEST_CASE("selective_scan forward in 16 bits rounds what it stores") {
    CHECK(error_of<bfloat16>({.batch = 2, .length = 300, .channels = 256, .d_state = 16}) < 1.8e-3);
    CHECK(error_of<bfloat16>({.batch = 1, .length = 2000, .channels = 64, .d_state = 16}) < 1.8e-3);
    CHECK(error_of<half>({.batch = 2, .length = 300, .channels = 64, .d_state = 16}) < 2.2e-4);
  }

  TEST_CASE_TEMPLATE("selective_scan forward: rows copied in pieces or by numbers, the same bits", T, float, bfloat16) {
    const GpuProblem<T> p({.batch = 2, .length = 83, .channels = 136, .d_state = 16});
    const auto expected = scan::forward(p.inputs(), p.options());
    const Shifted<T, 3> u(p.u), delta(p.delta), z(p.z);
    const Shifted<T, 4> B(p.B), C(p.C);
    auto shifted = p.inputs();
    shifted.u = u.view;
    shifted.delta = delta.view;
    shifted.z = z.view;
    shifted.B = B.view;
    shifted.C = C.view;
    const auto got = scan::forward(shifted, p.options());
    CHECK(same_bits(got.out, expected.out));
    CHECK(same_bits(got.final_state, expected.final_state));
  }

  TEST_CASE("selective_scan forward: strided views, inference, the caller's memory, always the same bits") {
    const ScanShape s{.batch = 2, .length = 83, .channels = 70, .d_state = 16, .groups_B = 2, .groups_C = 2};
    const GpuProblem<float> p(s);
    const auto in = p.inputs();
    const auto expected = scan::forward(in, p.options());
    CHECK(same_bits(expected.out, scan::forward(in, p.options()).out));
    // u and z in one tensor, B and C in another, all off the borders of 16 bytes.
    Tensor<float, 3, cuda> uz({s.batch, s.length, 2 * s.channels + 3}), out(uz.extents());
    Tensor<float, 4, cuda> BC({s.batch, s.length, 2, 2 * s.d_state + 3});
    copy(p.u.view(), uz.view().slice<2>(1, 1 + s.channels));
    copy(p.z.view(), uz.view().slice<2>(1 + s.channels, 1 + 2 * s.channels));
    copy(p.B.view(), BC.view().slice<3>(3, 3 + s.d_state));
    copy(p.C.view(), BC.view().slice<3>(3 + s.d_state, 3 + 2 * s.d_state));
    auto strided = in;
    strided.u = View<const float, 3, cuda>(uz.view().slice<2>(1, 1 + s.channels));
    strided.z = uz.view().slice<2>(1 + s.channels, 1 + 2 * s.channels);
    strided.B = BC.view().slice<3>(3, 3 + s.d_state);
    strided.C = BC.view().slice<3>(3 + s.d_state, 3 + 2 * s.d_state);
    Tensor<float, 3, cuda> final_state(p.initial_state.extents());
    Workspace<cuda> workspace(scan::workspace_bytes(strided, p.options()));
    const auto to_out = out.view().slice<2>(2, 2 + s.channels);
    scan::forward<float>(strided, p.options(), {.out = to_out, .final_state = final_state}, nullptr, workspace);
    Tensor<float, 3, cuda> dense(p.u.extents());
    copy(to_out, dense.view());
    CHECK(same_bits(dense, expected.out));
    CHECK(same_bits(final_state, expected.final_state));
  }
}
