// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// A step of AdamW and the global norm over flat arrays, float. GB/s: AdamW reads four arrays and writes three, the norm
// reads one.
#include "diffmamba/train/adamw.hpp"

#include <benchmark/benchmark.h>

#include "diffmamba/train/clip.hpp"
#include "support/ceilings.hpp"

using namespace diffmamba;

namespace {

void rate(benchmark::State& state, double bytes) {
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["triad"] = bench::ceilings().triad * 1e-9;
  state.counters["read"] = bench::ceilings().read * 1e-9;
}

void adamw(benchmark::State& state) {
  const Index size = state.range(0);
  Tensor<float, 1> p(Extents<1>(size), 1.0f), g(Extents<1>(size), 0.5f);
  AdamW<float> optimizer(size);
  for (auto _ : state) optimizer.step(p.view(), g.view());
  rate(state, 7.0 * sizeof(float) * static_cast<double>(size));
}
void norm(benchmark::State& state) {
  const Index size = state.range(0);
  const Tensor<float, 1> g(Extents<1>(size), 0.5f);
  for (auto _ : state) benchmark::DoNotOptimize(global_norm(g.view()));
  rate(state, sizeof(float) * static_cast<double>(size));
}

BENCHMARK(adamw)->Arg(2 << 20)->Arg(64 << 20)->UseRealTime();
BENCHMARK(norm)->Arg(2 << 20)->Arg(64 << 20)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
