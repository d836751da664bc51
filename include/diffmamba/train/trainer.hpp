// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>      // std::chrono::steady_clock
#include <cmath>       // std::log
#include <cstdint>     // std::uint64_t
#include <filesystem>  // std::filesystem::path
#include <functional>  // std::function
#include <limits>      // std::numeric_limits
#include <memory>      // std::unique_ptr
#include <string>      // std::string

#include "diffmamba/data/batches.hpp"
#include "diffmamba/eval/perplexity.hpp"
#include "diffmamba/train/checkpoint.hpp"
#include "diffmamba/train/csv_log.hpp"
#include "diffmamba/train/interrupt.hpp"
#include "diffmamba/train/loss_picture.hpp"
#include "diffmamba/train/progress.hpp"
#include "diffmamba/train/schedule.hpp"
#include "diffmamba/train/tensorboard.hpp"
#include "diffmamba/train/training_step.hpp"

namespace diffmamba {

struct TrainerOptions {
  std::filesystem::path folder;  // of the run: checkpoints, best model, logs, picture
  Index steps = 1000;
  Index batch = 8, length = 256;
  Index accumulate = 1;  // batches per step
  AdamWOptions optimizer = {.lr = 2e-3, .beta2 = 0.95, .weight_decay = 0.1};
  double min_lr = 2e-4;  // at the last step, after half a cosine
  Index warmup = 50;     // steps in which the learning rate rises
  double clip = 1.0;
  std::uint64_t seed = 0;
  Index evaluate_every = 100;       // steps; 0: only at the end
  Index evaluation_tokens = 32768;  // of the validation text; -1: all of it
  Index save_every = 200;           // steps; 0: only at the end
  bool tensorboard = true;
  std::string title = "training";
  std::function<void(Index step, const StepResult&)> after_step = {};  // called before the step is saved
};

struct TrainingOutcome {
  bool interrupted = false;  // by Ctrl-C; the checkpoint is there
  Index step = 0;
  double loss = 0;        // of the last step
  double validation = 0;  // loss of the last evaluation; NaN if the text is too short for any
  TrainingProgress progress;
};

/// The loop of TrainingStep with what a person needs around it: a progress bar, evaluation on the validation text, the
/// best model kept in RUN/best, a CSV and a TensorBoard log, checkpoints, and a picture of the loss at the end. Ctrl-C
/// finishes the step, saves and returns. A resumed run continues bit for bit.
///
///   dm::Trainer trainer(model, corpus, {.folder = "runs/shakespeare", .steps = 2000});
///   if (resume) trainer.resume();
///   trainer.run();
template <class Model>
class Trainer {
 public:
  Trainer(Model& model, const Corpus& corpus, const TrainerOptions& options)
      : model_(&model),
        corpus_(corpus),
        options_(options),
        optimizer_(model, options.optimizer),
        batches_(corpus.train, {.batch = options.batch, .length = options.length, .seed = options.seed}) {
    require(options.steps >= 0, "trainer: steps is ", options.steps, ", expected 0 or more");
    require(corpus.tokenizer.vocab_size() <= model.config().vocab_size, "trainer: the text has ",
            corpus.tokenizer.vocab_size(), " different tokens, the model knows ", model.config().vocab_size.get());
  }

  /// Goes back to the newest checkpoint of the run. Throws Error if there is none or if it is of another model.
  void resume() {
    const auto checkpoint = latest_checkpoint(options_.folder);
    require(checkpoint.has_value(), options_.folder.string(), ": there is no checkpoint to resume from");
    progress_ = load_checkpoint(*checkpoint, *model_, optimizer_);
    batches_.seek(progress_.data_position);
    resumed_ = true;
  }

  const TrainingProgress& progress() const { return progress_; }
  OptimizerOf<Model>& optimizer() { return optimizer_; }

  /// Throws Error if the folder holds another run, which run() would do too.
  void check() const {
    require(resumed_ || !latest_checkpoint(options_.folder), options_.folder.string(),
            ": there is a run already; resume it or take another folder");
  }

