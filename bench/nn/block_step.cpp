// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// A residual block in training, forward and backward, and what a differential block costs against the plain block of as
// many parameters: `ratio` is the quickest pass of one over the quickest pass of the other, taken in turns.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>

#include "diffmamba/nn/block.hpp"
#include "diffmamba/nn/diff_mamba2e.hpp"
#include "diffmamba/nn/diff_s6.hpp"
#include "diffmamba/nn/differential.hpp"

namespace {

namespace dm = diffmamba;
using dm::Index;

template <class M>
class Training {
 public:
  Training(Index d_model, Index batch, Index length, const typename M::Options& options)
      : block_(d_model, options), hidden_({batch, length, d_model}), residual_(hidden_.extents()) {
    dm::initialize(block_, dm::Philox{1});
    dm::fill_normal(hidden_, dm::Philox{2});
    dm::fill_normal(residual_, dm::Philox{3});
  }
  /// Seconds of one pass forward and back.
  double pass() {
    auto d = residual_;
    const auto start = std::chrono::steady_clock::now();
    const auto out = block_.forward(hidden_, residual_, saved_);
    block_.backward(out, d, saved_);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    quickest_ = std::min(quickest_, seconds);
    return seconds;
  }
  double quickest() const { return quickest_; }
  double parameters() const { return static_cast<double>(block_.parameter_count()); }

 private:
  dm::Block<M> block_;
  dm::Tensor<float, 3> hidden_, residual_;
  typename dm::Block<M>::Saved saved_;
  double quickest_ = 1e30;
};

constexpr Index batch = 8, length = 256;

template <class Plain, class Differential>
void compare(benchmark::State& state, const typename Plain::Options& plain_options,
             const typename Differential::Options& differential_options) {
  const Index d_model = state.range(0);
  Training<Plain> plain(d_model, batch, length, plain_options);
  Training<Differential> differential(d_model, batch, length, differential_options);
  for (auto _ : state) {
    plain.pass();
    state.SetIterationTime(differential.pass());
  }
  state.counters["ratio"] = differential.quickest() / plain.quickest();
  state.counters["plain_ms"] = 1e3 * plain.quickest();
  state.counters["parameters"] = differential.parameters();
  state.counters["plain_parameters"] = plain.parameters();
  state.SetItemsProcessed(state.iterations() * batch * length);
}

/// Two paths of state 64 against one of state 128 and twice the width.
void mamba2(benchmark::State& state, dm::Norm norm) {
  const Index d = state.range(0);
  compare<dm::Mamba2<float>, dm::DiffMamba2<float>>(
      state, {.d_model = d, .d_state = 128},
      {.mixer = {.d_model = d, .d_state = 64, .expand = 1}, .differential = {.norm = norm}});
}
void mamba(benchmark::State& state) {
  const Index d = state.range(0);
  compare<dm::Mamba<float>, dm::DiffMamba<float>>(state, {.d_model = d}, dm::DiffMamba<float>::options(d, 0));
}
void diff_s6(benchmark::State& state) {
  const Index d = state.range(0);
  compare<dm::Mamba<float>, dm::DiffS6<float>>(state, {.d_model = d}, {.d_model = d});
}
void diff_mamba2e(benchmark::State& state) {
  const Index d = state.range(0);
  compare<dm::Mamba2<float>, dm::DiffMamba2E<float>>(state, {.d_model = d}, dm::DiffMamba2E<float>::options(d, 0));
}

BENCHMARK_CAPTURE(mamba2, norm_after, dm::Norm::after)
    ->Arg(256)
    ->Arg(768)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(mamba2, norm_before, dm::Norm::before)->Arg(256)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(mamba)->Arg(256)->Arg(768)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(diff_s6)->Arg(256)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(diff_mamba2e)->Arg(256)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
