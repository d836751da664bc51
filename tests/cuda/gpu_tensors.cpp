// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Tensors on a GPU, from a .cpp that no CUDA compiler sees.
#include <doctest/doctest.h>

#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;

TEST_CASE("without a GPU the first tensor says so in one sentence") {
  if (cuda_runtime::device_count() > 0) return;
  CHECK_THROWS_WITH_AS((Tensor<float, 1, cuda>({3})), doctest::Contains("cuda: no GPU can be used"), Error);
}

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("a tensor goes there and back unchanged") {
    const auto x = test::random_tensor<float>(Extents{7, 13, 5}, 1);
    CHECK(test::relative_error(to<cpu>(to<cuda>(x)), x) == 0);
    CHECK(to<cpu>(Tensor<float, 2, cuda>({0, 4})).extents() == Extents{0, 4});
  }

  TEST_CASE("copies between strided views and element types agree with the CPU") {
    const auto x = test::random_tensor<float>(Extents{9, 17, 4}, 2);
    const auto there = to<cuda>(x);
    const auto part = [](const auto& t) { return t.template slice<1>(3, 14).template permute<2, 0, 1>(); };
    Tensor<bfloat16, 3, cuda> rounded({4, 9, 11});
    copy(part(there.view()), rounded);
    CHECK(test::relative_error(to<cpu>(rounded), to_tensor<bfloat16>(part(x.view()))) == 0);
    // host to a strided target on the GPU
    Tensor<float, 3, cuda> target({9, 17, 4});
    copy(part(x.view()), part(target.view()));
    const auto back = to<cpu>(target);
    CHECK(test::relative_error(to_tensor(part(back.view())), to_tensor(part(x.view()))) == 0);
    CHECK(back(0, 0, 0) == 0.0f);
  }

  TEST_CASE("memory is reused in the order of a stream, and only there") {
    const cuda_runtime::OwnedStream<> one, two;
    const void* block = nullptr;
    {
      const cuda_runtime::StreamScope on(one);
      block = Tensor<double, 1, cuda>({1000}, 1.0).data();
      CHECK(Tensor<double, 1, cuda>({1000}, 2.0).data() == block);
    }
    const cuda_runtime::StreamScope on(two);
    CHECK(Tensor<double, 1, cuda>({1000}, 3.0).data() != block);
  }

  TEST_CASE("an impossible allocation names sizes and leaves the GPU usable") {
    CHECK_THROWS_WITH_AS((Tensor<float, 1, cuda>::uninitialized({Index{1} << 45})), doctest::Contains("cudaMalloc of"),
                         Error);
    CHECK(to<cpu>(Tensor<float, 1, cuda>({3}, 2.0f))(2) == 2.0f);
  }
}
