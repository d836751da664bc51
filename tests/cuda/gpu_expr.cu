// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Expressions on a GPU against the same expressions on the CPU.
#include <doctest/doctest.h>

#include <cstring>

#include "diffmamba/expr/evaluate.cuh"
#include "diffmamba/expr/expr.hpp"
#include "diffmamba/tensor/copy.cuh"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::random_tensor;
using test::relative_error;

namespace {

/// Largest error of a function of tensors, evaluated on both devices: run(tensors of that device...).
template <class Run, class... Tensors>
double error_of(Run&& run, const Tensors&... tensors) {
  const auto want = run(tensors...);
  const auto got = to<cpu>(run(to<cuda>(tensors)...));
  REQUIRE(got.extents() == want.extents());
  return relative_error(got, want);
}

struct Cube {
  template <class V>
  DIFFMAMBA_HOST_DEVICE V operator()(V x) const {
    return x * x * x;
  }
};

template <class T>
void check_elements(const Extents<2>& extents, double tolerance) {
  CAPTURE(extents[0]);
  CAPTURE(extents[1]);
  const auto x = random_tensor<T>(extents, 1), y = random_tensor<T>(extents, 2);
  const auto row = random_tensor<T>(Extents<1>{extents[1]}, 3);
  const auto column = random_tensor<T>(Extents<2>{extents[0], 1}, 4);
  const auto like = [](const auto& a) {
    using D = typename std::remove_cvref_t<decltype(a)>::device_type;
    return Tensor<T, 2, D>::uninitialized(a.extents());
  };
  CHECK(error_of(
            [&](const auto& a, const auto& b) {
              auto r = like(a);
              r = silu(a) * b + 0.5f;
              return r;
            },
            x, y) <= tolerance);
  CHECK(error_of(
            [&](const auto& a, const auto& r) {
              auto z = like(a);
              z = a * r - softplus(a);
              return z;
            },
            x, row) <= tolerance);
  CHECK(error_of(
            [&](const auto& a, const auto& c) {
              auto z = like(a);
              z = c * exp(-square(a));
              return z;
            },
            x, column) <= tolerance);
  CHECK(error_of(
            [&](const auto& a, const auto& b) {
              auto z = like(a);
              z = where((a < b) & (a > 0.0f), a, b);
              return z;
            },
            x, y) <= tolerance);
  CHECK(error_of(
            [&](const auto& a) {
              auto z = like(a);
              z = map(Cube{}, a);
              return z;
            },
            x) <= tolerance);
  CHECK(error_of(
            [&](const auto& a) {
              auto z = like(a);
              z = a;
              z += a;
              z *= 3;
              return z;
            },
            x) <= tolerance);
  CHECK(error_of(
            [&](const auto& a, const auto& b) {
              auto z = like(a);
              z.fill(T(0.0f));
              assign(z.view().template permute<1, 0>(),
                     a.view().template permute<1, 0>() + 2 * b.view().template permute<1, 0>());
              return z;
            },
            x, y) <= tolerance);
  CHECK(error_of(
            [&](const auto& a) {
              auto z = like(a);
              z = a / sqrt(mean(a * a, axis<1>, keepdims) + 1e-5f);
              return z;
            },
            x) <= tolerance);
  CHECK(error_of(
            [&](const auto& a) {
              auto z = like(a);
              z = a - max(a, axis<0>, keepdims);
              return z;
            },
            x) <= tolerance);
}

template <class T>
void check_reductions(const Extents<3>& extents, double tolerance) {
  CAPTURE(extents[0]);
  CAPTURE(extents[1]);
  CAPTURE(extents[2]);
  const auto x = random_tensor<T>(extents, 1);
  const auto reduced = [&](auto run) { return error_of(run, x); };
#define DIFFMAMBA_CHECK_REDUCTION(Rank, shape, expression)                  \
  CHECK(reduced([&](const auto& a) {                                        \
          using D = typename std::remove_cvref_t<decltype(a)>::device_type; \
          auto r = Tensor<T, Rank, D>::uninitialized(shape);                \
          r = expression;                                                   \
          return r;                                                         \
        }) <= tolerance)
  const Index a0 = extents[0], a1 = extents[1], a2 = extents[2];
  DIFFMAMBA_CHECK_REDUCTION(2, (Extents{a0, a1}), sum(a, axis<2>));
  DIFFMAMBA_CHECK_REDUCTION(2, (Extents{a0, a2}), mean(a * a, axis<1>));
  DIFFMAMBA_CHECK_REDUCTION(2, (Extents{a1, a2}), max(a, axis<0>));
  DIFFMAMBA_CHECK_REDUCTION(1, (Extents<1>{a1}), min(a, axis<0, 2>));
  DIFFMAMBA_CHECK_REDUCTION(1, (Extents<1>{a2}), sum(exp(a), axis<0, 1>));
  DIFFMAMBA_CHECK_REDUCTION(1, (Extents<1>{a0}), sum(square(a), axis<1, 2>));
  DIFFMAMBA_CHECK_REDUCTION(0, Extents<0>{}, mean(square(a)));
  DIFFMAMBA_CHECK_REDUCTION(3, (Extents{a0, a1, a2}), a - mean(a));
#undef DIFFMAMBA_CHECK_REDUCTION
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("an expression is evaluated as on the CPU: dense, odd, broadcast, transposed, with reductions within") {
    for (const auto& extents : {Extents<2>{33, 64}, Extents<2>{7, 13}, Extents<2>{1, 1}, Extents<2>{300, 1028}}) {
      check_elements<double>(extents, 1e-14);
      check_elements<float>(extents, 2e-6);
      check_elements<bfloat16>(extents, 1e-2);
    }
  }

  TEST_CASE("reductions over any axes, of few and of many elements") {
    for (const auto& extents : {Extents<3>{3, 5, 7}, Extents<3>{2, 300, 64}, Extents<3>{1, 1, 1},
                                Extents<3>{16, 2000, 33}, Extents<3>{1, 1, 100000}}) {
      check_reductions<double>(extents, 1e-12);
      check_reductions<float>(extents, 1e-5);
    }
  }

  TEST_CASE("16-bit results are the float results rounded once, the same bits every time") {
    const auto x = to<cuda>(random_tensor<bfloat16>(Extents{130, 515}, 1));
    const auto row = to<cuda>(random_tensor<float>(Extents<1>{515}, 2));
    Tensor<bfloat16, 2, cuda> y(x.extents()), again(x.extents());
    Tensor<float, 2, cuda> wide(x.extents());
    y = x * row + tanh(x);
    again = x * row + tanh(x);
    wide = x * row + tanh(x);
    const auto got = to<cpu>(y), got_again = to<cpu>(again);
    const auto want = to<cpu>(wide);
    for (Index i = 0; i < got.size(); ++i) {
      CHECK(got.data()[i].bits == bfloat16(want.data()[i]).bits);
      CHECK(got.data()[i].bits == got_again.data()[i].bits);
    }
    Tensor<float, 1, cuda> a({515}), b({515});
    a = sum(square(x), axis<0>);
    b = sum(square(x), axis<0>);
    CHECK(relative_error(to<cpu>(a), to<cpu>(b)) == 0);
  }

  TEST_CASE("strided views, integers that are cast, masks, temporaries") {
    const auto x = random_tensor<float>(Extents{5, 40}, 1);
    const auto x_gpu = to<cuda>(x);
    Tensor<float, 2, cuda> y({5, 20});
    y = x_gpu.slice<1>(3, 23) + x_gpu.slice<1>(20, 40);
    const auto host = to<cpu>(y);
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 20; ++j) CHECK(host(i, j) == x(i, j + 3) + x(i, j + 20));
    Tensor<std::int32_t, 1> whole({7});
    for (Index i = 0; i < 7; ++i) whole(i) = static_cast<std::int32_t>(i * i);
    const auto whole_gpu = to<cuda>(whole);
    Tensor<float, 1, cuda> z({7});
    z = cast<float>(whole_gpu) + Tensor<float, 1, cuda>({7}, 0.5f);
    const auto host_z = to<cpu>(z);
    for (Index i = 0; i < 7; ++i) CHECK(host_z(i) == static_cast<float>(i * i) + 0.5f);
    Tensor<float, 0, cuda> positive({});
    positive = sum(cast<float>(x_gpu > 0));
    float count = 0;
    for (float v : x) count += v > 0;
    CHECK(*to<cpu>(positive).data() == count);
  }

  TEST_CASE("an operand that lies over the target in another way is refused; the target itself is an operand") {
    auto x = to<cuda>(random_tensor<float>(Extents{20, 20}, 1));
    CHECK_THROWS_AS((x = x.view().permute<1, 0>() + 1), Error);
    CHECK_THROWS_AS(assign(x.slice<0>(1, 20), x.slice<0>(0, 19) * 2), Error);
    const auto before = to<cpu>(x);
    x = x * 2 + x;
    const auto after = to<cpu>(x);
    for (Index i = 0; i < before.size(); ++i) CHECK(after.data()[i] == before.data()[i] * 2 + before.data()[i]);
    x = x / sum(x);
    double total = 0;
    for (const auto host = to<cpu>(x); float v : host) total += static_cast<double>(v);
    CHECK(total == doctest::Approx(1).epsilon(1e-4));
    Tensor<float, 2, cuda> empty({0, 4});
    empty = empty + 1;
    Tensor<float, 1, cuda> zero({4}, 1.0f);
    zero = sum(empty, axis<0>);
    for (const auto host = to<cpu>(zero); float v : host) CHECK(v == 0.0f);
  }
}
