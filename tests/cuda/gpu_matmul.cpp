// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Matrix products and the linear layer on a GPU against the CPU, in double: every way that a product can take.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "diffmamba/ops/linear/linear_backward.hpp"
#include "diffmamba/ops/linear/linear_forward.hpp"
#include "diffmamba/ops/matmul/matmul_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;

namespace {

/// ||got - want|| / ||want||
template <class A, class B>
double norm_error(const A& got, const B& want) {
  REQUIRE(got.size() == want.size());
  double error = 0, norm = 0;
  for (Index i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want.data()[i]), g = static_cast<double>(got.data()[i]);
    error += (g - w) * (g - w);
    norm += w * w;
  }
  error = std::sqrt(error / (norm > 0 ? norm : 1.0));
  return std::isfinite(error) ? error : INFINITY;
}
template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

/// What a result of type C may differ by: its own rounding, and that of its sums.
template <class C>
constexpr double tolerance = std::is_same_v<C, double>  ? 1e-14
                             : std::is_same_v<C, float> ? 2e-6
                                                        : 2.5e-3;

/// An operand of type T as it lies on the GPU: dense, transposed, or with gaps in both directions.
enum class Lies { rows, columns, wide_rows, odd_rows, gaps };
template <class T>
struct Operand {
  Tensor<T, 2> host;  // dense, (rows, columns)
  Tensor<T, 2, cuda> memory;
  View<T, 2, cuda> view;
  Operand(Index rows, Index columns, unsigned seed, Lies lies)
      : host(test::random_tensor<T>(Extents{rows, columns}, seed)) {
    const Index more = lies == Lies::wide_rows ? 64 : lies == Lies::odd_rows ? 3 : 0;
    if (lies == Lies::columns) {
      memory = Tensor<T, 2, cuda>({columns, rows});
      view = memory.view().template permute<1, 0>();
    } else if (lies == Lies::gaps) {
      memory = Tensor<T, 2, cuda>({rows, 2 * columns});
      view = View<T, 2, cuda>(memory.data(), {rows, columns}, Strides<2>{2 * columns, 2});
    } else {
      memory = Tensor<T, 2, cuda>({rows, columns + more});
      view = memory.view().template slice<1>(more, columns + more);
    }
    copy(host.view(), view);
  }
  Tensor<T, 2> read() const { return to<cpu>(View<const T, 2, cuda>(view)); }
};

