// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/train/trainer.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>

#include "diffmamba/model/language_model.hpp"
#include "support/temporary_folder.hpp"

using namespace diffmamba;

namespace {

using Model = LanguageModel<cpu, float, float, Differential<Mamba2<float>>>;

ModelConfig tiny(Index vocab = 256, double dropout = 0) {
  ModelConfig config{.d_model = 16,
                     .vocab_size = vocab,
                     .layers = all("diff_mamba2", 2),
                     .mixer = {{"d_state", 8.0}, {"headdim", 8.0}, {"chunk_size", 16.0}}};
  config.dropout = dropout;
  return config;
}

Corpus some_text() {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "abcdefgh"[(i * i / 7 + i / 13) % 8];
  return Corpus::from_text(text, TextTokenizer::of_characters(text));
}

TrainerOptions options(const std::filesystem::path& folder, Index steps) {
  TrainerOptions o;
  o.folder = folder;
  o.steps = steps;
  o.batch = 3;
  o.length = 20;
  o.accumulate = 2;
  o.warmup = 3;
  o.evaluate_every = 5;
  o.evaluation_tokens = 100;
  o.save_every = 4;
  return o;
}

template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string weights_of(const std::filesystem::path& run) {
  return read_file(*latest_checkpoint(run) / "model.safetensors");
}
std::string averages_of(const std::filesystem::path& run) {
  return read_file(*latest_checkpoint(run) / "optimizer.safetensors");
}

/// The columns of a log that do not tell the time.
std::string log_of(const std::filesystem::path& run) {
  std::string result;
  std::istringstream lines(read_file(run / "log.csv"));
  for (std::string line; std::getline(lines, line);) result += line.substr(0, line.rfind(',')) + "\n";
  return result;
}

}  // namespace

TEST_CASE("training step: a model learns a text of 64 bytes by heart") {
  const std::string text = "To be, or not to be, that is the question: Whether 'tis nobler in";
  const Corpus corpus = Corpus::from_text(text, TextTokenizer::of_characters(text));
  Model model(tiny(corpus.tokenizer.vocab_size()));
  initialize(model, Philox{1});
  AdamW optimizer(model, {.lr = 2e-2, .weight_decay = 0.0});
  TrainingStep training(model, optimizer, {.clip = 1.0});
  Batch batch{Tensor<std::int32_t, 2>({1, 64}), Tensor<std::int32_t, 2>({1, 64})};
  for (Index t = 0; t < 64; ++t) {
    batch.inputs(0, t) = (*corpus.tokens)[static_cast<std::size_t>(t)];
    batch.targets(0, t) = (*corpus.tokens)[static_cast<std::size_t>(t) + 1];
  }
  double first = 0, last = 0;
  for (int step = 0; step < 150; ++step) {
    last = training(batch, 2e-2).value();
    if (step == 0) first = last;
  }
  CHECK(first > 2.5);
  CHECK(last < 0.05);
}

TEST_CASE("training step: accumulated batches are one large batch; NaN is named and changes nothing") {
  const Corpus corpus = some_text();
  Batches loop(corpus.train, {.batch = 4, .length = 16, .seed = 1});
  const Batch large = loop.next();
  Batch halves[2];
  for (int h = 0; h < 2; ++h) {
    halves[h] = {to_tensor(large.inputs.slice<0>(2 * h, 2 * h + 2)),
                 to_tensor(large.targets.slice<0>(2 * h, 2 * h + 2))};
  }
  Model one(tiny(8)), two(tiny(8));
  initialize(one, Philox{1});
  initialize(two, Philox{1});
  AdamW a(one, {}), b(two, {});
  const auto whole = TrainingStep(one, a, {})(large, 1e-3);
  TrainingStep parts(two, b, {.accumulate = 2});
  CHECK_THROWS_AS(parts(halves[0], 1e-3), Error);
  parts.add(halves[0]);
  CHECK_THROWS_AS(parts.update(1e-3), Error);
  parts.add(halves[1]);
  const auto summed = parts.update(1e-3);
  CHECK(summed.loss == doctest::Approx(whole.loss).epsilon(1e-6));
  CHECK(summed.gradient_norm == doctest::Approx(whole.gradient_norm).epsilon(1e-5));

  one.visit([](std::string_view name, auto& parameter) {
    if (name != "backbone.layers.1.mixer.m2.D") return;
    auto values = parameter.to_tensor();
    values.fill(std::numeric_limits<float>::infinity());
    parameter.copy_from(values);
  });
  const auto before = to_tensor(std::as_const(one).flat().values());
  CHECK(message_of([&] { TrainingStep(one, a, {})(large, 1e-3); }) ==
        "training: the loss of step 2 is not finite; it begins with the parameter backbone.layers.1.mixer.m2.D. A "
        "smaller "
        "learning rate or clip may help.");
  for (Index i = 0; i < before.size(); ++i) REQUIRE(before(i) == one.flat().values()(i));
}

