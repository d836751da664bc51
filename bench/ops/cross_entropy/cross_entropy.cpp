// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Cross entropy of 2048 rows, float: forward alone, and loss with gradient in the logits' own memory. Glogits/s against
// exponentials per second of this machine (the first cache), since one is needed for each logit.
#include <benchmark/benchmark.h>

#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"
#include "support/ceilings.hpp"

using namespace diffmamba;

namespace {

struct Operands {
  Tensor<float, 2> logits;
  Tensor<std::int32_t, 1> labels;
  Operands(Index rows, Index vocab_size) : logits({rows, vocab_size}), labels(Extents<1>(rows)) {
    for (Index i = 0; i < logits.size(); ++i) logits.data()[i] = static_cast<float>(i % 17) * 0.3f;
    for (Index i = 0; i < rows; ++i) labels(i) = static_cast<std::int32_t>(i % vocab_size);
  }
  cross_entropy::Inputs<float> inputs() const { return {.logits = logits, .labels = labels}; }
};

void rate(benchmark::State& state, const Operands& o) {
  state.counters["Glogits/s"] =
      benchmark::Counter(static_cast<double>(o.logits.size()) * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["Gexp/s"] = bench::ceilings().exp * 1e-9;
}

void forward(benchmark::State& state) {
  const Operands o(state.range(0), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(cross_entropy::forward(o.inputs()).loss(0));
  rate(state, o);
}
void forward_backward_in_place(benchmark::State& state) {
  Operands o(state.range(0), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(cross_entropy::forward_backward(o.inputs(), {}, o.logits.view())(0));
  rate(state, o);
}

BENCHMARK(forward)->Args({2048, 256})->Args({256, 50280})->UseRealTime();
BENCHMARK(forward_backward_in_place)->Args({2048, 256})->Args({256, 50280})->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