  TrainingOutcome run() {
    check();
    create_folder(options_.folder);
    const Index first = progress_.step;
    CsvLog csv(options_.folder / "log.csv",
               {"step", "loss", "validation_loss", "learning_rate", "gradient_norm", "tokens", "seconds"},
               resumed_ ? first : -1);
    std::unique_ptr<TensorBoardLog> board;
    if (options_.tensorboard) board = std::make_unique<TensorBoardLog>(options_.folder / "tensorboard");
    TrainingStep<Model> training(*model_, optimizer_,
                                 {.clip = options_.clip, .accumulate = options_.accumulate, .seed = options_.seed});
    const WarmupCosine schedule{
        .lr = options_.optimizer.lr, .min_lr = options_.min_lr, .warmup = options_.warmup, .steps = options_.steps};
    const Index tokens_per_step = options_.batch * options_.length * options_.accumulate;
    const std::string unit = corpus_.tokenizer.mode() == TextMode::bytes ? "bits/byte" : "bits/character";

    TrainingOutcome outcome;
    outcome.step = first;
    outcome.validation = std::numeric_limits<double>::quiet_NaN();
    {
      Interrupt interrupt;
      ProgressBar bar(options_.steps, first);
      const Index position = batches_.position();
      if (const double warm_up = first < options_.steps ? training.warm_up(batches_.next()) : 0; warm_up > 0)
        bar.say("warmed up in " + detail::print("%.2f s", warm_up));
      batches_.seek(position);
      const auto begin = std::chrono::steady_clock::now();
      const double seconds_before = progress_.seconds;
      Index logged = first;
      // One row of the logs. On a GPU that of a step is written when the next one has been launched, or when the host
      // waits for it anyway.
      const auto note = [&](const StepResult& result, double validation) {
        if (result.step <= logged) return;
        logged = result.step;
        outcome.loss = result.loss;
        if (options_.after_step) options_.after_step(result.step, result);
        csv.write(result.step, {result.loss, validation, result.learning_rate, result.gradient_norm,
                                static_cast<double>(result.step * tokens_per_step), progress_.seconds});
        if (board) log(*board, result, validation, bar.units_per_second());
        bar.show(result.step, static_cast<double>((result.step - first) * tokens_per_step),
                 "loss " + detail::print("%.3f, %.3f ", result.loss, result.loss / std::log(2.0)) + unit);
      };
      constexpr double nothing = std::numeric_limits<double>::quiet_NaN();
      for (Index step = first; step < options_.steps && !outcome.interrupted;) {
        for (Index i = 0; i < options_.accumulate; ++i) training.add(batches_.next());
        const StepResult result = training.update(schedule(step));
        ++step;
        progress_.step = outcome.step = step;
        progress_.data_position = batches_.position();
        const bool last = step == options_.steps;
        const bool validates = corpus_.validation.size() >= 2 && (last || due(step, options_.evaluate_every));
        const bool saves = last || due(step, options_.save_every);
        if (result.step < step) note(result, nothing);  // the step before
        const StepResult newest = validates || saves ? training.finish() : result;
        progress_.seconds =
            seconds_before + std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

        double validation = nothing;
        if (validates) {
          validation = outcome.validation = validate();
          bar.say("step " + std::to_string(step) + ": validation " +
                  detail::print("%.4f ", validation / std::log(2.0)) + unit);
          if (validation < progress_.best_validation) {
            progress_.best_validation = validation;
            progress_.best_step = step;
            save_model(options_.folder / "best", *model_, corpus_.tokenizer);
          }
        }
        note(newest, validation);
        outcome.interrupted = interrupt.requested();
        if (saves || outcome.interrupted) {
          note(training.finish(), validation);
          save_checkpoint(options_.folder, *model_, optimizer_, corpus_.tokenizer, progress_);
        }
      }
    }
    outcome.progress = progress_;
    return outcome;
  }

  /// The loss on the validation text, as it is now.
  double validate() const {
    return perplexity(*model_, corpus_.validation,
                      {.batch = options_.batch, .length = options_.length, .max_tokens = options_.evaluation_tokens})
        .loss;
  }
  /// RUN/loss.svg and loss.png; returns why not, if not.
  std::string draw() const {
    return draw_loss(options_.folder / "loss", {{options_.title, options_.folder / "log.csv"}}, options_.title,
                     corpus_.tokenizer.mode() == TextMode::bytes ? "bits per byte" : "bits per character");
  }

 private:
  static bool due(Index step, Index every) { return every > 0 && step % every == 0; }

  static void log(TensorBoardLog& board, const StepResult& result, double validation, double rate) {
    const Index step = result.step;
    board.scalar("loss/train", step, result.loss);
    if (std::isfinite(validation)) board.scalar("loss/validation", step, validation);
    board.scalar("optimizer/learning_rate", step, result.learning_rate);
    board.scalar("optimizer/gradient_norm", step, result.gradient_norm);
    board.scalar("speed/tokens_per_second", step, rate);
  }

  Model* model_;
  Corpus corpus_;
  TrainerOptions options_;
  OptimizerOf<Model> optimizer_;
  Batches batches_;
  TrainingProgress progress_;
  bool resumed_ = false;
};

}  // namespace diffmamba
