// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD forward on a GPU against the CPU, in double; bfloat16 on tensor cores within its rounding.
#include <doctest/doctest.h>

#include <cmath>
#include <utility>

#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;

namespace {

struct Case {
  Index batch, length, nheads, headdim, ngroups, d_state;
  bool gate, initial;
};

/// Inputs rounded to T, in the type W.
template <class T, class W>
struct Data {
  Tensor<W, 4> x, B, C, z;
  Tensor<W, 3> dt;
  Tensor<accumulate_t<W>, 1> A, D, dt_bias;
  Tensor<accumulate_t<W>, 4> initial_state;

  explicit Data(const Case& c) {
    const auto rounded = [](const auto& tensor) { return to_tensor<W>(to_tensor<T>(tensor.view()).view()); };
    x = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.nheads, c.headdim}, 1));
    B = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.ngroups, c.d_state}, 2));
    C = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.ngroups, c.d_state}, 3));
    z = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.nheads, c.headdim}, 4));
    dt = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.nheads}, 5, 1.0, -2.0));
    A = test::random_tensor<accumulate_t<W>>(Extents<1>{c.nheads}, 6, 0.3, -1.0);
    D = test::random_tensor<accumulate_t<W>>(Extents<1>{c.nheads}, 7);
    dt_bias = test::random_tensor<accumulate_t<W>>(Extents<1>{c.nheads}, 8, 0.5);
    initial_state = test::random_tensor<accumulate_t<W>>(Extents{c.batch, c.nheads, c.headdim, c.d_state}, 9);
  }
};

constexpr ssd::Options options{.dt_softplus = true};

/// out and final state in double, from the CPU.
template <class T>
auto on_cpu(const Data<T, double>& d, const Case& c) {
  ssd::Inputs<double> in{.x = d.x, .dt = d.dt, .A = d.A, .B = d.B, .C = d.C, .D = d.D, .dt_bias = d.dt_bias};
  if (c.gate) in.z = d.z;
  if (c.initial) in.initial_state = d.initial_state;
  return ssd::forward(in, options);
}

template <class T>
auto on_gpu(const Data<T, T>& d, const Case& c) {
  const auto x = to<cuda>(d.x), B = to<cuda>(d.B), C = to<cuda>(d.C), z = to<cuda>(d.z);
  const auto dt = to<cuda>(d.dt);
  const auto A = to<cuda>(d.A), D = to<cuda>(d.D), dt_bias = to<cuda>(d.dt_bias);
  const auto initial_state = to<cuda>(d.initial_state);
  ssd::Inputs<T, cuda> in{.x = x, .dt = dt, .A = A, .B = B, .C = C, .D = D, .dt_bias = dt_bias};
  if (c.gate) in.z = z;
  if (c.initial) in.initial_state = initial_state;
  const auto [out, state, saved] = ssd::forward(in, options);
  return std::pair(to<cpu>(out), to<cpu>(state));
}

/// ||got - want|| / ||want||
template <class A, class B>
double norm_error(const A& got, const B& want) {
  double error = 0, norm = 0;
  for (Index i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want.data()[i]), g = static_cast<double>(got.data()[i]);
    error += (g - w) * (g - w);
    norm += w * w;
  }
  return std::sqrt(error / (norm > 0 ? norm : 1.0));
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("the recurrence in double equals the CPU's chunks, any sizes") {
    for (const Case& c : {Case{2, 67, 4, 5, 2, 7, true, true}, Case{1, 1, 3, 64, 1, 16, false, false},
                          Case{1, 130, 2, 33, 1, 40, false, true}, Case{2, 0, 2, 8, 1, 8, true, true}}) {
      CAPTURE(c.length);
      const Data<double, double> data(c);
      const auto want = on_cpu(data, c);
      const auto [out, state] = on_gpu(data, c);
      CHECK(test::relative_error(out, want.out) < 1e-12);
      CHECK(test::relative_error(state, want.final_state) < 1e-12);
    }
  }

  TEST_CASE("bfloat16 on tensor cores errs by little more than the rounding of its output, and always the same") {
    for (const Case& c : {Case{2, 200, 4, 64, 2, 64, true, true}, Case{1, 1, 2, 64, 1, 128, false, false},
                          Case{2, 509, 8, 64, 1, 64, false, true}, Case{1, 4096, 4, 64, 1, 128, true, true}}) {
      CAPTURE(c.length);
      const auto want = on_cpu(Data<bfloat16, double>(c), c);
      const Data<bfloat16, bfloat16> data(c);
      const auto [out, state] = on_gpu(data, c);
      CHECK(norm_error(out, want.out) < 2.5e-3);  // rounding alone is 1.66e-3
      CHECK(norm_error(state, want.final_state) < 2.5e-3);
      const auto again = on_gpu(data, c);
      CHECK(test::relative_error(again.first, out) == 0);
      CHECK(test::relative_error(again.second, state) == 0);
    }
  }
}
