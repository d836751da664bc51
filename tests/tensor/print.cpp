// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/tensor/print.hpp"

#include <doctest/doctest.h>

#include <sstream>

using namespace diffmamba;

namespace {
template <class X>
std::string text(const X& x) {
  std::ostringstream out;
  out << x;
  return out.str();
}
}  // namespace

TEST_CASE("tensors and views print as in NumPy") {
  Tensor<float, 2> x({2, 3});
  for (Index i = 0; i < 6; ++i) x.data()[i] = static_cast<float>(i) * 1.5f;
  CHECK(text(x) == "(2, 3) float32\n[[  0, 1.5,   3],\n [4.5,   6, 7.5]]");
  CHECK(text(x.view().permute<1, 0>()) == "(3, 2) float32\n[[  0, 4.5],\n [1.5,   6],\n [  3, 7.5]]");
  CHECK(text(Tensor<bfloat16, 1>({2}, bfloat16(0.5f))) == "(2) bfloat16\n[0.5, 0.5]");
  CHECK(text(Tensor<std::int32_t, 0>({}, 7)) == "() int32\n7");
  CHECK(text(Tensor<bool, 1>({2}, true)) == "(2) bool\n[true, true]");
  CHECK(text(Tensor<double, 2>({2, 0})) == "(2, 0) float64\n[[],\n []]");
  CHECK(text(Tensor<double, 3>({2, 1, 2}, 1.0)) == "(2, 1, 2) float64\n[[[1, 1]],\n\n [[1, 1]]]");
  CHECK(text(View<const float, 3>()) == "(absent tensor of rank 3)");
}

TEST_CASE("large tensors are shortened") {
  Tensor<float, 1> x({2000});
  for (Index i = 0; i < 2000; ++i) x(i) = static_cast<float>(i);
  CHECK(text(x) == "(2000) float32\n[   0,    1,    2, ..., 1997, 1998, 1999]");
  Tensor<float, 2> y({500, 4}, 1.0f);
  CHECK(text(y) ==
        "(500, 4) float32\n[[1, 1, 1, 1],\n [1, 1, 1, 1],\n [1, 1, 1, 1],\n ...,\n [1, 1, 1, 1],\n [1, 1, 1, 1],\n [1, "
        "1, 1, 1]]");
}
