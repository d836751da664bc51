// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Matrix products at the shapes of language models: 2048 rows of d_model 256 (input and output projection, head) and of
// a 370M model, each as the linear layer runs it: y = x W^T, dx = dy W, dW = dy^T x. Counters, best of several runs,
// turn and turn about:
//   GFLOP/s           ours
//   blas, eigen       the same product by the machine's cblas with as many threads, and by Eigen with its own threads
//   of_blas           ours / blas
// and few rows, as decoding has them, against weights in and beyond the cache:
//   GB/s              of the weight, read once
//   read, triad       what this machine's memory gives
#include <benchmark/benchmark.h>

#include <random>

#include "diffmamba/ops/matmul/matmul_forward.hpp"
#include "support/ceilings.hpp"

using namespace diffmamba;

namespace {

struct Shape {
  Index rows, in, out;
};
constexpr Shape shapes[] = {
    {2048, 256, 1160}, {2048, 512, 256}, {2048, 256, 256}, {2048, 1024, 4384}, {2048, 2048, 1024}, {64, 256, 1160},
};

Tensor<float, 2> uniform(Index rows, Index columns) {
  Tensor<float, 2> result({rows, columns});
  std::mt19937 generator(1);
  for (float& value : result) value = static_cast<float>(generator() % 1000) * 0.002f - 1.0f;
  return result;
}

/// A product c = a b of two operands that may be transposed views.
struct Product {
  View<const float, 2> a, b;
  View<float, 2> c;
  double flops() const { return 2 * static_cast<double>(a.size()) * static_cast<double>(b.extent(1)); }
  void ours() const { matmul(a, b, c); }
#if defined(DIFFMAMBA_BENCH_HAS_CBLAS)
  void blas() const {
    const bool turn_a = a.stride(1) != 1, turn_b = b.stride(1) != 1;
    cblas_sgemm(CblasRowMajor, turn_a ? CblasTrans : CblasNoTrans, turn_b ? CblasTrans : CblasNoTrans,
                static_cast<int>(c.extent(0)), static_cast<int>(c.extent(1)), static_cast<int>(a.extent(1)), 1.0f,
                a.data(), static_cast<int>(turn_a ? a.stride(1) : a.stride(0)), b.data(),
                static_cast<int>(turn_b ? b.stride(1) : b.stride(0)), 0.0f, c.data(), static_cast<int>(c.stride(0)));
  }
#endif
  void eigen() const {
    using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto map = [](const View<const float, 2>& view) {  // as it lies in memory
      const bool turned = view.stride(1) != 1;
      return Eigen::Map<const Matrix>(view.data(), view.extent(turned ? 1 : 0), view.extent(turned ? 0 : 1));
    };
    Eigen::Map<Matrix> result(c.data(), c.extent(0), c.extent(1));
    if (a.stride(1) != 1)
      result.noalias() = map(a).transpose() * map(b);
    else if (b.stride(1) != 1)
      result.noalias() = map(a) * map(b).transpose();
    else
      result.noalias() = map(a) * map(b);
  }
};

enum Pass { y_pass, dx_pass, dweight_pass };
constexpr const char* pass_names[] = {"y", "dx", "dW"};

void linear(benchmark::State& state, const Shape& s, Pass pass, int count) {
  const Threads threads(count);
  const auto x = uniform(s.rows, s.in), w = uniform(s.out, s.in), dy = uniform(s.rows, s.out);
  Tensor<float, 2> y(dy.extents()), dx(x.extents()), dw(w.extents());
  const Product product = pass == y_pass    ? Product{x.view(), w.view().permute<1, 0>(), y.view()}
                          : pass == dx_pass ? Product{dy.view(), w.view(), dx.view()}
                                            : Product{dy.view().permute<1, 0>(), x.view(), dw.view()};
  for (auto _ : state) product.ours();
  const double flops = product.flops();
  const int runs = flops > 1e10 ? 4 : 30;
  double ours = 0, eigen = 0, blas = 0;
  Eigen::setNbThreads(count);
  for (int turn = 0; turn < 3; ++turn) {
    ours = std::max(ours, flops / bench::best_seconds(runs, [&] { product.ours(); }));
    eigen = std::max(eigen, flops / bench::best_seconds(runs, [&] { product.eigen(); }));
#if defined(DIFFMAMBA_BENCH_HAS_CBLAS)
#if defined(OPENBLAS_VERSION)
    const int before = openblas_get_num_threads();
    openblas_set_num_threads(count);
#endif
    blas = std::max(blas, flops / bench::best_seconds(runs, [&] { product.blas(); }));
#if defined(OPENBLAS_VERSION)
    openblas_set_num_threads(before);
#endif
#endif
  }
  state.counters["GFLOP/s"] = ours * 1e-9;
  state.counters["eigen"] = eigen * 1e-9;
  state.counters["blas"] = blas * 1e-9;
  if (blas > 0) state.counters["of_blas"] = ours / blas;
}

void decode(benchmark::State& state, Index rows, Index in, Index out) {
  const auto x = uniform(rows, in), w = uniform(out, in);
  Tensor<float, 2> y({rows, out});
  const auto weight = w.view().permute<1, 0>();
  for (auto _ : state) matmul(x, weight, y);
  const double bytes = static_cast<double>(w.size()) * sizeof(float);
  state.counters["GB/s"] = bytes * 1e-9 / bench::best_seconds(20, [&] { matmul(x, weight, y); });
  state.counters["read"] = bench::ceilings().read * 1e-9;
  state.counters["triad"] = bench::ceilings().triad * 1e-9;
}

const bool registered = [] {
  for (const int threads : {1, 2})
    for (const Shape& s : shapes)
      for (const Pass pass : {y_pass, dx_pass, dweight_pass}) {
        const std::string name = std::string("linear/") + pass_names[pass] + "/rows:" + std::to_string(s.rows) + "/" +
                                 std::to_string(s.in) + "->" + std::to_string(s.out) +
                                 "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { linear(state, s, pass, threads); })
            ->Unit(benchmark::kMicrosecond)
            ->Iterations(1)
            ->UseRealTime();
      }
  for (const Index rows : {1, 4, 8})
    for (const auto& [in, out] : {std::pair<Index, Index>{1024, 50280}, {1024, 4384}, {256, 1160}}) {
      const Index d = in, n = out;
      const std::string name =
          "decode/rows:" + std::to_string(rows) + "/" + std::to_string(in) + "->" + std::to_string(out);
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { decode(state, rows, d, n); })
          ->Unit(benchmark::kMicrosecond)
          ->Iterations(5)
          ->UseRealTime();
    }
  return true;
}();

}  // namespace

BENCHMARK_MAIN();
