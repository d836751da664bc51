// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The GPU learns what the CPU learns: 200 steps on text with dropout, the same batches and masks, in float on both and
// in bfloat16. With DIFFMAMBA_CURVES=FILE in the environment the losses are written there, one line a step.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>

#include "diffmamba/model/language_model.hpp"
#include "diffmamba/train.hpp"

using namespace diffmamba;

namespace {

constexpr Index steps = 200;

template <class D, class T>
using Model = LanguageModel<D, T, accumulate_t<T>, Differential<Mamba2<T, D>>, Mamba2<T, D>>;

/// The loss of every step.
template <class D, class T>
std::vector<double> learn(const Corpus& corpus, const std::string& mixer) {
  ModelConfig config{.d_model = 128, .vocab_size = 256, .layers = all(mixer, 4), .mixer = {{"d_state", 64.0}}};
  config.dropout = 0.1;
  Model<D, T> model(config);
  initialize(model, Philox{1});
  AdamW optimizer(model, {.lr = 3e-3, .beta2 = 0.95, .weight_decay = 0.1});
  TrainingStep training(model, optimizer, {.clip = 1.0, .seed = 5});
  Batches batches(corpus.train, {.batch = 8, .length = 128, .seed = 2});
  const WarmupCosine schedule{.lr = 3e-3, .min_lr = 3e-4, .warmup = 20, .steps = steps};
  std::vector<double> losses;
  for (Index step = 0; step < steps; ++step) {
    // On a GPU a call returns what the step before has found out.
    const StepResult result = training(batches.next(), schedule(step));
    if (result.step == static_cast<Index>(losses.size()) + 1) losses.push_back(result.loss);
  }
  if (static_cast<Index>(losses.size()) < steps) losses.push_back(training.finish().loss);
  REQUIRE(losses.size() == steps);
  return losses;
}

/// Over the steps [begin, end), counted from 0.
double mean(const std::vector<double>& losses, std::size_t begin, std::size_t end) {
  double sum = 0;
  for (std::size_t i = begin; i < end; ++i) sum += losses[i];
  return sum / static_cast<double>(end - begin);
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("200 steps on text: float and bfloat16 follow the CPU within one per cent") {
    const auto corpus = load_corpus(DIFFMAMBA_SOURCE_DIR "/data/tinyshakespeare.txt");
    const char* const file = std::getenv("DIFFMAMBA_CURVES");
    std::ofstream curves;
    if (file != nullptr) curves.open(file);
    curves.precision(9);
    curves << "mixer,step,cpu_float32,gpu_float32,gpu_bfloat16\n";
    for (const std::string mixer : {"mamba2", "diff_mamba2"}) {
      CAPTURE(mixer);
      const auto here = learn<cpu, float>(corpus, mixer);
      const auto there = learn<cuda, float>(corpus, mixer);
      const auto narrow = learn<cuda, bfloat16>(corpus, mixer);
      for (std::size_t step = 0; step < 20; ++step) {
        CAPTURE(step);
        CHECK(there[step] == doctest::Approx(here[step]).epsilon(1e-4));
      }
      const double want = mean(here, 150, steps);
      MESSAGE(mixer << ": mean loss of steps 150 to 200: " << want << " on the CPU, " << mean(there, 150, steps)
                    << " on the GPU, " << mean(narrow, 150, steps) << " in bfloat16; in the beginning " << here[0]);
      CHECK(want < 0.5 * here[0]);
      CHECK(mean(there, 150, steps) == doctest::Approx(want).epsilon(0.01));
      CHECK(mean(narrow, 150, steps) == doctest::Approx(want).epsilon(0.01));
      for (std::size_t step = 0; step < steps; ++step)
        curves << mixer << ',' << step + 1 << ',' << here[step] << ',' << there[step] << ',' << narrow[step] << '\n';
    }
  }
}
