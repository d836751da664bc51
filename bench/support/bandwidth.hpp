// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>

#include "diffmamba/tensor/random.hpp"
#include "support/ceilings.hpp"

/// For operators that memory holds: bytes per second, where every operand counts once, and how much that is of the
/// triad's in the same process.
namespace diffmamba::bench {

inline void report_bytes(benchmark::State& state, Index bytes_per_call) {
  static const double triad = triad_rate();
  const double total = static_cast<double>(bytes_per_call) * static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(total * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_triad"] = benchmark::Counter(total / triad, benchmark::Counter::kIsRate);
}

/// (batch, length, channels): a training step's, which the caches hold, and one far larger.
inline void row_shapes(benchmark::internal::Benchmark* registered) {
  registered->Args({8, 256, 512})->Args({8, 2048, 1024})->UseRealTime()->Unit(benchmark::kMicrosecond);
}

inline Tensor<float, 3> normal(const benchmark::State& state, std::uint64_t seed) {
  Tensor<float, 3> result(Extents{state.range(0), state.range(1), state.range(2)});
  fill_normal(result, Philox{seed});
  return result;
}
inline Tensor<float, 1> normal(Index size, std::uint64_t seed) {
  Tensor<float, 1> result{Extents<1>(size)};
  fill_normal(result, Philox{seed});
  return result;
}

}  // namespace diffmamba::bench
