// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Training on the GPU: like the CPU, always the same bits, recorded or not, resumed or not.
#include <doctest/doctest.h>

#include <csignal>

#include "diffmamba/model/language_model.hpp"
#include "diffmamba/train/trainer.hpp"
#include "support/gradient_check.hpp"
#include "support/temporary_folder.hpp"

using namespace diffmamba;
using diffmamba::test::relative_error;

namespace {

template <class D, class T>
using Model = LanguageModel<D, T, accumulate_t<T>, Differential<Mamba2<T, D>>, Mamba2<T, D>>;

ModelConfig tiny(Index vocab = 37, double dropout = 0) {
  ModelConfig config{.d_model = 32,
                     .vocab_size = vocab,
                     .layers = {{"diff_mamba2"}, {"mamba2"}},
                     .mixer = {{"d_state", 16.0}, {"headdim", 16.0}, {"chunk_size", 16.0}}};
  config.dropout = dropout;
  return config;
}

Batch some_batch(Index rows, Index length, int seed, Index vocab = 37) {
  Batch batch{Tensor<std::int32_t, 2>({rows, length}), Tensor<std::int32_t, 2>({rows, length})};
  for (Index i = 0; i < batch.inputs.size(); ++i) {
    batch.inputs.data()[i] = static_cast<std::int32_t>((i * i / 3 + seed * i + 5) % vocab);
    batch.targets.data()[i] = static_cast<std::int32_t>((i * i / 3 + seed * i + 11) % vocab);
  }
  return batch;
}

template <class T>
struct Run {
  Model<cuda, T> model;
  OptimizerOf<Model<cuda, T>> optimizer;
  explicit Run(const ModelConfig& config = tiny())
      : model(config), optimizer(((void)initialize(model, Philox{1}), model), {.lr = 1e-2, .weight_decay = 0.1}) {}
  auto weights() const { return to<cpu>(model.flat().values()); }
};

template <class Tensors>
bool same(const Tensors& a, const Tensors& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(*a.data())) == 0;
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("float follows the CPU for twenty steps") {
    Model<cpu, float> here(tiny());
    initialize(here, Philox{1});
    AdamW here_optimizer(here, {.lr = 1e-2, .weight_decay = 0.1});
    TrainingStep here_training(here, here_optimizer, {.clip = 1.0});
    Run<float> there;
    CHECK(same(there.weights(), to_tensor(View<const float, 1>(here.flat().values()))));
    TrainingStep training(there.model, there.optimizer, {.clip = 1.0});
    for (int step = 0; step < 20; ++step) {
      CAPTURE(step);
      const Batch batch = some_batch(3, 50, step % 4);
      const StepResult want = here_training(batch, 1e-2);
      CHECK(training(batch, 1e-2).step == step);  // the one before
      const StepResult got = training.finish();
      CHECK(got.step == step + 1);
      CHECK(got.learning_rate == 1e-2);
      CHECK(got.loss == doctest::Approx(want.loss).epsilon(1e-4));
      CHECK(got.gradient_norm == doctest::Approx(want.gradient_norm).epsilon(1e-3));
      if (step > 0) continue;
      const auto a = to<cpu>(there.model.flat().gradients());
      const auto b = here.flat().gradients();
      double scale = 0, error = 0;
      for (Index i = 0; i < a.size(); ++i) {
        scale = std::max(scale, std::abs(static_cast<double>(b(i))));
        error = std::max(error, std::abs(static_cast<double>(a(i)) - static_cast<double>(b(i))));
      }
      CHECK(error < 1e-5 * scale);
    }
    CHECK(there.optimizer.steps() == 20);
  }

  TEST_CASE_TEMPLATE("ten steps twice are the same bits; recorded steps are those of the operators", T, float,
                     bfloat16) {
    for (const Index count : {1, 2}) {
      CAPTURE(count);
      const TrainingStepOptions options{.accumulate = count, .seed = 3};
      Run<T> first(tiny(37, 0.1)), second(tiny(37, 0.1)), plain(tiny(37, 0.1));
      TrainingStep a(first.model, first.optimizer, options), b(second.model, second.optimizer, options);
      CHECK(b.warm_up(some_batch(2, 40, 9)) > 0);
      CHECK(same(first.weights(), second.weights()));
      CHECK(same(to<cpu>(first.optimizer.exp_avg()), to<cpu>(second.optimizer.exp_avg())));
      CHECK(second.optimizer.steps() == 0);
      CHECK(b.finish().step == 0);
      for (int step = 0; step < 10; ++step) {
        plain.model.zero_gradients();
        for (Index i = 0; i < count; ++i) {  // of two shapes
          const Batch batch = i == 0 ? some_batch(2, 40, step) : some_batch(1, step % 2 == 0 ? 40 : 33, step + 1);
          a.add(batch);
          b.add(batch);
          plain.model.forward_backward(batch.inputs, batch.targets,
                                       {.scale = 1.0 / static_cast<double>(count),
                                        .dropout = Philox{3}.child(static_cast<std::uint64_t>(count * step + i))});
        }
        a.update(1e-3);
        b.update(1e-3);
        plain.optimizer.step(plain.model, 1e-3);
      }
      CHECK(a.finish().loss == b.finish().loss);
      CHECK(same(first.weights(), second.weights()));
      CHECK(same(first.weights(), plain.weights()));
      CHECK(same(to<cpu>(first.optimizer.exp_avg_sq()), to<cpu>(plain.optimizer.exp_avg_sq())));
      if constexpr (std::is_same_v<T, bfloat16>)
        CHECK(same(to<cpu>(first.model.flat().shadows()), to<cpu>(plain.model.flat().shadows())));
    }
  }

