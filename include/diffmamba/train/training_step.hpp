// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>    // std::isfinite
#include <cstdint>  // std::uint64_t
#include <limits>   // std::numeric_limits

#include "diffmamba/data/batches.hpp"
#include "diffmamba/train/adamw.hpp"
#include "diffmamba/train/clip.hpp"

namespace diffmamba {

struct TrainingStepOptions {
  double clip = std::numeric_limits<double>::infinity();  // of the global norm of the gradient
  Index accumulate = 1;                                   // batches of one step: their mean gradient counts
  std::uint64_t seed = 0;                                 // of dropout
};

/// What a step found out.
struct StepResult {
  double loss = 0;           // mean over the batches, in nats per token, before the update
  double gradient_norm = 0;  // before clipping
  double value() const { return loss; }
};

/// Forward, backward, clip, update. A loss or gradient that is not finite is an Error that says where it began, and the
/// parameters stay as they were.
///
///   dm::AdamW optimizer(model, {.lr = 5e-4, .weight_decay = 0.1});
///   dm::TrainingStep training(model, optimizer, {.clip = 1.0});
///   for (auto& batch : dm::batches(corpus.train, {.batch = 8, .length = 256, .count = 1000}))
///     auto result = training(batch, schedule(step++));
///
/// With `accumulate` = n call `add(batch)` n times, then `update(lr)`. The number of a step, from which dropout draws,
/// is the optimizer's: to resume, nothing else must be restored.
template <class Model>
class TrainingStep {
 public:
  using T = typename Model::value_type;

  TrainingStep(Model& model, AdamW<T>& optimizer, const TrainingStepOptions& options = {})
      : model_(&model), optimizer_(&optimizer), options_(options) {
    require(options.accumulate >= 1, "training: accumulate is ", options.accumulate, ", expected 1 or more");
    require(options.clip > 0, "training: clip is ", options.clip, ", expected more than 0");
  }

  StepResult operator()(const Batch& batch, double lr) {
    require(options_.accumulate == 1, "training: a step takes ", options_.accumulate,
            " batches: add them, then update");
    add(batch);
    return update(lr);
  }

  /// One of the batches of a step; returns its loss.
  double add(const Batch& batch) {
    require(added_ < options_.accumulate, "training: a step takes ", options_.accumulate,
            " batches; update before more are added");
    if (added_ == 0) {
      model_->zero_gradients();
      loss_ = 0;
    }
    const auto number = static_cast<std::uint64_t>(optimizer_->steps() * options_.accumulate + added_);
    const double loss = model_->forward_backward(
        batch.inputs, batch.targets,
        {.scale = 1.0 / static_cast<double>(options_.accumulate), .dropout = Philox{options_.seed}.child(number)});
    if (!std::isfinite(loss)) not_finite("the loss", model_->first_not_finite(batch.inputs));
    loss_ += loss / static_cast<double>(options_.accumulate);
    ++added_;
    return loss;
  }
  /// The step itself, from the batches added.
  StepResult update(double lr) {
    require(added_ == options_.accumulate, "training: ", added_, " of the ", options_.accumulate,
            " batches of a step were added");
    added_ = 0;
    const double norm = global_norm(View<const T, 1>(model_->flat().gradients()));
    if (!std::isfinite(norm)) not_finite("the gradient", model_->first_gradient_not_finite());
    optimizer_->step(*model_, lr, clip_factor(norm, options_.clip));
    return {.loss = loss_, .gradient_norm = norm};
  }

 private:
  [[noreturn]] void not_finite(const char* what, const std::string& where) {
    added_ = 0;
    fail("training: ", what, " of step ", optimizer_->steps() + 1, " is not finite; it begins with ",
         where.empty() ? "the loss itself" : where, ". A smaller learning rate or clip may help.");
  }

  Model* model_;
  AdamW<T>* optimizer_;
  TrainingStepOptions options_;
  Index added_ = 0;
  double loss_ = 0;
};

}  // namespace diffmamba
