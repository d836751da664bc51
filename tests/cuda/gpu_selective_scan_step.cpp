// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// One token at a time on a GPU against the CPU in double, and against the scan.
#include "diffmamba/ops/selective_scan/selective_scan_step.hpp"

#include "gpu_selective_scan_problem.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

/// Errors of the outputs of all tokens, by steps, and of the final state.
template <class T>
double error_of_steps(const ScanShape& s) {
  const WideProblem<T> wide(s);
  const GpuProblem<T> p(s);
  const auto want = scan::forward(wide.inputs(), wide.options());
  Tensor<T, 3, cuda> out(p.u.extents());
  auto state = p.initial_state;
  for (Index t = 0; t < s.length; ++t) {
    const auto token = scan::step<T, cuda>({.u = p.u.view().template select<1>(t),
                                            .delta = p.delta.view().template select<1>(t),
                                            .A = p.A,
                                            .B = p.B.view().template select<1>(t),
                                            .C = p.C.view().template select<1>(t),
                                            .D = p.D_skip,
                                            .z = p.z.view().template select<1>(t),
                                            .delta_bias = p.delta_bias},
                                           state, p.options());
    copy(token.view(), out.view().template select<1>(t));
  }
  return std::max(norm_error(out, want.out), norm_error(state, want.final_state));
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("selective_scan::step: as many steps as tokens are one scan") {
    for (Index channels : {2, 70, 512})
      for (Index d_state : {1, 8, 16, 19, 64, 200}) {
        CAPTURE(channels);
        CAPTURE(d_state);
        CHECK(error_of_steps<double>({.channels = channels, .d_state = d_state, .groups_B = 2, .groups_C = 2}) < 1e-13);
        CHECK(error_of_steps<float>({.channels = channels, .d_state = d_state}) < 1e-6);
      }
    CHECK(error_of_steps<bfloat16>({.channels = 512, .d_state = 16}) < 1.8e-3);
    CHECK(error_of_steps<half>({.channels = 512, .d_state = 16}) < 2.2e-4);
  }

  TEST_CASE("selective_scan::step: heads tied by strides of zero; rows choose their slots, padding touches none") {
    const Index batch = 3, nheads = 4, headdim = 5, d_state = 8, groups = 2, slots = 6;
    const auto x = random_tensor<double, 3>({batch, nheads, headdim}, 1);
    const auto dt = random_tensor<double, 2>({batch, nheads}, 3);
    auto A = random_tensor<double, 1>({nheads}, 4);
    for (double& a : A) a = -std::abs(a) - 0.1;
    const auto B = random_tensor<double, 3>({batch, groups, d_state}, 5),
               C = random_tensor<double, 3>({batch, groups, d_state}, 6);
    const auto state = random_tensor<double, 4>({slots, nheads, headdim, d_state}, 9);
    Tensor<Index, 1> indices({batch});
    indices(0) = 4, indices(1) = -1, indices(2) = 1;
    const auto run = [&]<class D>(D) {
      const auto x_d = to<D>(x), B_d = to<D>(B), C_d = to<D>(C);
      const auto dt_d = to<D>(dt);
      const auto A_d = to<D>(A);
      const auto indices_d = to<D>(indices);
      auto state_d = to<D>(state);
      const scan::HeadStepInputs<double, D> in{
          .x = x_d,
          .dt = View<const double, 3, D>(dt_d.data(), {batch, nheads, headdim}, {nheads, Index{1}, Index{0}}),
          .A = View<const double, 3, D>(A_d.data(), {nheads, headdim, d_state}, {Index{1}, Index{0}, Index{0}}),
          .B = B_d,
          .C = C_d,
          .state_batch_indices = indices_d};
      auto out = scan::step<double, D>(in, state_d, {.delta_softplus = true});
      return std::pair(to<cpu>(out), to<cpu>(state_d));
    };
    const auto want = run(cpu{}), got = run(cuda{});
    CHECK(relative_error(got.first, want.first) < 1e-14);
    CHECK(relative_error(got.second, want.second) < 1e-14);
    for (Index h = 0; h < nheads; ++h) CHECK(got.first(1, h, 0) == 0.0);
  }
}
