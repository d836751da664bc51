// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>    // std::array
#include <chrono>   // std::chrono::steady_clock
#include <cmath>    // std::isfinite
#include <cstdint>  // std::uint64_t
#include <limits>   // std::numeric_limits
#include <map>      // std::map
#include <string>   // std::string
#include <utility>  // std::pair
#include <vector>   // std::vector

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/data/batches.hpp"
#include "diffmamba/device/event.hpp"
#include "diffmamba/device/graph.hpp"
#include "diffmamba/device/pinned.hpp"
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
  Index step = 0;            // which one it was, counted from 1; 0: none is known yet
  double learning_rate = 0;  // of its update
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
///
/// On a GPU a step is only launched. The host runs ahead by one: `update` returns what the step before has found out
/// (StepResult::step says which; in the beginning none), and `finish` waits for the last one. An error shows one step
/// late as well; meanwhile nothing is updated, and the optimizer stands where the error says.
template <class Model, Device D = typename Model::device_type>
class TrainingStep;

template <class Model>
TrainingStep(Model&, OptimizerOf<Model>&, const TrainingStepOptions& = {}) -> TrainingStep<Model>;

namespace detail {

inline void check(const TrainingStepOptions& options) {
  require(options.accumulate >= 1, "training: accumulate is ", options.accumulate, ", expected 1 or more");
  require(options.clip > 0, "training: clip is ", options.clip, ", expected more than 0");
}
inline void require_one_batch(const TrainingStepOptions& options) {
  require(options.accumulate == 1, "training: a step takes ", options.accumulate, " batches: add them, then update");
}
inline void require_room(const TrainingStepOptions& options, Index added) {
  require(added < options.accumulate, "training: a step takes ", options.accumulate,
          " batches; update before more are added");
}
inline void require_all(const TrainingStepOptions& options, Index added) {
  require(added == options.accumulate, "training: ", added, " of the ", options.accumulate,
          " batches of a step were added");
}
[[noreturn]] inline void not_finite(const char* what, Index step, const std::string& where) {
  fail("training: ", what, " of step ", step, " is not finite; it begins with ",
       where.empty() ? "the loss itself" : where, ". A smaller learning rate or clip may help.");
}

}  // namespace detail

template <class Model>
class TrainingStep<Model, cpu> {
 public:
  using T = typename Model::value_type;

  TrainingStep(Model& model, AdamW<T>& optimizer, const TrainingStepOptions& options = {})
      : model_(&model), optimizer_(&optimizer), options_(options) {
    detail::check(options);
  }

  StepResult operator()(const Batch& batch, double lr) {
    detail::require_one_batch(options_);
    add(batch);
    return update(lr);
  }

  /// One of the batches of a step.
  void add(const Batch& batch) {
    detail::require_room(options_, added_);
    if (added_ == 0) loss_ = 0;
    const auto number = static_cast<std::uint64_t>(optimizer_->steps() * options_.accumulate + added_);
    const double loss = model_->forward_backward(batch.inputs, batch.targets,
                                                 {.scale = 1.0 / static_cast<double>(options_.accumulate),
                                                  .dropout = Philox{options_.seed}.child(number),
                                                  .gradients = added_ == 0 ? GradientMode::assign : GradientMode::add});
    if (!std::isfinite(loss)) not_finite("the loss", model_->first_not_finite(batch.inputs));
    loss_ += loss / static_cast<double>(options_.accumulate);
    ++added_;
  }
  /// The step itself, from the batches added.
  StepResult update(double lr) {
    detail::require_all(options_, added_);
    added_ = 0;
    const double norm = global_norm(View<const T, 1>(model_->flat().gradients()));
    if (!std::isfinite(norm)) not_finite("the gradient", model_->first_gradient_not_finite());
    optimizer_->step(*model_, lr, clip_factor(norm, options_.clip));
    last_ = {.loss = loss_, .gradient_norm = norm, .step = optimizer_->steps(), .learning_rate = lr};
    return last_;
  }
  /// The last step's result again; on a GPU it may not have been known before.
  StepResult finish() { return last_; }
  /// Seconds that a first step takes longer than the others, spent now; nothing on the CPU.
  double warm_up(const Batch&) { return 0; }

 private:
  [[noreturn]] void not_finite(const char* what, const std::string& where) {
    added_ = 0;
    detail::not_finite(what, optimizer_->steps() + 1, where);
  }

  Model* model_;
  AdamW<T>* optimizer_;
  TrainingStepOptions options_;
  Index added_ = 0;
  double loss_ = 0;
  StepResult last_;
};

/// On a GPU: for each shape of a batch the launches of a step, from the embedding to AdamW, are recorded into one
/// graph, and from the second step on it is replayed. With several batches a step those of forward and backward are one
/// graph (for the first batch, which assigns gradients, another one), and those of norm, clipping and AdamW one more.
/// Tokens, the learning rate and the numbers of step and batch go through pinned memory, in two sets, so that the host
/// prepares a step while another one runs; loss and norm come back the same way.
template <class Model>
class TrainingStep<Model, cuda> {
 public:
  using T = typename Model::value_type;
  using R = accumulate_t<T>;

