// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The training step of whole models in bfloat16 with float parameters: upload of a batch, forward, backward, clipping,
// AdamW. Time on the host's clock over several steps, the GPU always busy; beside it the first step after warm_up and a
// late one, each waited for. Memory at most in use at once, parameters and gradients included, as torch counts it too;
// and all that the driver counts, its context included.
//
//   bench_gpu_training_step [--filter WORD] [--json] [--steps N] [--recompute | --recompute-convolution]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "diffmamba/train/training_step.hpp"
#include "support/gpu_timing.hpp"
#include "support/models.hpp"

namespace dm = diffmamba;
namespace gpu = dm::bench::gpu;
using dm::Index;

int main(int argc, char** argv) {
  int steps = 10;
  auto recompute = dm::Recompute::nothing;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--steps") == 0 && i + 1 < argc) steps = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--recompute") == 0) recompute = dm::Recompute::mixer;
    if (std::strcmp(argv[i], "--recompute-convolution") == 0) recompute = dm::Recompute::convolution;
  }
  const gpu::Report report(argc, argv, "training_step");
  for (const auto& one : gpu::model_cases()) {
    if (!report.wants(one.name)) continue;
    gpu::Model model(one.config());
    dm::initialize(model, dm::Philox{1});
    model.set_recompute(recompute);
    const Index parameters = model.parameter_count();
    dm::AdamW optimizer(model, {.lr = 1e-4, .weight_decay = 0.1});
    gpu::Time time;
    double loss = 0, warm_up = 0, first = 0, late = 0;
    dm::arena<dm::cuda>().reset_peak();
    {
      dm::TrainingStep training(model, optimizer, {.clip = 1.0});
      dm::Batch batch{dm::Tensor<std::int32_t, 2>({one.batch, one.length}),
                      dm::Tensor<std::int32_t, 2>({one.batch, one.length})};
      for (Index i = 0; i < batch.inputs.size(); ++i) {
        const dm::RandomWords words = dm::Philox{7}(static_cast<std::uint64_t>(i));
        batch.inputs.data()[i] = static_cast<std::int32_t>(words[0] % static_cast<std::uint32_t>(one.vocab_size));
        batch.targets.data()[i] = static_cast<std::int32_t>(words[1] % static_cast<std::uint32_t>(one.vocab_size));
      }
      warm_up = training.warm_up(batch);
      const auto waited = [&] {
        const auto begin = std::chrono::steady_clock::now();
        training(batch, 1e-4);
        training.finish();
        return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      };
      first = waited();
      for (int i = 0; i < 3; ++i) training(batch, 1e-4);
      training.finish();
      std::vector<double> times;
      for (int repeat = 0; repeat < 5; ++repeat) {
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < steps; ++i) training(batch, 1e-4);
        loss = training.finish().loss;
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        times.push_back(1e3 * seconds.count() / steps);
      }
      std::sort(times.begin(), times.end());
      time = {times[times.size() / 2], times.front(), times.back()};
      late = waited();
    }
    const auto memory = dm::cuda_runtime::memory_info();
    report.line(one.name, time, {.flop = one.flop(parameters), .peer_milliseconds = one.peer_training});
    const auto gib = [](std::size_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
    std::fprintf(stderr,
                 "  %.1fM parameters, %lld x %lld tokens: %.0f tokens/s; loss %.3f\n"
                 "  %.2f GiB at most in use, %.2f GiB of it kept by forward; the driver counts %.2f GiB\n"
                 "  warm up %.2f s; the first step after it %.2f ms, a late one %.2f ms\n",
                 1e-6 * static_cast<double>(parameters), static_cast<long long>(one.batch),
                 static_cast<long long>(one.length), 1e3 * static_cast<double>(one.batch * one.length) / time.median,
                 loss, gib(dm::arena<dm::cuda>().peak_bytes()), gib(model.saved_bytes()),
                 gib(memory.total - memory.free), warm_up, first, late);
    model = gpu::Model(gpu::ModelCase{"", 1, 16, 16, {"mamba2"}, 1, 1}.config());
    optimizer = dm::OptimizerOf<gpu::Model>(0);
    dm::arena<dm::cuda>().release();
  }
}
