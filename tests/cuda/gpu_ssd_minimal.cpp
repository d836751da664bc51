// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The reference form of SSD and segment sums on a GPU against the CPU in double.
#include <doctest/doctest.h>

#include <cmath>

#include "diffmamba/ops/ssd/segsum.hpp"
#include "diffmamba/ops/ssd/ssd_minimal.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("ssd::minimal on a GPU is that of the CPU in double", T, double, float) {
    const double tolerance = std::is_same_v<T, double> ? 1e-11 : 2e-5;
    struct Shape {
      Index batch, length, nheads, headdim, ngroups, d_state;
    };
    for (const Shape& s : {Shape{2, 70, 4, 5, 2, 7}, Shape{1, 1, 2, 8, 1, 16}, Shape{2, 131, 3, 33, 1, 20},
                           Shape{1, 0, 2, 4, 1, 4}, Shape{1, 40, 2, 3, 2, 130}})
      for (const bool initial : {false, true}) {
        CAPTURE(s.length);
        const auto x = random_tensor<double>(Extents{s.batch, s.length, s.nheads, s.headdim}, 1);
        const auto dout = random_tensor<double>(x.extents(), 2);
        auto A = random_tensor<double>(Extents{s.batch, s.length, s.nheads}, 3);
        for (double& a : A) a = -std::abs(a);
        const auto B = random_tensor<double>(Extents{s.batch, s.length, s.ngroups, s.d_state}, 4);
        const auto C = random_tensor<double>(B.extents(), 5);
        const auto initial_state = random_tensor<double>(Extents{s.batch, s.nheads, s.headdim, s.d_state}, 6);
        const auto dfinal_state = random_tensor<double>(initial_state.extents(), 7);
        ssd::minimal::Inputs<double> in{.x = x, .A = A, .B = B, .C = C};
        if (initial) in.initial_state = initial_state;
        const auto [out, final_state, saved] = ssd::minimal::forward(in, {.block_len = 16});
        const auto d = ssd::minimal::backward(in, saved, {.dout = dout, .dfinal_state = dfinal_state});

        const auto moved = [](const auto& tensor) { return to<cuda>(to_tensor<T>(tensor.view())); };
        const auto gx = moved(x), gB = moved(B), gC = moved(C), gstate = moved(initial_state), gdout = moved(dout);
        const auto gdfinal = moved(dfinal_state);
        const auto gA = moved(A);
        ssd::minimal::Inputs<T, cuda> gin{.x = gx, .A = gA, .B = gB, .C = gC};
        if (initial) gin.initial_state = gstate;
        const auto got = ssd::minimal::forward(gin, {.block_len = 16});
        const auto gd = ssd::minimal::backward(gin, got.saved, {.dout = gdout, .dfinal_state = gdfinal});
        const auto check = [&](const auto& gpu, const auto& want) {
          CHECK(relative_error(to_tensor<double>(to<cpu>(gpu).view()), want) < tolerance);
        };
        check(got.out, out);
        check(got.final_state, final_state);
        check(gd.dx, d.dx);
        check(gd.dA, d.dA);
        check(gd.dB, d.dB);
        check(gd.dC, d.dC);
        if (initial) check(gd.dinitial_state, d.dinitial_state);
      }
  }

  TEST_CASE_TEMPLATE("segment sums on a GPU are those of the CPU", T, double, float) {
    for (const Index length : {0, 1, 9, 67, 200}) {
      CAPTURE(length);
      const auto x = random_tensor<T>(Extents{Index{3}, length}, 1);
      const auto gpu = to<cuda>(x);
      const auto want = ssd::segsum::forward(View<const T, 2>(x.view()));
      const auto got = to<cpu>(ssd::segsum::forward(View<const T, 2, cuda>(gpu.view())));
      bool same = true;
      for (Index i = 0; i < want.size(); ++i)
        same = same && (want.data()[i] == got.data()[i] ||
                        std::abs(want.data()[i] - got.data()[i]) <= T(1e-5) * std::abs(want.data()[i]));
      CHECK(same);
      const auto dout = random_tensor<T>(want.extents(), 2);
      const auto gdout = to<cuda>(dout);
      CHECK(relative_error(to<cpu>(ssd::segsum::backward(View<const T, 3, cuda>(gdout.view()))),
                           ssd::segsum::backward(View<const T, 3>(dout.view()))) <
            (std::is_same_v<T, double> ? 1e-12 : 1e-5));
    }
  }
}
