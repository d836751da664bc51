// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/expr/expr.hpp"

#include <benchmark/benchmark.h>

#include <Eigen/Core>

#include "diffmamba/tensor/random.hpp"
#include "support/ceilings.hpp"

// Expressions against what somebody would write by hand with Eigen's maps, on one thread: of_eigen is the hand-written
// loop's time over ours (best of several runs, taken in turns). Rows times columns are the arguments: one size that the
// L2 cache holds, one that memory holds.

using namespace diffmamba;

namespace {

using Array = Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Map = Eigen::Map<Array>;
using Row = Eigen::Map<Eigen::Array<float, 1, Eigen::Dynamic>>;
using Bfloat = diffmamba::bfloat16;  // OpenBLAS has a global type of this name
using BfloatRow = Eigen::Map<Eigen::Array<Eigen::bfloat16, 1, Eigen::Dynamic>>;

template <class T, int Rank>
Tensor<T, Rank> normal(const Extents<Rank>& extents, std::uint64_t seed) {
  Tensor<T, Rank> result(extents);
  fill_normal(result, Philox{seed});
  return result;
}

struct Operands {
  Index rows, columns;
  Tensor<float, 2> x, a, b, y;
  Tensor<float, 1> w, per_row;
  explicit Operands(const benchmark::State& state)
      : rows(state.range(0)),
        columns(state.range(1)),
        x(normal<float>(Extents{rows, columns}, 1)),
        a(normal<float>(Extents{rows, columns}, 2)),
        b(normal<float>(Extents{rows, columns}, 3)),
        y({rows, columns}),
        w(normal<float>(Extents{columns}, 4)),
        per_row({rows}, 1.0f) {}
  Map map(Tensor<float, 2>& t) const { return Map(t.data(), t.extent(0), t.extent(1)); }
  Row row(Tensor<float, 2>& t, Index i) const { return Row(t.data() + i * columns, columns); }
  Row row(Tensor<float, 1>& t) const { return Row(t.data(), columns); }
};

template <class Ours, class ByHand>
void compare(benchmark::State& state, Index elements, Ours&& ours, ByHand&& by_hand) {
  const Threads one(1);
  for (auto _ : state) {
    ours();
    benchmark::ClobberMemory();
  }
  double best_ours = HUGE_VAL, best_by_hand = HUGE_VAL;
  const int runs = elements < 1000000 ? 15 : 4;
  const int repeat = static_cast<int>(2000000 / elements + 1);
  for (int run = 0; run < runs; ++run) {
    best_by_hand = std::min(best_by_hand, bench::best_seconds(1, [&] {
                              for (int r = 0; r < repeat; ++r) by_hand(), benchmark::ClobberMemory();
                            }));
    best_ours = std::min(best_ours, bench::best_seconds(1, [&] {
                           for (int r = 0; r < repeat; ++r) ours(), benchmark::ClobberMemory();
                         }));
  }
  state.counters["elements/s"] = static_cast<double>(elements) * repeat / best_ours;
  state.counters["of_eigen"] = best_by_hand / best_ours;
}

void multiply_add(benchmark::State& state) {
  Operands o(state);
  compare(
      state, o.x.size(), [&] { o.y = o.x * o.a + o.b; }, [&] { o.map(o.y) = o.map(o.x) * o.map(o.a) + o.map(o.b); });
}
void silu_times_row(benchmark::State& state) {
  Operands o(state);
  compare(
      state, o.x.size(), [&] { o.y = silu(o.x) * o.w + 0.5f; },
      [&] {
        for (Index i = 0; i < o.rows; ++i)
          o.row(o.y, i) = o.row(o.x, i) / (1.0f + (-o.row(o.x, i)).exp()) * o.row(o.w) + 0.5f;
      });
}
void plus_row(benchmark::State& state) {
  Operands o(state);
  compare(
      state, o.x.size(), [&] { o.y = o.x + o.w; },
      [&] {
        for (Index i = 0; i < o.rows; ++i) o.row(o.y, i) = o.row(o.x, i) + o.row(o.w);
      });
}
void times_column(benchmark::State& state) {
  Operands o(state);
  const View<float, 2> column(o.per_row.data(), {o.rows, 1});
  compare(
      state, o.x.size(), [&] { o.y = o.x * column + 1; },
      [&] {
        for (Index i = 0; i < o.rows; ++i) o.row(o.y, i) = o.row(o.x, i) * o.per_row(i) + 1.0f;
      });
}
/// Rows of 4, 8, 16: the hand-written loop knows the length when it is compiled.
template <int Columns>
void short_rows(benchmark::State& state) {
  Operands o(state);
  const View<float, 2> column(o.per_row.data(), {o.rows, 1});
  using Short = Eigen::Map<Eigen::Array<float, 1, Columns>>;
  compare(
      state, o.x.size(), [&] { o.y = o.x * o.w + column; },
      [&] {
        const Short w(o.w.data());
        for (Index i = 0; i < o.rows; ++i)
          Short(o.y.data() + i * Columns) = Short(o.x.data() + i * Columns) * w + o.per_row(i);
      });
}
template <int Columns>
void short_rows_plus_row(benchmark::State& state) {
  Operands o(state);
  using Short = Eigen::Map<Eigen::Array<float, 1, Columns>>;
  compare(
      state, o.x.size(), [&] { o.y = o.x + o.w; },
      [&] {
        const Short w(o.w.data());
        for (Index i = 0; i < o.rows; ++i) Short(o.y.data() + i * Columns) = Short(o.x.data() + i * Columns) + w;
      });
}
/// The same with a length that is known when the program runs, as our tensors' is.
void short_rows_any(benchmark::State& state) {
  Operands o(state);
  const View<float, 2> column(o.per_row.data(), {o.rows, 1});
  compare(
      state, o.x.size(), [&] { o.y = o.x * o.w + column; },
      [&] {
        for (Index i = 0; i < o.rows; ++i) o.row(o.y, i) = o.row(o.x, i) * o.row(o.w) + o.per_row(i);
      });
}
void transposed(benchmark::State& state) {
  Operands o(state);
  auto t = normal<float>(Extents{o.columns, o.rows}, 7);
  compare(
      state, o.x.size(), [&] { o.y = o.x + t.view().permute<1, 0>(); },
      [&] { o.map(o.y) = o.map(o.x) + o.map(t).transpose(); });
}
void strided(benchmark::State& state) {
  Operands o(state);
  auto wide = normal<float>(Extents{o.rows, 2 * o.columns}, 7);
  compare(
      state, o.x.size(), [&] { o.y = o.x * wide.slice<1>(o.columns, 2 * o.columns); },
      [&] {
        for (Index i = 0; i < o.rows; ++i)
          o.row(o.y, i) = o.row(o.x, i) * Row(wide.data() + (2 * i + 1) * o.columns, o.columns);
      });
}
void row_rms(benchmark::State& state) {
  Operands o(state);
  compare(
      state, o.x.size(), [&] { o.per_row = sqrt(mean(square(o.x), axis<1>)); },
      [&] {
        for (Index i = 0; i < o.rows; ++i) o.per_row(i) = std::sqrt(o.row(o.x, i).square().mean());
      });
}
void column_sum(benchmark::State& state) {
  Operands o(state);
  compare(
      state, o.x.size(), [&] { o.w = sum(o.x * o.a, axis<0>); },
      [&] {
        o.row(o.w).setZero();
        for (Index i = 0; i < o.rows; ++i) o.row(o.w) += o.row(o.x, i) * o.row(o.a, i);
      });
}
void sum_all(benchmark::State& state) {
  Operands o(state);
  compare(
      state, o.x.size(), [&] { benchmark::DoNotOptimize(sum(o.x * o.a).value()); },
      [&] { benchmark::DoNotOptimize((o.map(o.x) * o.map(o.a)).sum()); });
}
void rows_normalised(benchmark::State& state) {
  Operands o(state);
  compare(
      state, o.x.size(), [&] { o.y = o.x * rsqrt(mean(square(o.x), axis<1>, keepdims) + 1e-5f) * o.w; },
      [&] {
        for (Index i = 0; i < o.rows; ++i)
          o.row(o.y, i) = o.row(o.x, i) * (1 / std::sqrt(o.row(o.x, i).square().mean() + 1e-5f)) * o.row(o.w);
      });
}
void bfloat_silu_times_row(benchmark::State& state) {
  Operands o(state);
  auto x = normal<Bfloat>(Extents{o.rows, o.columns}, 1);
  auto w = normal<Bfloat>(Extents{o.columns}, 2);
  Tensor<Bfloat, 2> y({o.rows, o.columns});
  const auto row = [&](Bfloat* p) { return BfloatRow(reinterpret_cast<Eigen::bfloat16*>(p), o.columns); };
  compare(
      state, x.size(), [&] { y = silu(x) * w + 0.5f; },
      [&] {
        for (Index i = 0; i < o.rows; ++i) {
          const auto v = row(x.data() + i * o.columns).cast<float>();
          row(y.data() + i * o.columns) =
              (v / (1.0f + (-v).exp()) * row(w.data()).cast<float>() + 0.5f).cast<Eigen::bfloat16>();
        }
      });
}
void bfloat_multiply_add(benchmark::State& state) {
  Operands o(state);
  auto x = normal<Bfloat>(Extents{o.rows, o.columns}, 1), a = normal<Bfloat>(Extents{o.rows, o.columns}, 2);
  Tensor<Bfloat, 2> y({o.rows, o.columns});
  const auto row = [&](Bfloat* p) { return BfloatRow(reinterpret_cast<Eigen::bfloat16*>(p), o.columns); };
  compare(
      state, x.size(), [&] { y = x * a + x; },
      [&] {
        for (Index i = 0; i < o.rows; ++i) {
          const auto v = row(x.data() + i * o.columns).cast<float>();
          row(y.data() + i * o.columns) = (v * row(a.data() + i * o.columns).cast<float>() + v).cast<Eigen::bfloat16>();
        }
      });
}

void sizes(benchmark::internal::Benchmark* registered) {
  registered->Args({256, 256})->Args({8192, 1024})->Unit(benchmark::kMicrosecond);
}
void tall(benchmark::internal::Benchmark* registered, int columns) {
  registered->Args({65536 / columns, columns})->Args({4194304 / columns, columns})->Unit(benchmark::kMicrosecond);
}

BENCHMARK(multiply_add)->Apply(sizes);
BENCHMARK(silu_times_row)->Apply(sizes);
BENCHMARK(plus_row)->Apply(sizes);
BENCHMARK(times_column)->Apply(sizes);
BENCHMARK(short_rows<4>)->Apply([](auto* r) { tall(r, 4); });
BENCHMARK(short_rows<8>)->Apply([](auto* r) { tall(r, 8); });
BENCHMARK(short_rows<16>)->Apply([](auto* r) { tall(r, 16); });
BENCHMARK(short_rows_plus_row<4>)->Apply([](auto* r) { tall(r, 4); });
BENCHMARK(short_rows_plus_row<8>)->Apply([](auto* r) { tall(r, 8); });
BENCHMARK(short_rows_plus_row<16>)->Apply([](auto* r) { tall(r, 16); });
BENCHMARK(short_rows_any)->Apply([](auto* r) { tall(r, 4), tall(r, 8), tall(r, 16); });
BENCHMARK(transposed)->Apply(sizes);
BENCHMARK(strided)->Apply(sizes);
BENCHMARK(row_rms)->Apply(sizes);
BENCHMARK(column_sum)->Apply(sizes);
BENCHMARK(sum_all)->Apply(sizes);
BENCHMARK(rows_normalised)->Apply(sizes);
BENCHMARK(bfloat_silu_times_row)->Apply(sizes);
BENCHMARK(bfloat_multiply_add)->Apply(sizes);

}  // namespace

BENCHMARK_MAIN();