TEST_CASE("trainer: a run that was killed and resumed ends with the same bits, at one and at two threads") {
  const Corpus corpus = some_text();
  const auto train = [&](const std::filesystem::path& run, bool resume, auto&& after_step) {
    Model model(tiny(8, 0.1));
    initialize(model, Philox{1});
    auto o = options(run, 13);
    o.after_step = after_step;
    Trainer trainer(model, corpus, o);
    if (resume) trainer.resume();
    return trainer.run();
  };
  for (const int threads : {1, 2}) {
    Threads scope(threads);
    test::TemporaryFolder folder;
    const auto whole = train(folder / "whole", false, nullptr);
    CHECK(whole.step == 13);
    CHECK_FALSE(whole.interrupted);
    CHECK(detail::checkpoint_steps(folder / "whole") == std::vector<Index>{13});

    const auto run = folder / "killed";
    const pid_t child = fork();
    if (child == 0) {  // killed two steps after its last checkpoint
      std::freopen("/dev/null", "w", stderr);
      Threads alone(1);  // OpenMP's threads do not survive a fork
      train(run, false, [](Index step, const StepResult&) {
        if (step == 10) ::kill(::getpid(), SIGKILL);
      });
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status));
    CHECK(detail::checkpoint_steps(run) == std::vector<Index>{8});

    const auto resumed = train(run, true, nullptr);
    CHECK(resumed.step == 13);
    CHECK(resumed.loss == whole.loss);
    CHECK(weights_of(run) == weights_of(folder / "whole"));
    CHECK(averages_of(run) == averages_of(folder / "whole"));
    CHECK(log_of(run) == log_of(folder / "whole"));
    CHECK(read_file(run / "best" / "model.safetensors") == read_file(folder / "whole" / "best" / "model.safetensors"));

    // Ctrl-C: the step is finished and saved.
    const auto interrupted = train(folder / "interrupted", false, [](Index step, const StepResult&) {
      if (step == 6) std::raise(SIGINT);
    });
    CHECK(interrupted.interrupted);
    CHECK(interrupted.step == 6);
    CHECK(detail::checkpoint_steps(folder / "interrupted") == std::vector<Index>{6});
    CHECK(train(folder / "interrupted", true, nullptr).loss == whole.loss);
    CHECK(weights_of(folder / "interrupted") == weights_of(folder / "whole"));
  }
}

TEST_CASE("trainer: a full disk ends the run in one sentence and leaves the last checkpoint") {
  const Corpus corpus = some_text();
  test::TemporaryFolder folder;
  const auto run = folder / "run";
  Model model(tiny(8));
  initialize(model, Philox{1});
  auto o = options(run, 12);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  o.after_step = [&](Index step, const StepResult&) {
    const rlimit tight{4096, limit.rlim_max};
    if (step == 7) setrlimit(RLIMIT_FSIZE, &tight);
  };
  const std::string message = message_of([&] { Trainer(model, corpus, o).run(); });
  setrlimit(RLIMIT_FSIZE, &limit);
  INFO(message);
  CHECK(message.find((run / "step-00000008.partial").string()) == 0);
  CHECK(message.find("cannot be written") != std::string::npos);
  CHECK(detail::checkpoint_steps(run) == std::vector<Index>{4});
  CHECK_FALSE(std::filesystem::exists(run / "step-00000008.partial"));
  o.after_step = nullptr;
  Model again(tiny(8));
  Trainer trainer(again, corpus, o);
  trainer.resume();
  CHECK(trainer.run().step == 12);
}

TEST_CASE("trainer: what cannot be resumed is refused and changes nothing") {
  const Corpus corpus = some_text();
  test::TemporaryFolder folder;
  const auto run = folder / "run";
  Model model(tiny(8));
  initialize(model, Philox{1});
  CHECK(message_of([&] { Trainer(model, corpus, options(run, 4)).resume(); }) ==
        run.string() + ": there is no checkpoint to resume from");
  Trainer(model, corpus, options(run, 4)).run();
  CHECK(message_of([&] { Trainer(model, corpus, options(run, 4)).run(); }) ==
        run.string() + ": there is a run already; resume it or take another folder");

  auto other = tiny(8);
  other.d_model = 24;
  Model wider(other);
  const auto checkpoint = *latest_checkpoint(run);
  CHECK(message_of([&] {
          Trainer(wider, corpus, options(run, 4)).resume();
        }).find((checkpoint / "config.json").string() + ": the checkpoint is of another model: ") == 0);
  const std::string weights = read_file(checkpoint / "model.safetensors");
  std::ofstream(checkpoint / "model.safetensors", std::ios::binary) << weights.substr(0, weights.size() - 10);
  const auto before = to_tensor(std::as_const(model).flat().values());
  const std::string truncated = message_of([&] { Trainer(model, corpus, options(run, 4)).resume(); });
  CHECK(truncated.find((checkpoint / "model.safetensors").string() + ": tensor ") == 0);
  CHECK(truncated.find("truncated or damaged") != std::string::npos);
  for (Index i = 0; i < before.size(); ++i) REQUIRE(before(i) == model.flat().values()(i));
  std::ofstream(checkpoint / "training.json") << "{\"step\": 4";
  CHECK(message_of([&] {
          Trainer(model, corpus, options(run, 4)).resume();
        }).find((checkpoint / "training.json").string() + ": not valid JSON") == 0);
}
