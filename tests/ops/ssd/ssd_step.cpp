// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/ssd/ssd_step.hpp"

#include "diffmamba/tensor/copy.hpp"
#include "ops/ssd/ssd_data.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

TEST_CASE_TEMPLATE("ssd: steps are the scan", T, double, float, bfloat16) {
  const Shape shape{3, 9, 4, 5, 2, 19};
  const ssd::Options options{.dt_softplus = true, .dt_min = 0.2, .dt_max = 1.5};
  const Data<T> data(shape, everything_per_channel);
  const auto in = data.inputs();
  const auto [out, final_state, saved] = ssd::forward(in, options);
  const double tolerance = std::is_same_v<T, double> ? 1e-13 : std::is_same_v<T, float> ? 2e-6 : 8e-3;
  const auto tokens = [&](Index begin, Index end) {
    return ssd::StepInputs<T>{.x = in.x.template slice<1>(begin, end),
                              .dt = in.dt.template slice<1>(begin, end),
                              .A = in.A,
                              .B = in.B.template slice<1>(begin, end),
                              .C = in.C.template slice<1>(begin, end),
                              .D_per_channel = in.D_per_channel,
                              .z = in.z.template slice<1>(begin, end),
                              .dt_bias = in.dt_bias};
  };
  auto state = data.initial_state;
  for (Index t = 0; t < shape.length; ++t)
    CHECK(relative_error(ssd::step(tokens(t, t + 1), state, options), to_tensor(out.template slice<1>(t, t + 1))) <
          tolerance);
  CHECK(relative_error(state, final_state) < std::min(tolerance, 2e-6));

  auto several = data.initial_state;
  ssd::step(tokens(0, 4), several, options);
  CHECK(relative_error(ssd::step(tokens(4, 9), several, options), to_tensor(out.template slice<1>(4, 9))) < tolerance);
  CHECK(same_bits(several, state));
}

TEST_CASE("ssd: steps find their slots, and padding touches none") {
  const Shape shape{3, 1, 2, 3, 1, 4};
  const Data<double> data(shape, With{});
  const auto pool = random_tensor<double>(Extents<4>{5, 2, 3, 4}, 20);
  auto slots = pool;
  Tensor<Index, 1> indices({3});
  indices(0) = 4, indices(1) = -1, indices(2) = 1;
  const auto in = data.inputs();
  ssd::StepInputs<double> tokens{.x = in.x, .dt = in.dt, .A = in.A, .B = in.B, .C = in.C, .state_indices = indices};
  const auto out = ssd::step(tokens, slots);
  for (Index slot : {0, 2, 3})
    CHECK(relative_error(to_tensor(slots.select<0>(slot)), to_tensor(pool.select<0>(slot))) == 0.0);
  for (Index h = 0; h < 2; ++h)
    for (Index p = 0; p < 3; ++p) {
      CHECK(out(1, 0, h, p) == 0.0);
      for (Index n = 0; n < 4; ++n) {
        const double dt = std::max(data.dt(0, 0, h), 0.0);
        CHECK(slots(4, h, p, n) == doctest::Approx(std::exp(dt * data.A(h)) * pool(4, h, p, n) +
                                                   dt * data.x(0, 0, h, p) * data.B(0, 0, 0, n)));
      }
    }
  indices(1) = 5;
  CHECK_THROWS_WITH_AS(ssd::step(tokens, slots), "ssd::step: state_indices(1) is 5, expected -1 or a slot below 5",
                       Error);
}
