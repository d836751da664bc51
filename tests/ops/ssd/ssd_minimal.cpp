// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/ssd/ssd_minimal.hpp"

#include "support/gradient_check.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

template <class T>
struct Data {
  Tensor<T, 4> x, B, C, dout;
  Tensor<T, 3> A;
  Tensor<T, 4> initial_state, dfinal_state;

  Data(Index batch, Index length, Index nheads, Index headdim, Index ngroups, Index d_state) {
    x = dout = random_tensor<T>(Extents{batch, length, nheads, headdim}, 1);
    dout = random_tensor<T>(x.extents(), 2);
    A = random_tensor<T>(Extents{batch, length, nheads}, 3);
    for (T& a : A) a = -std::abs(a);
    B = random_tensor<T>(Extents{batch, length, ngroups, d_state}, 4);
    C = random_tensor<T>(Extents{batch, length, ngroups, d_state}, 5);
    initial_state = random_tensor<T>(Extents{batch, nheads, headdim, d_state}, 6);
    dfinal_state = random_tensor<T>(initial_state.extents(), 7);
  }
  ssd::minimal::Inputs<T> inputs() const { return {.x = x, .A = A, .B = B, .C = C, .initial_state = initial_state}; }
};

/// S_t = exp(A_t) S_{t-1} + x_t B_t^T; y_t = S_t C_t; the largest error of out and final_state.
template <class T>
double error_of(const Data<T>& data, const ssd::minimal::Outputs<T>& got) {
  Tensor<double, 4> out(data.x.extents()), state(data.initial_state.extents());
  const Index per_group = data.x.extent(2) / data.B.extent(2);
  for (Index b = 0; b < state.extent(0); ++b)
    for (Index h = 0; h < state.extent(1); ++h)
      for (Index p = 0; p < state.extent(2); ++p) {
        for (Index n = 0; n < state.extent(3); ++n) state(b, h, p, n) = data.initial_state(b, h, p, n);
        for (Index t = 0; t < out.extent(1); ++t)
          for (Index n = 0; n < state.extent(3); ++n) {
            const Index g = h / per_group;
            double& s = state(b, h, p, n);
            s = std::exp(static_cast<double>(data.A(b, t, h))) * s +
                static_cast<double>(data.x(b, t, h, p)) * static_cast<double>(data.B(b, t, g, n));
            out(b, t, h, p) += s * static_cast<double>(data.C(b, t, g, n));
          }
      }
  return std::max(relative_error(got.out, out), relative_error(got.final_state, state));
}

}  // namespace

TEST_CASE("ssd::minimal: forward is the recurrence") {
  for (Index block_len : {1, 4, 64})
    for (Index length : {1, 12, 71}) {
      const Data<double> data(2, length, 3, 5, 3, 4);
      CHECK(error_of(data, ssd::minimal::forward(data.inputs(), {.block_len = block_len})) < 1e-13);
      const Data<float> single(1, length, 4, 18, 2, 17);
      CHECK(error_of(single, ssd::minimal::forward(single.inputs(), {.block_len = block_len})) < 3e-6);
    }
}

TEST_CASE("ssd::minimal: the gradient of every input is that of central differences") {
  Data<double> data(2, 21, 4, 3, 2, 5);
  const ssd::minimal::Options options{.block_len = 8};
  const auto loss = [&] {
    const auto [out, final_state, saved] = ssd::minimal::forward(data.inputs(), options);
    return dot(data.dout, out) + dot(data.dfinal_state, final_state);
  };
  const auto saved = ssd::minimal::forward(data.inputs(), options).saved;
  const auto d = ssd::minimal::backward(data.inputs(), saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});
  check_gradient("x", data.x, d.dx, loss, 1e-7);
  check_gradient("A", data.A, d.dA, loss, 1e-7);
  check_gradient("B", data.B, d.dB, loss, 1e-7);
  check_gradient("C", data.C, d.dC, loss, 1e-7);
  check_gradient("initial_state", data.initial_state, d.dinitial_state, loss, 1e-7);
}

TEST_CASE("ssd::minimal: one sentence for every mistake") {
  const Data<double> data(1, 4, 2, 3, 2, 5);
  const Tensor<double, 3> other({1, 3, 2});
  auto in = data.inputs();
  in.A = other;
  CHECK_THROWS_WITH_AS(ssd::minimal::forward(in), "ssd::minimal: A has the shape (1, 3, 2), expected (1, 4, 2)", Error);
  CHECK_THROWS_WITH_AS(ssd::minimal::forward(data.inputs(), {.block_len = 0}),
                       "ssd::minimal: block_len is 0, expected 1 or more", Error);
}
