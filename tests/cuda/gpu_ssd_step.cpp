// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD's decoding on a GPU against the CPU in double, and against the scan.
#include <doctest/doctest.h>

#include <utility>

#include "diffmamba/ops/ssd/ssd_step.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "ops/ssd/ssd_data.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

constexpr Shape many_rows{9, 1, 64, 63, 1, 128};
constexpr ssd::Options options{.dt_softplus = true, .dt_min = 0.05, .dt_max = 1.5};

template <class T>
Tensor<double, 4> wide(const Tensor<T, 4>& tensor) {
  return to_tensor<double>(tensor.view());
}
template <class W, class T, int Rank>
Tensor<W, Rank> converted(const Tensor<T, Rank>& tensor) {
  return tensor ? to_tensor<W>(tensor.view()) : Tensor<W, Rank>();
}

/// The same numbers in double.
template <class T>
Data<double> in_double(const Data<T>& d, const Shape& shape) {
  Data<double> result(shape, With{});
  result.x = converted<double>(d.x), result.dt = converted<double>(d.dt), result.A = converted<double>(d.A);
  result.B = converted<double>(d.B), result.C = converted<double>(d.C), result.D = converted<double>(d.D);
  result.D_per_channel = converted<double>(d.D_per_channel), result.z = converted<double>(d.z);
  result.dt_bias = converted<double>(d.dt_bias), result.initial_state = converted<double>(d.initial_state);
  return result;
}

/// Copies of the operands on the GPU, and the inputs of `count` tokens from `begin` on.
template <class T>
struct OnGpu {
  Tensor<T, 4, cuda> x, B, C, z;
  Tensor<T, 3, cuda> dt;
  Tensor<accumulate_t<T>, 1, cuda> A, D, dt_bias;
  Tensor<accumulate_t<T>, 2, cuda> D_per_channel;

