// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The training step of a byte-level language model: forward, backward, clipping, AdamW; 4 layers of d_model 256,
// batches of 8 x 256 tokens, float. As a fraction of the time that its matrix products alone would take at the
// machine's GEMM rate:
//
//   FLOP = what matmul and linear count, forward and backward
//        + 3 SSD,   SSD = tokens * heads * (chunk (N / heads per group + P) + 4 N P)
//
// with the state space duality in chunks of 64: inside a chunk 2 chunk^2 N (C B^T, per group) and 2 chunk^2 P, of which
// the causal half is needed; to and from the states 2 N P each per token. A backward pass costs two forward ones; what
// is computed again does not count.
//
// bench_training_step                 Google Benchmark: Mamba-2 and Diff-Mamba-2 of equal parameters
// bench_training_step --json          one line about Diff-Mamba-2, for peers/run.sh
#include <benchmark/benchmark.h>

#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include "diffmamba/model/language_model.hpp"
#include "diffmamba/train/training_step.hpp"
#include "support/ceilings.hpp"

namespace {

namespace dm = diffmamba;
using dm::Index;
using Model = dm::LanguageModel<dm::cpu, float, float, dm::Mamba2<float>, dm::Differential<dm::Mamba2<float>>>;

constexpr Index layers = 4, d_model = 256, d_state = 64, headdim = 64, batch_size = 8, length = 256, vocab = 256;

/// A differential mixer's two paths are each half as wide: the parameters of one plain mixer, and two B and C.
dm::ModelConfig config(const char* mixer) {
  return {.d_model = d_model,
          .vocab_size = vocab,
          .layers = dm::all(mixer, layers),
          .mixer = {{"d_state", double(d_state)}, {"headdim", double(headdim)}}};
}

struct Bench {
  Model model;
  dm::AdamW<float> optimizer;
  dm::TrainingStep<Model> step;
  dm::Batch batch;

  explicit Bench(const char* mixer)
      : model(config(mixer)),
        optimizer(model, {.lr = 1e-3, .weight_decay = 0.1}),
        step(model, optimizer, {.clip = 1.0}) {
    dm::initialize(model, dm::Philox{1});
    model.zero_gradients();
    batch.inputs = dm::Tensor<std::int32_t, 2>({batch_size, length});
    batch.targets = dm::Tensor<std::int32_t, 2>({batch_size, length});
    std::uint32_t random = 1;
    for (Index i = 0; i < batch.inputs.size(); ++i) {
      batch.inputs.data()[i] = static_cast<std::int32_t>((random = random * 1664525u + 1013904223u) >> 24);
      if (i > 0) batch.targets.data()[i - 1] = batch.inputs.data()[i];
    }
  }
  void operator()() { step(batch, 1e-3); }
};

/// FLOP of one step, after one that has run.
double flop(Bench& bench, bool differential) {
  dm::matmul_count() = {};
  bench();
  const double N = d_state, P = headdim, chunk = 64, tokens = batch_size * length;
  const double heads = 2 * d_model / headdim, groups = differential ? 2 : 1;
  const double ssd = layers * tokens * (chunk * (groups * N + heads * P) + 4 * heads * N * P);
  return static_cast<double>(dm::matmul_count().flops) + 3 * ssd;
}

/// A line of /proc/self/status in MiB; 0 where there is none.
double memory_mib(const char* name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(name, 0) == 0) return std::stod(line.substr(line.find(':') + 1)) / 1024;
  return 0;
}

void json() {
  Bench bench("diff_mamba2");
  const double before = memory_mib("VmRSS");
  bench();
  bench();
  std::vector<double> times;
  for (int i = 0; i < 11; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    bench();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  const double peak = memory_mib("VmHWM");
  std::sort(times.begin(), times.end());
  const double seconds = times[times.size() / 2], work = flop(bench, true);
  const double sgemm = dm::bench::ceilings().sgemm;
  std::cout << std::fixed << std::setprecision(1) << "{\"parameters\": " << bench.model.parameter_count()
            << ", \"tokens_per_second\": " << batch_size * length / seconds << ", \"milliseconds\": " << seconds * 1e3
            << ", \"gflop_per_step\": " << work * 1e-9 << ", \"gemm_gflops\": " << sgemm * 1e-9
            << ", \"fraction_of_ceiling\": " << std::setprecision(3) << work / sgemm / seconds << std::setprecision(1)
            << ", \"peak_mib_over_setup\": " << peak - before
            << ", \"saved_mib\": " << static_cast<double>(bench.model.saved_bytes()) / (1 << 20)
            << ", \"threads\": " << dm::max_threads() << "}" << std::endl;
}

void training_step(benchmark::State& state, const char* mixer) {
  Bench bench(mixer);
  bench();
  const double work = flop(bench, std::strcmp(mixer, "mamba2") != 0);
  for (auto _ : state) bench();
  const double steps = static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["parameters"] = static_cast<double>(bench.model.parameter_count());
  state.counters["tokens/s"] = Counter(steps * batch_size * length, Counter::kIsRate);
  state.counters["FLOP/s"] = Counter(steps * work, Counter::kIsRate);
  state.counters["of_sgemm"] = Counter(steps * work / dm::bench::ceilings().sgemm, Counter::kIsRate);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--json") == 0) {
    json();
    return 0;
  }
  for (const char* mixer : {"mamba2", "diff_mamba2"})
    benchmark::RegisterBenchmark(mixer, training_step, mixer)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(3);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
