// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Dropout of (8, 256, 256), float. Gelements/s; a Philox block of four words for every four elements is what holds it.
#include <benchmark/benchmark.h>

#include "diffmamba/ops/dropout/dropout_forward.hpp"
#include "support/ceilings.hpp"

using namespace diffmamba;

namespace {

void forward(benchmark::State& state) {
  const Tensor<float, 3> x({8, 256, 256}, 1.0f);
  Tensor<float, 3> out(x.extents());
  for (auto _ : state) dropout::forward(x, {.p = 0.1, .random = Philox{1}}, out);
  state.counters["Gelements/s"] =
      benchmark::Counter(static_cast<double>(x.size()) * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(forward)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
