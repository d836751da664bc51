// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Embedding, forward and backward, at 8 x 256 tokens, float. GB/s counts the rows that are read and written.
#include <benchmark/benchmark.h>

#include "diffmamba/ops/embedding/embedding_backward.hpp"
#include "diffmamba/ops/embedding/embedding_forward.hpp"
#include "support/ceilings.hpp"

using namespace diffmamba;

namespace {

struct Operands {
  Tensor<std::int32_t, 2> tokens{Extents<2>{8, 256}};
  Tensor<float, 2> weight, dweight;
  Tensor<float, 3> out;
  Operands(Index vocab_size, Index d_model)
      : weight({vocab_size, d_model}, 1.0f), dweight({vocab_size, d_model}), out({8, 256, d_model}, 1.0f) {
    for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = static_cast<std::int32_t>(i * 7919 % vocab_size);
  }
  embedding::Inputs<float> inputs() const { return {.tokens = tokens, .weight = weight}; }
};

void rate(benchmark::State& state, double bytes) {
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["triad"] = bench::ceilings().triad * 1e-9;
}

void forward(benchmark::State& state) {
  Operands o(state.range(0), state.range(1));
  for (auto _ : state) embedding::forward(o.inputs(), o.out);
  rate(state, 2.0 * sizeof(float) * static_cast<double>(o.out.size()));
}
void backward(benchmark::State& state) {
  Operands o(state.range(0), state.range(1));
  for (auto _ : state) embedding::backward(o.inputs(), o.out, o.dweight, GradientMode::add);
  rate(state, 3.0 * sizeof(float) * static_cast<double>(o.out.size()));
}

BENCHMARK(forward)->Args({256, 256})->Args({50280, 1024})->UseRealTime();
BENCHMARK(backward)->Args({256, 256})->Args({50280, 1024})->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