  TrainingStep(Model& model, AdamW<R, cuda>& optimizer, const TrainingStepOptions& options = {})
      : model_(&model),
        optimizer_(&optimizer),
        options_(options),
        stream_(cuda_runtime::current_stream().device),
        losses_({options.accumulate}),
        number_(Tensor<std::uint64_t, 1, cuda>::uninitialized({1})),
        scalars_(Tensor<StepScalars, 1, cuda>::uninitialized({1})),
        outcome_(Tensor<StepOutcome, 1, cuda>::uninitialized({1})) {
    detail::check(options);
    set_outcome({});
    for (Slot& slot : slots_) slot.batches.resize(static_cast<std::size_t>(options.accumulate));
  }
  TrainingStep(const TrainingStep&) = delete;
  TrainingStep& operator=(const TrainingStep&) = delete;
  ~TrainingStep() {
    try {
      cuda_runtime::synchronize<>(stream_);
    } catch (const Error&) {  // a fault on the GPU shows in the next call as well
    }
  }

  StepResult operator()(const Batch& batch, double lr) {
    detail::require_one_batch(options_);
    add(batch);
    return update(lr);
  }

  /// One of the batches of a step; launched here, or if it is the only one by update. Throws Error for tokens out of
  /// range.
  void add(const Batch& batch) {
    detail::require_room(options_, added_);
    model_->check_batch(batch.inputs, batch.targets);
    Staged& staged = slots_[now_].batches[static_cast<std::size_t>(added_)];
    staged.take(batch, static_cast<std::uint64_t>(optimizer_->steps() * options_.accumulate + added_));
    if (!one_graph()) on_stream([&] { launch_batch(staged, added_); });
    ++added_;
  }
  /// Launches the step and returns what the one before it has found out. Throws Error if that was not finite.
  StepResult update(double lr) {
    detail::require_all(options_, added_);
    added_ = 0;
    Slot& slot = slots_[now_];
    slot.scalars[0] = optimizer_->scalars(lr, 1.0, options_.clip);
    on_stream([&] {
      launch_update(slot);
      slot.outcome.download(outcome_.data(), 1);
      slot.done.record();
    });
    optimizer_->set_steps(optimizer_->steps() + 1);
    slot.step = optimizer_->steps();
    slot.known = false;
    now_ = 1 - now_;
    return result_of(slots_[now_]);
  }
  /// Waits for the last step and returns what it has found out.
  StepResult finish() { return result_of(slots_[1 - now_]); }