template <class A, class B, class C>
void check_product(Index m, Index n, Index k, Lies a_lies, Lies b_lies, Lies c_lies, const MatmulOptions& options,
                   double within = tolerance<C>) {
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CAPTURE(static_cast<int>(a_lies));
  CAPTURE(static_cast<int>(b_lies));
  CAPTURE(static_cast<int>(c_lies));
  const Operand<A> a(m, k, 1, a_lies);
  const Operand<B> b(k, n, 2, b_lies);
  const Operand<C> c(m, n, 3, c_lies), again(m, n, 3, c_lies);
  auto want = to_tensor<double>(c.host.view());
  matmul(to_tensor<double>(a.host.view()), to_tensor<double>(b.host.view()), want, options);
  matmul(View<const A, 2, cuda>(a.view), View<const B, 2, cuda>(b.view), c.view, options);
  matmul(View<const A, 2, cuda>(a.view), View<const B, 2, cuda>(b.view), again.view, options);
  CHECK(norm_error(c.read(), want) < within);
  CHECK(same_bits(c.read(), again.read()));
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("products of any sizes and strides", T, float, double, bfloat16, half) {
    for (const Index m : {1, 3, 16, 17, 130})
      for (const Lies b : {Lies::rows, Lies::columns, Lies::odd_rows, Lies::gaps}) {
        check_product<T, T, T>(m, 67, 96, Lies::rows, b, Lies::rows, {});
        check_product<T, T, T>(m, 67, 131, Lies::wide_rows, b, Lies::odd_rows, {.alpha = 0.5, .beta = 1});
        check_product<T, T, T>(m, 256, 1, Lies::odd_rows, b, Lies::rows, {.alpha = -1.5});
        check_product<T, T, T>(m, 1, 300, Lies::columns, b, Lies::columns, {.beta = -0.5});
        check_product<T, T, T>(m, 24, 40, Lies::gaps, b, Lies::gaps, {.beta = 1});
      }
    check_product<T, T, T>(512, 384, 1024, Lies::columns, Lies::rows, Lies::rows, {.beta = 1});
    check_product<T, T, T>(300, 2000, 512, Lies::rows, Lies::columns, Lies::wide_rows, {});
  }

  TEST_CASE("results wider than the operands, and operands of two types") {
    for (const Index m : {2, 200}) {
      check_product<bfloat16, bfloat16, float>(m, 96, 4096, Lies::rows, Lies::columns, Lies::rows, {.beta = 1});
      check_product<half, half, float>(m, 96, 256, Lies::columns, Lies::rows, Lies::odd_rows, {.alpha = 2});
      check_product<float, bfloat16, float>(m, 33, 65, Lies::rows, Lies::columns, Lies::rows, {});
      check_product<bfloat16, float, bfloat16>(m, 33, 65, Lies::odd_rows, Lies::rows, Lies::rows, {.beta = 1});
    }
  }

  TEST_CASE("TF32 is a choice") {
    float_product_of_thread() = FloatProduct::tf32;
    check_product<float, float, float>(256, 256, 512, Lies::rows, Lies::columns, Lies::rows, {}, 1e-3);
    float_product_of_thread() = FloatProduct::float32;
    check_product<float, float, float>(256, 256, 512, Lies::rows, Lies::columns, Lies::rows, {});
  }

  TEST_CASE("an empty inner axis leaves beta c; empty results are nothing; NaN in c is not read when beta is 0") {
    for (const double beta : {0.0, 0.5}) {
      check_product<float, float, float>(5, 7, 0, Lies::rows, Lies::rows, Lies::rows, {.beta = beta});
      check_product<bfloat16, bfloat16, bfloat16>(5, 7, 0, Lies::rows, Lies::rows, Lies::rows, {.beta = beta});
    }
    check_product<float, float, float>(0, 7, 3, Lies::rows, Lies::rows, Lies::rows, {});
    check_product<float, float, float>(7, 0, 3, Lies::rows, Lies::rows, Lies::rows, {});
    for (const Index m : {1, 40}) {
      const Operand<float> a(m, 64, 1, Lies::rows), b(64, 32, 2, Lies::columns);
      Tensor<float, 2, cuda> c({m, 32}, NAN);
      matmul(a.view, b.view, c);
      CHECK(norm_error(to<cpu>(c), matmul(a.host, b.host)) < 1e-6);
    }
  }

  TEST_CASE_TEMPLATE("batches, one operand shared", T, float, double, bfloat16) {
    const auto a = test::random_tensor<T>(Extents{5, 24, 40}, 1);
    const auto b = test::random_tensor<T>(Extents{1, 40, 33}, 2);
    const View<const T, 3> shared(b.data(), {5, 40, 33}, Strides<3>{0, 33, 1});
    Tensor<double, 3> want({5, 24, 33});
    matmul(to_tensor<double>(a.view()), to_tensor<double>(shared), want);
    const auto da = to<cuda>(a), db = to<cuda>(b);
    const View<const T, 3, cuda> dshared(db.data(), {5, 40, 33}, Strides<3>{0, 33, 1});
    CHECK(norm_error(to<cpu>(matmul(da.view(), dshared)), want) < tolerance<T>);
  }

  // Decoding: the weight streams through a kernel of its own.
  TEST_CASE_TEMPLATE("few rows", T, float, bfloat16, half) {
    for (Index m = 1; m <= 17; ++m)
      for (const auto& [n, k] :
           {std::pair<Index, Index>{8, 8}, {13, 128}, {4000, 72}, {100, 1024}, {31, 2560}, {17, 5120}}) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(k);
        const Operand<T> x(m, k, 1, Lies::wide_rows), w(n, k, 2, Lies::wide_rows);
        const auto bias = test::random_tensor<accumulate_t<T>>(Extents<1>{n}, 4);
        const auto dbias = to<cuda>(bias);
        const auto x64 = to_tensor<double>(x.host.view()), w64 = to_tensor<double>(w.host.view());
        const auto bias64 = to_tensor<double>(bias.view());
        const auto want = linear::forward(linear::Inputs<double>{.x = x64, .weight = w64, .bias = bias64});
        const linear::Inputs<T, cuda> din{.x = x.view, .weight = w.view, .bias = dbias};
        const auto y = to<cpu>(linear::forward(din));
        CHECK(norm_error(y, want) < tolerance<T>);
        {
          const cuda_runtime::WeightsAtRest at_rest;
          CHECK(same_bits(y, to<cpu>(linear::forward(din))));
        }
        Tensor<float, 2, cuda> wide({m, n});
        linear::forward(din, wide);
        CHECK(norm_error(to<cpu>(wide), want) < 8e-6);
      }
  }

  TEST_CASE_TEMPLATE("linear, forward and backward, with a bias", T, float, double, bfloat16) {
    using S = accumulate_t<T>;
    for (const auto& [rows, in, out] :
         {std::tuple<Index, Index, Index>{0, 8, 16}, {1, 5, 3}, {67, 33, 130}, {1000, 64, 96}, {4099, 16, 1000}}) {
      CAPTURE(rows);
      const Operand<T> x(rows, in, 1, Lies::wide_rows), w(out, in, 2, Lies::rows), dy(rows, out, 3, Lies::rows);
      const auto bias = test::random_tensor<S>(Extents<1>{out}, 4);
      const auto x64 = to_tensor<double>(x.host.view()), w64 = to_tensor<double>(w.host.view()),
                 dy64 = to_tensor<double>(dy.host.view());
      const auto bias64 = to_tensor<double>(bias.view());
      const linear::Inputs<double> in64{.x = x64, .weight = w64, .bias = bias64};
      const auto want = linear::forward(in64);
      auto dwant = linear::backward(in64, dy64);
      const auto dbias = to<cuda>(bias);
      const linear::Inputs<T, cuda> din{.x = x.view, .weight = w.view, .bias = dbias};
      CHECK(norm_error(to<cpu>(linear::forward(din)), want) < tolerance<T>);
      auto got = linear::backward(din, View<const T, 2, cuda>(dy.view));
      CHECK(norm_error(to<cpu>(got.dx), dwant.dx) < tolerance<T>);
      CHECK(norm_error(to<cpu>(got.dweight), dwant.dweight) < tolerance<S>);
      CHECK(norm_error(to<cpu>(got.dbias), dwant.dbias) < tolerance<S>);
      const auto again = linear::backward(din, View<const T, 2, cuda>(dy.view));
      CHECK(same_bits(to<cpu>(got.dweight), to<cpu>(again.dweight)));
      CHECK(same_bits(to<cpu>(got.dbias), to<cpu>(again.dbias)));
      linear::backward(din, View<const T, 2, cuda>(dy.view), {.dweight = got.dweight, .dbias = got.dbias},
                       GradientMode::add);
      for (double& value : dwant.dweight) value *= 2;
      for (double& value : dwant.dbias) value *= 2;
      CHECK(norm_error(to<cpu>(got.dweight), dwant.dweight) < tolerance<S>);
      CHECK(norm_error(to<cpu>(got.dbias), dwant.dbias) < tolerance<S>);
      // A gradient of the type of sums.
      const auto wide = to<cuda>(to_tensor<S>(dy.host.view()));
      const auto from_wide = linear::backward(din, wide);
      CHECK(norm_error(to<cpu>(from_wide.dx), dwant.dx) < tolerance<T>);
    }
  }

  TEST_CASE("what was planned can be listed") {
    check_product<bfloat16, bfloat16, bfloat16>(256, 128, 512, Lies::rows, Lies::columns, Lies::rows, {});
    bool found = false;
    for (const MatmulPlan& plan : matmul_plans()) found |= plan.m == 256 && plan.n == 128 && plan.k == 512;
    CHECK(found);
  }
}