  explicit OnGpu(const Data<T>& d)
      : x(to<cuda>(d.x)), B(to<cuda>(d.B)), C(to<cuda>(d.C)), dt(to<cuda>(d.dt)), A(to<cuda>(d.A)) {
    if (d.z) z = to<cuda>(d.z);
    if (d.D) D = to<cuda>(d.D);
    if (d.dt_bias) dt_bias = to<cuda>(d.dt_bias);
    if (d.D_per_channel) D_per_channel = to<cuda>(d.D_per_channel);
  }
  ssd::StepInputs<T, cuda> tokens(Index begin, Index end) const {
    ssd::StepInputs<T, cuda> in{.x = x.view().template slice<1>(begin, end),
                                .dt = dt.view().template slice<1>(begin, end),
                                .A = A,
                                .B = B.view().template slice<1>(begin, end),
                                .C = C.view().template slice<1>(begin, end)};
    if (D) in.D = D;
    if (D_per_channel) in.D_per_channel = D_per_channel;
    if (z) in.z = z.view().template slice<1>(begin, end);
    if (dt_bias) in.dt_bias = dt_bias;
    return in;
  }
};

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("steps on a GPU are those of the CPU in double", T, double, float, bfloat16, half) {
    const double tolerance = std::is_same_v<T, double>     ? 1e-13
                             : std::is_same_v<T, float>    ? 2e-6
                             : std::is_same_v<T, bfloat16> ? 4e-3
                                                           : 6e-4;
    const double state_tolerance = std::is_same_v<T, double> ? 1e-13 : 2e-6;
    for (const Shape& shape : {Shape{3, 5, 4, 7, 2, 19}, Shape{2, 3, 4, 64, 1, 128}, Shape{33, 2, 5, 64, 1, 64},
                               Shape{9, 1, 8, 63, 2, 128}, Shape{1, 4, 3, 33, 3, 16}, Shape{2, 2, 2, 9, 1, 32},
                               Shape{0, 1, 2, 4, 1, 8}, Shape{2, 0, 2, 4, 1, 16}, many_rows})
      for (const With& with : {everything, everything_per_channel, With{}}) {
        if (shape.nheads == many_rows.nheads && !(with.D_per_channel && std::is_same_v<T, bfloat16>)) continue;  // slow
        CAPTURE(shape.batch);
        CAPTURE(shape.d_state);
        const Data<T> data(shape, with);
        const Data<double> exact = in_double(data, shape);
        auto state =
            random_tensor<accumulate_t<T>>(Extents{shape.batch, shape.nheads, shape.headdim, shape.d_state}, 20);
        auto want_state = converted<double>(state);
        const auto want = ssd::step(ssd::step_inputs(exact.inputs()), want_state, options);
        const OnGpu<T> operands(data);
        auto gpu_state = to<cuda>(state), again = to<cuda>(state);
        const auto out = ssd::step(operands.tokens(0, shape.length), gpu_state.view(), options);
        CHECK(relative_error(wide(to<cpu>(out)), want) < tolerance);
        CHECK(relative_error(converted<double>(to<cpu>(gpu_state)), want_state) < state_tolerance);
        if (shape.length < 2) continue;
        // One token after another: the same bits, as is the same call again.
        for (Index t = 0; t < shape.length; ++t)
          CHECK(same_bits(to<cpu>(ssd::step(operands.tokens(t, t + 1), again.view(), options)),
                          to_tensor(to<cpu>(out).view().template slice<1>(t, t + 1))));
        CHECK(same_bits(to<cpu>(again), to<cpu>(gpu_state)));
      }
  }

  TEST_CASE("states of 16 bits: a step is one of float states, rounded; many stay close") {
    for (const Shape& shape : {Shape{2, 1, 4, 64, 1, 128}, Shape{40, 1, 16, 64, 2, 64}, Shape{3, 1, 8, 63, 1, 32},
                               Shape{5, 1, 2, 9, 1, 16}, Shape{2, 1, 4, 7, 2, 19}, Shape{2, 200, 4, 64, 1, 128}}) {
      CAPTURE(shape.d_state);
      CAPTURE(shape.length);
      const Data<bfloat16> data(shape, everything);
      const OnGpu<bfloat16> operands(data);
      const Extents<4> states{shape.batch, shape.nheads, shape.headdim, shape.d_state};
      auto narrow = to<cuda>(to_tensor<bfloat16>(random_tensor<float>(states, 20).view()));
      auto wide_state = to_tensor<float>(std::as_const(narrow).view());
      auto again = narrow;
      const auto in = operands.tokens(0, shape.length);
      auto out = Tensor<bfloat16, 4, cuda>::uninitialized(in.x.extents()), repeated = out, want = out;
      for (Index t = 0; t < shape.length; ++t) {
        const auto one = operands.tokens(t, t + 1);
        ssd::step(one, narrow.view(), options, out.view().slice<1>(t, t + 1));
        ssd::step(one, again.view(), options, repeated.view().slice<1>(t, t + 1));
        ssd::step(one, wide_state.view(), options, want.view().slice<1>(t, t + 1));
      }
      CHECK(relative_error(wide(to<cpu>(out)), wide(to<cpu>(want))) < (shape.length > 1 ? 2e-2 : 4e-3));
      CHECK(relative_error(wide(to<cpu>(narrow)), converted<double>(to<cpu>(wide_state))) <
            (shape.length > 1 ? 2e-2 : 4e-3));
      CHECK(same_bits(to<cpu>(out), to<cpu>(repeated)));
      CHECK(same_bits(to<cpu>(narrow), to<cpu>(again)));
    }
  }

  TEST_CASE_TEMPLATE("steps on a GPU find their slots, and padding touches none", T, float, double) {
    for (const Index d_state : {Index{64}, Index{6}}) {
      const Shape shape{3, 1, 2, 5, 1, d_state};
      const Data<T> data(shape, With{});
      const auto pool = random_tensor<T>(Extents<4>{5, 2, 5, d_state}, 20);
      auto slots = pool;
      auto gpu_slots = to<cuda>(pool);
      Tensor<Index, 1> indices({3});
      indices(0) = 4, indices(1) = -1, indices(2) = 1;
      const auto gpu_indices = to<cuda>(indices);
      auto in = ssd::step_inputs(data.inputs());
      in.state_indices = indices;
      const OnGpu<T> operands(data);
      auto gpu_in = operands.tokens(0, 1);
      gpu_in.state_indices = gpu_indices;
      const auto want = ssd::step(in, slots, options);
      const auto out = to<cpu>(ssd::step(gpu_in, gpu_slots.view(), options));
      CHECK(relative_error(out, want) < 2e-6);
      CHECK(relative_error(to<cpu>(gpu_slots), slots) < 2e-6);
      for (Index slot : {0, 2, 3})
        CHECK(same_bits(to_tensor(to<cpu>(gpu_slots).view().template select<0>(slot)),
                        to_tensor(pool.view().template select<0>(slot))));
      for (Index p = 0; p < 5; ++p) CHECK(out(1, 0, 0, p) == T(0));
    }
  }
}
