// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/tensor/view.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "diffmamba/tensor/copy.hpp"
#include "diffmamba/tensor/tensor.hpp"

using namespace diffmamba;

namespace {
Tensor<float, 3> counted() {
  Tensor<float, 3> x({2, 3, 4});
  std::iota(x.begin(), x.end(), 0.0f);
  return x;
}
}  // namespace

TEST_CASE("views are trivially copyable, convert to reading ones, and may be absent") {
  static_assert(std::is_trivially_copyable_v<View<float, 3>>);
  static_assert(std::is_convertible_v<View<float, 2>, View<const float, 2>>);
  static_assert(!std::is_convertible_v<View<const float, 2>, View<float, 2>>);
  static_assert(!std::is_default_constructible_v<RequiredView<const float, 1>>);
  CHECK(!View<float, 2>());
  CHECK(Tensor<float, 2>({0, 3}).view());
  CHECK(!Tensor<float, 2>().view());
}

TEST_CASE("slice, select, permute") {
  auto x = counted();
  const auto s = x.slice<1>(1, 3);
  CHECK(s.extents() == Extents{2, 2, 4});
  CHECK(s(1, 1, 3) == x(1, 2, 3));
  CHECK(!s.contiguous());
  CHECK(x.slice<0>(1, 2).contiguous());
  const auto t = x.select<1>(2);
  CHECK(t.extents() == Extents{2, 4});
  CHECK(t(1, 3) == x(1, 2, 3));
  const auto p = x.view().permute<2, 0, 1>();
  CHECK(p.extents() == Extents{4, 2, 3});
  CHECK(p(3, 1, 2) == x(1, 2, 3));
  CHECK(&p(3, 1, 2) == p.pointer(3, 1, 2));
  CHECK(x.slice<2>(2, 2).size() == 0);
  CHECK_THROWS_WITH_AS((void)x.slice<1>(2, 4), "slice: [2, 4) of axis 1 of a tensor (2, 3, 4)", Error);
  CHECK_THROWS_WITH_AS((void)x.slice<1>(-1, 2), "slice: [-1, 2) of axis 1 of a tensor (2, 3, 4)", Error);
  CHECK_THROWS_WITH_AS((void)x.select<2>(4), "select: index 4 of axis 2 of a tensor (2, 3, 4)", Error);
}

TEST_CASE("reshape: every way to split and merge that needs no copy") {
  auto x = counted();
  CHECK(x.reshape(Extents{6, 4})(5, 3) == 23.0f);
  CHECK(x.reshape(Extents{24})(17) == 17.0f);
  CHECK(x.reshape(Extents{1, 24, 1})(0, 17, 0) == 17.0f);
  // A strided view: axes that lie behind one another merge, others are refused.
  const auto s = x.slice<0>(0, 2).slice<2>(0, 2);  // (2, 3, 2), strides (12, 4, 1)
  const auto merged = s.reshape(Extents{6, 2});
  CHECK(merged.stride(0) == 4);
  CHECK(merged(5, 1) == x(1, 2, 1));
  const auto split = s.reshape(Extents{2, 3, 2, 1});
  CHECK(split(1, 2, 1, 0) == x(1, 2, 1));
  CHECK_THROWS_WITH_AS((void)s.reshape(Extents{12}),
                       "reshape: a strided tensor (2, 3, 2) cannot be seen as (12) without a copy", Error);
  CHECK_THROWS_WITH_AS((void)x.reshape(Extents{5, 5}), "reshape: a tensor (2, 3, 4) cannot have the sizes (5, 5)",
                       Error);
  // Against indexing, for every split of the columns of a strided matrix.
  Tensor<float, 2> wide({6, 30});
  std::iota(wide.begin(), wide.end(), 0.0f);
  const auto columns = wide.slice<1>(3, 27);  // (6, 24)
  for (const Index a : {1, 2, 3, 4, 6, 8, 12, 24})
    for (const Index b : {1, 2, 3, 6}) {
      const auto r = columns.reshape(Extents{b, 6 / b, 24 / a, a});
      for (Index i = 0; i < 6; ++i)
        for (Index j = 0; j < 24; ++j) CHECK(r(i / (6 / b), i % (6 / b), j / a, j % a) == columns(i, j));
    }
}

TEST_CASE("a tensor of more than 2^32 elements is an ordinary tensor: addresses only") {
  // Nothing is allocated or read: the arithmetic of addresses is what is looked at.
  const auto base = reinterpret_cast<float*>(std::uintptr_t{1} << 40);
  const Index n = Index{1} << 33;
  const View<float, 3> huge(base, {4, 3, n});
  CHECK(huge.size() == 12 * n);
  CHECK(huge.stride(0) == 3 * n);
  const auto address = [](const float* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const std::uintptr_t last = (std::uintptr_t{1} << 40) + static_cast<std::uintptr_t>(12 * n - 1) * 4;
  CHECK(address(huge.pointer(3, 2, n - 1)) == last);
  CHECK(address(huge.select<0>(3).slice<1>(n - 5, n).pointer(2, 4)) == last);
  CHECK(address(huge.permute<2, 0, 1>().pointer(n - 1, 3, 2)) == last);
  CHECK(address(huge.reshape(Extents{12, n / 2, 2}).pointer(11, n / 2 - 1, 1)) == last);
  CHECK(huge.contiguous());
}

TEST_CASE("tensors own: copies are deep, moves leave nothing") {
  Tensor<float, 1> a({5}, 2.0f), b = a;
  b(0) = 7.0f;
  CHECK(a(0) == 2.0f);
  const Tensor<float, 1> c = std::move(b);
  CHECK(c(0) == 7.0f);
  CHECK(!b);
  CHECK(b.size() == 0);
  a = c;
  CHECK(a(0) == 7.0f);
  CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % 64 == 0);
  CHECK_THROWS_WITH_AS((Tensor<float, 2>({2, -1})), "tensor: negative size in (2, -1)", Error);
  for (float v : Tensor<float, 2>({3, 3})) CHECK(v == 0.0f);
}

TEST_CASE("copy: strides, element types, shapes") {
  auto x = counted();
  Tensor<double, 3> wide({4, 2, 3});
  copy(x.view().permute<2, 0, 1>(), wide);
  CHECK(wide(3, 1, 2) == 23.0);
  Tensor<bfloat16, 3> rounded({2, 3, 4});
  copy(x, rounded.view());
  CHECK(float(rounded(1, 2, 3)) == 23.0f);
  const auto dense = to_tensor(x.slice<2>(1, 3));
  CHECK(dense.extents() == Extents{2, 3, 2});
  CHECK(dense(1, 2, 1) == x(1, 2, 2));
  Tensor<float, 3> other({2, 3, 5});
  CHECK_THROWS_WITH_AS(copy(x, other), "copy: from (2, 3, 4) to (2, 3, 5)", Error);
  // Odd sizes through every path.
  for (const Index n : {1, 3, 100, 20000, 40001}) {
    Tensor<float, 2> a({3, n});
    std::iota(a.begin(), a.end(), 0.0f);
    Tensor<float, 2> turned({n, 3});
    copy(a.view().permute<1, 0>(), turned);
    CHECK(turned(n - 1, 1) == a(1, n - 1));
    Tensor<float, 2> back({3, n});
    copy(turned.view().permute<1, 0>(), back);
    CHECK(std::equal(a.begin(), a.end(), back.begin()));
  }
}
