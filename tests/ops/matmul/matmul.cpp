// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/matmul/matmul.hpp"

#include <cstring>
#include <limits>

#include "diffmamba/ops/matmul/matmul_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;

namespace {

/// alpha a b + beta c, one element at a time in double.
template <class A, class B, class C>
Tensor<double, 2> plain(const View<A, 2>& a, const View<B, 2>& b, const View<C, 2>& c, double alpha, double beta) {
  Tensor<double, 2> result(c.extents());
  for (Index i = 0; i < c.extent(0); ++i)
    for (Index j = 0; j < c.extent(1); ++j) {
      double sum = 0;
      for (Index p = 0; p < a.extent(1); ++p) sum += static_cast<double>(a(i, p)) * static_cast<double>(b(p, j));
      result(i, j) = alpha * sum + (beta == 0 ? 0 : beta * static_cast<double>(c(i, j)));
    }
  return result;
}

/// A random matrix that lies in memory as it is, or transposed, or as a window of a larger one.
enum class Lie { rows, columns, window };
template <class T>
struct Matrix {
  Tensor<T, 2> memory;
  View<T, 2> view;
  Matrix(Index rows, Index columns, Lie lie, unsigned seed) {
    const Index pad = lie == Lie::window ? 5 : 0;
    memory = lie == Lie::columns ? random_tensor<T, 2>({columns, rows}, seed)
                                 : random_tensor<T, 2>({rows + pad, columns + pad}, seed);
    if (lie == Lie::rows) view = memory.view();
    if (lie == Lie::columns) view = memory.view().template permute<1, 0>();
    if (lie == Lie::window) view = memory.template slice<0>(2, 2 + rows).template slice<1>(3, 3 + columns);
  }
};

template <class T>
bool same_bits(const Tensor<T, 2>& a, const Tensor<T, 2>& b) {
  return a.extents() == b.extents() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE_TEMPLATE("matmul agrees with the sums, on any size and however the operands lie", T, float, double) {
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-14;  // of one element, which may have cancelled
  const Lie ways[] = {Lie::rows, Lie::columns, Lie::window};
  unsigned seed = 1;
  const auto check = [&](Index m, Index n, Index k, double beta) {
    for (const Lie la : ways)
      for (const Lie lb : ways)
        for (const Lie lc : ways) {
          INFO("m ", m, " n ", n, " k ", k, " lie ", static_cast<int>(la), static_cast<int>(lb), static_cast<int>(lc));
          const Matrix<T> a(m, k, la, ++seed), b(k, n, lb, ++seed), c(m, n, lc, ++seed);
          const auto want = plain(a.view, b.view, c.view, 0.75, beta);
          Tensor<T, 2> outside = c.memory;
          matmul(a.view, b.view, c.view, {.alpha = 0.75, .beta = beta});
          CHECK(relative_error(to_tensor(c.view), want) < tolerance);
          if (lc == Lie::window) {  // nothing around the window has changed
            copy(outside.template slice<0>(2, 2 + m).template slice<1>(3, 3 + n), c.view);
            CHECK(same_bits(outside, c.memory));
          }
        }
  };
  for (const Index m : {1, 3, 13, 17, 30})
    for (const Index n : {1, 2, 17, 40})
      for (const Index k : {1, 7, 33}) check(m, n, k, m % 2 == 0 ? 0.0 : -1.5);
  check(37, 70, 257, 1.0);   // two blocks of k, with a rest of one
  check(101, 300, 20, 0.0);  // several tiles
}

TEST_CASE("matmul: deep and wide products in parts") {
  const auto a = random_tensor<float, 2>({20, 8200}, 1), b = random_tensor<float, 2>({8200, 530}, 2);
  auto c = random_tensor<float, 2>({20, 530}, 3);
  const auto want = plain(a.view(), b.view(), c.view(), 2, 0.5);
  matmul(a, b, c, {.alpha = 2, .beta = 0.5});
  CHECK(relative_error(c, want) < 1e-5);
}

TEST_CASE("matmul: empty sizes, k = 0, and beta = 0 over NaN") {
  Tensor<float, 2> a({0, 5}), b({5, 3});
  CHECK(matmul(a, b).extents() == Extents{0, 3});
  Tensor<float, 2> tall({4, 0}), flat({0, 3}), c({4, 3}, 2.0f);
  matmul(tall, flat, c, {.alpha = 1, .beta = 3});
  CHECK(c(3, 2) == 6.0f);
  matmul(tall, flat, c);
  CHECK(c(0, 0) == 0.0f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Index m : {2, 40}) {  // both ways
    const auto x = random_tensor<float, 2>({m, 50}, 1), w = random_tensor<float, 2>({60, 50}, 2);
    Tensor<float, 2> y({m, 60}, nan);
    const auto want = plain(x.view(), w.view().permute<1, 0>(), y.view(), 1, 0);
    matmul(x, w.view().permute<1, 0>(), y);
    CHECK(relative_error(y, want) < 1e-6);
  }
}

TEST_CASE("matmul: 16-bit operands, float sums, the result rounded once") {
  for (const Index m : {3, 45}) {
    const auto a = random_tensor<bfloat16, 2>({m, 700}, 1), w = random_tensor<bfloat16, 2>({70, 700}, 2);
    const auto b = w.view().permute<1, 0>();
    Tensor<float, 2> wide({m, 70});
    matmul(a, b, wide);
    CHECK(relative_error(wide, plain(a.view(), b, wide.view(), 1, 0)) < 2e-6);
    const auto rounded = matmul(a, b);
    for (Index i = 0; i < wide.size(); ++i) CHECK(rounded.data()[i].bits == bfloat16(wide.data()[i]).bits);
    const auto x = random_tensor<float, 2>({m, 700}, 3);  // float against bfloat16
    matmul(x, b, wide);
    CHECK(relative_error(wide, plain(x.view(), b, wide.view(), 1, 0)) < 2e-6);
  }
}

TEST_CASE_TEMPLATE("matmul: the same bits on one thread and on several", T, float, double) {
  struct Shape {
    Index m, n, k;
  };
  for (const Shape s : {Shape{300, 290, 310}, Shape{2, 1500, 700}, Shape{1000, 2, 700}, Shape{64, 600, 2000}})
    for (const bool turned : {false, true}) {
      const auto a = turned ? random_tensor<T, 2>({s.k, s.m}, 1) : random_tensor<T, 2>({s.m, s.k}, 1);
      const auto w = random_tensor<T, 2>({s.n, s.k}, 2);
      Tensor<T, 2> one({s.m, s.n}), several({s.m, s.n});
      const View<const T, 2> view = turned ? a.view().template permute<1, 0>() : a.view();
      {
        Threads threads(1);
        matmul(view, w.view().template permute<1, 0>(), one);
      }
      for (const int count : {2, 3}) {
        Threads threads(count);
        several.fill(T(7));
        matmul(view, w.view().template permute<1, 0>(), several);
        CHECK(same_bits(one, several));
      }
    }
}

TEST_CASE("matmul: batches, shared operands, and inside a parallel loop") {
  const auto a = random_tensor<double, 3>({20, 9, 31}, 1), b = random_tensor<double, 3>({20, 31, 18}, 2);
  const auto c = matmul(a, b);
  for (Index i = 0; i < 20; ++i) {
    const auto part = to_tensor(c.select<0>(i));
    CHECK(relative_error(part, plain(a.select<0>(i), b.select<0>(i), part.view(), 1, 0)) < 1e-14);
  }
  // The same b for all: stride 0.
  const View<const double, 3> shared(b.data(), {20, 31, 18}, {0, 18, 1});
  const auto d = matmul(a, shared);
  CHECK(same_bits(to_tensor(d.select<0>(7)), matmul(a.select<0>(7), b.select<0>(0))));
  CHECK(matmul(Tensor<float, 3>({0, 2, 3}), Tensor<float, 3>({0, 3, 4})).size() == 0);

  Tensor<double, 3> inside({20, 9, 18});
  parallel_for(20, [&](Index i) { matmul(a.select<0>(i), b.select<0>(i), inside.select<0>(i)); });
  CHECK(std::memcmp(inside.data(), c.data(), static_cast<std::size_t>(c.size()) * sizeof(double)) == 0);
}

TEST_CASE("matmul counts calls and operations, and allocates nothing in a steady state") {
  const auto a = random_tensor<float, 2>({100, 200}, 1), b = random_tensor<float, 2>({200, 300}, 2);
  auto c = matmul(a, b);
  const auto before = matmul_count();
  const auto allocations = arena().system_allocations();
  for (int i = 0; i < 3; ++i) matmul(a, b, c);
  CHECK(matmul_count().calls - before.calls == 3);
  CHECK(matmul_count().flops - before.flops == 3 * 2 * 100 * 200 * 300);
  CHECK(arena().system_allocations() == allocations);
}

TEST_CASE("matmul: what does not fit is said in one sentence") {
  Tensor<float, 2> a({2, 3}), b({4, 5}), c({2, 5}), d({3, 6});
  CHECK_THROWS_WITH_AS(matmul(a, b), "matmul: a has 3 columns but b has 4 rows (a: (2, 3), b: (4, 5))", Error);
  CHECK_THROWS_WITH_AS(matmul(a, d, c), "matmul: c is (2, 5), but a b is (2, 6) (a: (2, 3), b: (3, 6))", Error);
  Tensor<float, 3> x({2, 3, 4}), y({3, 4, 5});
  CHECK_THROWS_WITH_AS(matmul(x, y), "matmul: a, b and c are batches of 2, 3 and 2 matrices", Error);
}
