// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Dropout on a GPU: the mask of the CPU, bit for bit.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "diffmamba/ops/dropout/dropout_backward.hpp"
#include "diffmamba/ops/dropout/dropout_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;

namespace {

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("the same elements fall", T, double, float, bfloat16, half) {
    for (const Index length : {0, 1, 7, 64, 131, 100003}) {
      CAPTURE(length);
      const auto x = test::random_tensor<T>(Extents{3, length}, 1);
      const auto gpu = to<cuda>(x);
      for (const double p : {0.0, 0.3, 1.0}) {
        const dropout::Options options{.p = p, .random = Philox{42, 7}};
        CHECK(same_bits(to<cpu>(dropout::forward(gpu, options)), dropout::forward(x, options)));
      }
      const dropout::Options options{.p = 0.5, .random = Philox{3}};
      auto in_place = gpu;
      dropout::backward(std::as_const(in_place).view(), options, in_place.view());
      CHECK(same_bits(to<cpu>(in_place), dropout::backward(x, options)));
    }
    // Strided, with its first row not aligned.
    const auto x = test::random_tensor<T>(Extents{5, 4, 33}, 1);
    const auto gpu = to<cuda>(x);
    const dropout::Options options{.p = 0.2, .random = Philox{9}};
    Tensor<T, 3> want({4, 5, 31});
    dropout::forward(x.template slice<2>(1, 32).template permute<1, 0, 2>(), options, want.view());
    Tensor<T, 3, cuda> got({4, 5, 31});
    dropout::forward(gpu.template slice<2>(1, 32).template permute<1, 0, 2>(), options, got.view());
    CHECK(same_bits(to<cpu>(got), want));
  }

  TEST_CASE("the number of the step is read where the mask is drawn") {
    const auto x = test::random_tensor<float>(Extents<1>{1000}, 1);
    const auto gpu = to<cuda>(x);
    const auto number = to<cuda>(Tensor<std::int64_t, 1>({1}, 17));
    const StepRandom random = StepRandom(Philox{5}, reinterpret_cast<const std::uint64_t*>(number.data())).child(3);
    const auto want = dropout::forward(x, {.p = 0.3, .random = Philox{5}.child(17).child(3)});
    CHECK(same_bits(to<cpu>(dropout::forward(gpu, {.p = 0.3, .random = random})), want));
  }
}
