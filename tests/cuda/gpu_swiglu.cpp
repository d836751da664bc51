// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// swiglu on a GPU against the CPU in double.
#include <doctest/doctest.h>

#include "diffmamba/ops/swiglu/swiglu_backward.hpp"
#include "diffmamba/ops/swiglu/swiglu_forward.hpp"
#include "support/on_both.hpp"

using namespace diffmamba;
using diffmamba::test::norm_error;
using diffmamba::test::OnBoth;
using diffmamba::test::output_tolerance;

namespace {

/// z and x are slices of one tensor, from `begin` on; dx may lie over dout.
template <class T>
void check(Index length, Index channels, Index begin) {
  INFO("length ", length, ", channels ", channels, ", begin ", begin, ", bytes ", sizeof(T));
  const OnBoth<T, 3> both({2, length, begin + 2 * channels}, 1), dout({2, length, channels}, 2);
  const swiglu::Inputs<double> host{.x = both.exact_slice(begin + channels, begin + 2 * channels),
                                    .z = both.exact_slice(begin, begin + channels)};
  const swiglu::Inputs<T, cuda> in{.x = both.device_slice(begin + channels, begin + 2 * channels),
                                   .z = both.device_slice(begin, begin + channels)};
  CHECK(norm_error(swiglu::forward(in), swiglu::forward(host)) < output_tolerance<T>(swiglu::forward(host).size()));
  const auto dwant = swiglu::backward(host, dout.exact);
  const auto d = swiglu::backward(in, dout.device);
  CHECK(norm_error(d.dx, dwant.dx) < output_tolerance<T>(dwant.dx.size()));
  CHECK(norm_error(d.dz, dwant.dz) < output_tolerance<T>(dwant.dz.size()));
  auto dx = dout.device;
  swiglu::backward(in, dx, {.dx = dx});
  CHECK(test::same_bits(dx, d.dx));
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("swiglu equals the CPU's") {
    for (Index begin : {0, 3})
      for (Index channels : {1, 37, 256})
        for (Index length : {0, 1, 300}) {
          check<float>(length, channels, begin);
          check<double>(length, channels, begin);
          check<bfloat16>(length, channels, begin);
        }
  }
}