  /// Does what a first step would do besides the step: loads kernels, takes memory, records the graphs of batches of
  /// this shape and runs them. Changes neither parameters nor optimizer. Returns the seconds it took.
  double warm_up(const Batch& batch) {
    require(added_ == 0, "training: warm_up between the batches of a step");
    const auto begin = std::chrono::steady_clock::now();
    (void)finish();
    const StepOutcome nothing_is_updated{.bad = 1};
    set_outcome(nothing_is_updated);
    Slot& slot = slots_[now_];
    slot.scalars[0] = optimizer_->scalars(0.0, 1.0, options_.clip);
    for (int time = 0; time < 2; ++time) {  // launched and recorded, then replayed
      for (added_ = 0; added_ < options_.accumulate;) add(batch);
      added_ = 0;
      on_stream([&] { launch_update(slot); });
      cuda_runtime::synchronize<>(stream_);
    }
    set_outcome({});
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  /// A batch in pinned memory.
  struct Staged {
    cuda_runtime::PinnedBuffer<std::int32_t> inputs, targets;
    cuda_runtime::PinnedBuffer<std::uint64_t> number{1};
    Extents<2> extents;

    void take(const Batch& batch, std::uint64_t batch_number) {
      extents = batch.inputs.extents();
      if (inputs.size() < extents.size()) {
        inputs = cuda_runtime::PinnedBuffer<std::int32_t>(extents.size());
        targets = cuda_runtime::PinnedBuffer<std::int32_t>(extents.size());
      }
      copy_elements(cpu{}, batch.inputs.data(), inputs.data(), extents.size());
      copy_elements(cpu{}, batch.targets.data(), targets.data(), extents.size());
      number[0] = batch_number;
    }
  };
  /// A step in pinned memory.
  struct Slot {
    std::vector<Staged> batches;
    cuda_runtime::PinnedBuffer<StepScalars> scalars{1};
    cuda_runtime::PinnedBuffer<StepOutcome> outcome{1};
    cuda_runtime::Event<> done;
    Index step = 0;
    bool known = true;  // the outcome has been looked at
  };
  /// A shape of batches: their place on the GPU, and its graphs.
  struct Shape {
    Tensor<std::int32_t, 2, cuda> inputs, targets;
    cuda_runtime::Graph<> step;         // with one batch a step all of it, else
    cuda_runtime::Graph<> first, more;  // forward and backward of the first batch of a step, and of those after it
  };

  bool one_graph() const { return options_.accumulate == 1; }

  // Work on the stream of this training, in order with the caller's.
  template <class Work>
  void on_stream(const Work& work) {
    const cuda_runtime::Stream callers = cuda_runtime::current_stream();
    cuda_runtime::order(callers, stream_);
    {
      const cuda_runtime::StreamScope on(stream_);
      work();
    }
    cuda_runtime::order(stream_, callers);
  }
  // The first time as it is, then recorded, from then on replayed.
  template <class Work>
  static void run(cuda_runtime::Graph<>& graph, const Work& work) {
    if (graph) {
      graph.replay();
    } else {
      work();
      graph = cuda_runtime::Graph<>(work, cuda_runtime::WarmUp::no);
    }
  }

  /// Tokens and number of a batch to the GPU.
  Shape& upload(const Staged& staged) {
    Shape& shape = shapes_[{staged.extents[0], staged.extents[1]}];
    if (!shape.inputs) {
      shape.inputs = Tensor<std::int32_t, 2, cuda>::uninitialized(staged.extents);
      shape.targets = Tensor<std::int32_t, 2, cuda>::uninitialized(staged.extents);
    }
    staged.inputs.upload(shape.inputs.data(), staged.extents.size());
    staged.targets.upload(shape.targets.data(), staged.extents.size());
    staged.number.upload(number_.data(), 1);
    return shape;
  }
  // The loss goes to the first of `losses`.
  void forward_backward(const Shape& shape, bool first) {
    model_->forward_backward_on_device(shape.inputs, shape.targets, losses_.template slice<0>(0, 1),
                                       {.scale = 1.0 / static_cast<double>(options_.accumulate),
                                        .dropout = StepRandom(Philox{options_.seed}, number_.data()),
                                        .gradients = first ? GradientMode::assign : GradientMode::add});
  }
  /// Norm, clipping and AdamW.
  void end_step() {
    optimizer_->launch(*model_, View<const StepScalars, 1, cuda>(scalars_.view()), outcome_.view(),
                       View<const R, 1, cuda>(losses_.view()));
  }
  /// Forward and backward of batch number `at` of several. The next one's loss takes the place of this one's, which is
  /// kept further back.
  void launch_batch(const Staged& staged, Index at) {
    Shape& shape = upload(staged);
    run(at == 0 ? shape.first : shape.more, [this, &shape, at] { forward_backward(shape, at == 0); });
    if (at + 1 < options_.accumulate)
      cuda_runtime::copy_bytes_async(losses_.data(), losses_.data() + options_.accumulate - 1 - at, sizeof(R));
  }
  /// The end of a step, and where it is of one batch the beginning.
  void launch_update(Slot& slot) {
    slot.scalars.upload(scalars_.data(), 1);
    if (!one_graph()) return run(update_, [this] { end_step(); });
    Shape& shape = upload(slot.batches[0]);
    run(shape.step, [this, &shape] {
      forward_backward(shape, true);
      end_step();
    });
  }

  StepResult result_of(Slot& slot) {
    if (slot.step == 0) return {};
    slot.done.wait();
    const StepOutcome& outcome = slot.outcome[0];
    if (outcome.bad != 0 && !slot.known) recover(slot);
    slot.known = true;
    return {.loss = outcome.loss,
            .gradient_norm = outcome.gradient_norm,
            .step = slot.step,
            .learning_rate = slot.scalars[0].lr};
  }

  // Something in that step was not finite: goes back to where it began, finds what it was and throws.
  [[noreturn]] void recover(Slot& slot) {
    cuda_runtime::synchronize<>(stream_);
    const Index step = slot.step;
    const bool loss_is_bad = !std::isfinite(slot.outcome[0].loss);
    optimizer_->set_steps(step - 1);
    added_ = 0;
    set_outcome({});
    for (Slot& each : slots_) {
      each.step = 0;
      each.known = true;
    }
    std::string where;
    for (const Staged& staged : slot.batches) {
      if (!loss_is_bad || !where.empty()) break;
      where = model_->first_not_finite(View<const std::int32_t, 2>(staged.inputs.data(), staged.extents));
    }
    if (!loss_is_bad) {  // the gradients may be those of a later step by now
      on_stream([&] {
        for (std::size_t i = 0; i < slot.batches.size(); ++i) forward_backward(upload(slot.batches[i]), i == 0);
      });
      cuda_runtime::synchronize<>(stream_);
      where = model_->first_gradient_not_finite();
    }
    detail::not_finite(loss_is_bad ? "the loss" : "the gradient", step, where);
  }
  void set_outcome(const StepOutcome& outcome) { copy_elements(cuda{}, &outcome, outcome_.data(), 1); }

  Model* model_;
  AdamW<R, cuda>* optimizer_;
  TrainingStepOptions options_;
  cuda_runtime::OwnedStream<> stream_;  // its memory is the graphs'
  Tensor<R, 1, cuda> losses_;           // of the batches of a step
  Tensor<std::uint64_t, 1, cuda> number_;
  Tensor<StepScalars, 1, cuda> scalars_;
  Tensor<StepOutcome, 1, cuda> outcome_;
  std::map<std::pair<Index, Index>, Shape> shapes_;
  cuda_runtime::Graph<> update_;
  std::array<Slot, 2> slots_;
  std::size_t now_ = 0;
  Index added_ = 0;
};

}  // namespace diffmamba