  TEST_CASE("bfloat16 learns what float learns") {
    Run<float> wide;
    Run<bfloat16> narrow;
    TrainingStep a(wide.model, wide.optimizer, {.clip = 1.0});
    TrainingStep b(narrow.model, narrow.optimizer, {.clip = 1.0});
    const Batch batch = some_batch(2, 64, 1);
    for (int step = 0; step < 30; ++step) {
      a(batch, 1e-2);
      b(batch, 1e-2);
    }
    CHECK(a.finish().loss < 1.0);
    CHECK(b.finish().loss == doctest::Approx(a.finish().loss).epsilon(0.1));
  }

  TEST_CASE("what is not finite is named, one step late, and nothing was updated") {
    Run<float> run;
    TrainingStep training(run.model, run.optimizer, {.clip = 1.0});
    training(some_batch(2, 20, 1), 1e-3);
    training.finish();
    run.model.visit([](std::string_view name, auto& parameter) {
      if (name != "backbone.layers.0.mixer.m2.D") return;
      auto values = parameter.to_tensor();
      values.fill(std::numeric_limits<float>::infinity());
      parameter.copy_from(values);
    });
    const auto before = run.weights();
    training(some_batch(2, 20, 2), 1e-3);
    CHECK_THROWS_WITH_AS(training(some_batch(2, 20, 3), 1e-3),
                         doctest::Contains("training: the loss of step 2 is not finite; it begins with the parameter "
                                           "backbone.layers.0.mixer.m2.D."),
                         Error);
    CHECK(same(run.weights(), before));
    CHECK(run.optimizer.steps() == 1);
    CHECK_THROWS_AS(training.add(some_batch(2, 20, 3, 1000)), Error);
  }

  TEST_CASE("a trainer stopped and resumed ends with the same bits") {
    std::string text;
    for (int i = 0; i < 3000; ++i) text += "abcdefgh"[(i * i / 7 + i / 13) % 8];
    const Corpus corpus = Corpus::from_text(text, TextTokenizer::of_characters(text));
    test::TemporaryFolder folder;
    const auto train = [&](const std::filesystem::path& run, bool resume, auto&& after_step) {
      Model<cuda, bfloat16> model(tiny(8, 0.1));
      initialize(model, Philox{1});
      TrainerOptions o;
      o.folder = run;
      o.steps = 13;
      o.batch = 3;
      o.length = 20;
      o.accumulate = 2;
      o.warmup = 3;
      o.evaluate_every = 5;
      o.evaluation_tokens = 100;
      o.save_every = 4;
      o.after_step = after_step;
      Trainer trainer(model, corpus, o);
      if (resume) trainer.resume();
      return trainer.run();
    };
    const auto file = [](const std::filesystem::path& run, const char* name) {
      return read_file(*latest_checkpoint(run) / name);
    };
    const auto whole = train(folder / "whole", false, nullptr);
    CHECK(whole.step == 13);
    const auto stopped = train(folder / "stopped", false, [](Index step, const StepResult&) {
      if (step == 6) std::raise(SIGINT);
    });
    CHECK(stopped.interrupted);
    CHECK(stopped.step == 7);  // the step before is known when the next one runs
    const auto resumed = train(folder / "stopped", true, nullptr);
    CHECK(resumed.loss == whole.loss);
    CHECK(file(folder / "stopped", "model.safetensors") == file(folder / "whole", "model.safetensors"));
    CHECK(file(folder / "stopped", "optimizer.safetensors") == file(folder / "whole", "optimizer.safetensors"));
    CHECK(read_file(folder / "stopped" / "best" / "model.safetensors") ==
          read_file(folder / "whole" / "best" / "model.safetensors"));
    // The checkpoint of a bfloat16 model is a float one, and either device reads it.
    const auto checkpoint = *latest_checkpoint(folder / "whole");
    const auto here = load_model<Model<cpu, float>>(checkpoint);
    const auto there = load_model<Model<cuda, float>>(checkpoint);
    CHECK(perplexity(there, corpus.validation).loss ==
          doctest::Approx(perplexity(here, corpus.validation).loss).epsilon(1e-5));
  }
}
