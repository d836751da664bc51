// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::find_if, std::min
#include <cmath>      // std::pow
#include <limits>     // std::numeric_limits
#include <span>       // std::span
#include <utility>    // std::move
#include <vector>     // std::vector

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "diffmamba/train/adamw_element.hpp"
#include "diffmamba/train/device_update.hpp"

/// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101; torch.optim.AdamW) over flat arrays: all parameters of a model
/// in one, their gradients in another. In step t = 1, 2, ... with gradient g:
///
///   p = (1 - lr wd) p
///   m = m + (1 - beta1) (g - m)                        v = beta2 v + (1 - beta2) g^2
///   p = p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
///
///   AdamW optimizer(model, {.lr = 5e-4, .weight_decay = 0.1});       decay on what the model says must decay
///   optimizer.step(model, schedule(step), clip_factor(norm, 1.0));
///
/// Without a model, over any memory: AdamW<float> optimizer(size, options, groups); optimizer.step(parameters,
/// gradients, lr).
namespace diffmamba {

/// A range of the flat array with factors of its own. Elements of no group stay as they are.
struct ParameterGroup {
  Index begin, end;        // elements [begin, end)
  double lr_scale = 1;     // times lr
  double decay_scale = 1;  // times weight_decay; 0: norms, biases, A_log, D, dt_bias
};

/// The arrays of a step, contiguous and of one size.
template <class T>
struct AdamWArrays {
  RequiredView<T, 1> parameters;
  RequiredView<const T, 1> gradients;
  RequiredView<T, 1> exp_avg;     // m
  RequiredView<T, 1> exp_avg_sq;  // v
};

namespace detail {

inline void check_adamw(const AdamWOptions& options, Index step, Index size, std::span<const ParameterGroup> groups) {
  require(step >= 1, "adamw: step ", step, ", expected 1 or more");
  require(options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1, "adamw: betas (",
          options.beta1, ", ", options.beta2, "), expected 0 <= beta < 1");
  require(options.eps >= 0 && options.lr >= 0 && options.weight_decay >= 0, "adamw: lr ", options.lr, ", eps ",
          options.eps, ", weight_decay ", options.weight_decay, ": expected 0 or more");
  for (const ParameterGroup& group : groups)
    require(0 <= group.begin && group.begin <= group.end && group.end <= size, "adamw: a group [", group.begin, ", ",
            group.end, ") of ", size, " parameters");
}

}  // namespace detail

/// One step, t = step >= 1. The gradients are multiplied by gradient_scale as they are read: clipping and the mean over
/// accumulated batches without a pass of their own. No groups: everything is one. Throws Error for arrays of different
/// sizes, groups outside them and options out of range.
template <class T>
void adamw_step(const AdamWArrays<T>& arrays, Index step, const AdamWOptions& options, double gradient_scale = 1,
                std::span<const ParameterGroup> groups = {}) {
  using L = Lanes<T>;
  const Index size = arrays.parameters.size();
  detail::check_adamw(options, step, size, groups);
  const auto check = [&](const char* name, const auto& view) {
    require_shape("adamw", name, view, Extents<1>(size));
    require(size <= 1 || view.stride(0) == 1, "adamw: ", name, " must be contiguous");
  };
  check("parameters", arrays.parameters);
  check("gradients", arrays.gradients);
  check("exp_avg", arrays.exp_avg);
  check("exp_avg_sq", arrays.exp_avg_sq);
  const ParameterGroup everything{.begin = 0, .end = size};
  if (groups.empty()) groups = std::span(&everything, 1);

  const double t = static_cast<double>(step);
  const double correction1 = 1 - std::pow(options.beta1, t), correction2 = 1 - std::pow(options.beta2, t);
  // One parallel loop over the tiles of all groups.
  struct Tile {
    Index begin, end;
    detail::AdamWConstants<T> constants;
  };
  std::vector<Tile> tiles;
  for (const ParameterGroup& group : groups) {
    const double lr = options.lr * group.lr_scale;
    const auto constants = detail::adamw_constants<T>(options, lr, options.weight_decay * group.decay_scale,
                                                      correction1, correction2, gradient_scale);
    constexpr Index tile_size = 16384;
    for (Index begin = group.begin; begin < group.end; begin += tile_size)
      tiles.push_back({begin, std::min(begin + tile_size, group.end), constants});
  }
  parallel_for(static_cast<Index>(tiles.size()), [&](Index number) {
    const auto& [begin, end, one] = tiles[static_cast<std::size_t>(number)];
    const auto lanes = [](T value) { return L(static_cast<double>(value)); };
    const detail::AdamWConstants<L> all{lanes(one.gradient_scale), lanes(one.decay), lanes(one.take1), lanes(one.keep2),
                                        lanes(one.take2),          lanes(one.rate),  lanes(one.root),  lanes(one.eps)};
    T *p = arrays.parameters.data(), *m = arrays.exp_avg.data(), *v = arrays.exp_avg_sq.data();
    const T* g = arrays.gradients.data();
    Index i = begin;
    for (; i + L::size <= end; i += L::size) {
      L parameter = L::load(p + i), average = L::load(m + i), square = L::load(v + i);
      detail::adamw_element(parameter, L::load(g + i), average, square, all);
      parameter.store(p + i);
      average.store(m + i);
      square.store(v + i);
    }
    for (; i < end; ++i) detail::adamw_element(p[i], g[i], m[i], v[i], one);
  });
}

/// The two averages, the groups and the number of steps done: what an optimizer remembers. T is the type of the
/// parameters that are learned, which mixed precision keeps in float: accumulate_t of a model's value_type.
template <class T, Device D = cpu>
class AdamW {
 public:
  using value_type = T;
  using device_type = D;

  /// For `size` parameters in one array.
  explicit AdamW(Index size, const AdamWOptions& options = {}, std::vector<ParameterGroup> groups = {})
      : options_(options), groups_(std::move(groups)), exp_avg_(Extents<1>(size)), exp_avg_sq_(Extents<1>(size)) {
    if constexpr (std::is_same_v<D, cuda>) make_tiles();
  }

  /// For a model whose parameters lie in one array: model.flat() has values(), gradients() and segments that say
  /// whether they decay.
  template <class Model>
  requires requires(Model& model) { model.flat().segments; }
  explicit AdamW(Model& model, const AdamWOptions& options = {})
      : AdamW(model.flat().values().size(), options, groups_of(model.flat().segments)) {}

  /// One step with the learning rate of the options, or `lr`. On a GPU it is launched, not waited for.
  void step(const View<T, 1, D>& parameters, const View<const T, 1, D>& gradients) {
    step(parameters, gradients, options_.lr);
  }
  void step(const View<T, 1, D>& parameters, const View<const T, 1, D>& gradients, double lr,
            double gradient_scale = 1) {
    step(parameters, gradients, View<T, 1, D>{}, lr, gradient_scale);
  }
  /// The same, and the model's rounded copies of its parameters, where it has some, are written along.
  template <class Model>
  requires requires(Model& model) { model.flat().segments; }
  void step(Model& model, double lr, double gradient_scale = 1) {
    auto& flat = model.flat();
    require(static_cast<bool>(flat.gradients()), "adamw: the model has no gradients; run a backward pass first");
    if constexpr (requires { flat.shadows(); }) {
      step(flat.values(), flat.gradients(), flat.shadows(), lr, gradient_scale);
    } else {
      step(flat.values(), flat.gradients(), lr, gradient_scale);
    }
  }

  // For a training step that is recorded into a graph (train/training_step.hpp).

  /// What the host has to say about step number steps() + 1.
  StepScalars scalars(double lr, double gradient_scale, double clip) const {
    const double t = static_cast<double>(steps_ + 1);
    return {.lr = lr,
            .correction1 = 1 - std::pow(options_.beta1, t),
            .correction2 = 1 - std::pow(options_.beta2, t),
            .gradient_scale = gradient_scale,
            .clip = clip};
  }
  /// Launches an update whose numbers lie on the device; steps() does not change. losses: see UpdateArrays.
  template <class Model>
  void launch(Model& model, const View<const StepScalars, 1, D>& scalars, const View<StepOutcome, 1, D>& outcome,
              const View<const T, 1, D>& losses) {
    static_assert(std::is_same_v<D, cuda>, "adamw: launch is of GPUs");
    auto& flat = model.flat();
    launch(flat.values(), flat.gradients(), flat.shadows(), scalars, outcome, losses, MeasureNorm::yes);
  }

  // For checkpoints.
  const AdamWOptions& options() const { return options_; }
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  Index steps() const { return steps_; }
  void set_steps(Index steps) {
    require(steps >= 0, "adamw: ", steps, " steps");
    steps_ = steps;
  }
  View<T, 1, D> exp_avg() { return exp_avg_; }
  View<const T, 1, D> exp_avg() const { return exp_avg_; }
  View<T, 1, D> exp_avg_sq() { return exp_avg_sq_; }
  View<const T, 1, D> exp_avg_sq() const { return exp_avg_sq_; }

 private:
  template <class Segments>
  static std::vector<ParameterGroup> groups_of(const Segments& segments) {
    using Choice = decltype(segments.front().decay);
    std::vector<ParameterGroup> groups;
    for (const auto& segment : segments)
      groups.push_back({.begin = segment.offset,
                        .end = segment.offset + segment.size,
                        .decay_scale = segment.decay == Choice::yes ? 1.0 : 0.0});
    return groups;
  }

  template <class Shadow>
  void step(const View<T, 1, D>& parameters, const View<const T, 1, D>& gradients,
            [[maybe_unused]] const View<Shadow, 1, D>& shadows, double lr, double gradient_scale) {
    AdamWOptions options = options_;
    options.lr = lr;
    if constexpr (std::is_same_v<D, cpu>) {
      static_assert(std::is_same_v<Shadow, T>, "adamw: on the CPU parameters have no rounded copies");
      adamw_step(
          AdamWArrays<T>{
              .parameters = parameters, .gradients = gradients, .exp_avg = exp_avg_, .exp_avg_sq = exp_avg_sq_},
          steps_ + 1, options, gradient_scale, groups_);
    } else {
      detail::check_adamw(options, steps_ + 1, parameters.size(), groups_);
      const StepScalars now = scalars(lr, gradient_scale, std::numeric_limits<double>::infinity());
      Tensor<StepScalars, 1, D> there = Tensor<StepScalars, 1, D>::uninitialized({1});
      Tensor<StepOutcome, 1, D> outcome = Tensor<StepOutcome, 1, D>::uninitialized({1});
      const StepOutcome nothing;
      copy_elements(D{}, &now, there.data(), 1);
      copy_elements(D{}, &nothing, outcome.data(), 1);
      launch(parameters, gradients, shadows, there.view(), outcome.view(), {}, MeasureNorm::no);
    }
    ++steps_;
  }
  template <class Shadow>
  void launch(const View<T, 1, D>& parameters, const View<const T, 1, D>& gradients, const View<Shadow, 1, D>& shadows,
              const View<const StepScalars, 1, D>& scalars, const View<StepOutcome, 1, D>& outcome,
              const View<const T, 1, D>& losses, MeasureNorm measure) {
    Workspace<D> workspace(device_update_workspace_bytes<T>(parameters.size(), kinds_.size()));
    device_update(UpdateArrays<T, Shadow>{.parameters = parameters,
                                          .gradients = gradients,
                                          .exp_avg = exp_avg_,
                                          .exp_avg_sq = exp_avg_sq_,
                                          .shadows = shadows,
                                          .tiles = tiles_,
                                          .kinds = kinds_,
                                          .scalars = scalars,
                                          .outcome = outcome,
                                          .losses = losses},
                  options_, measure, workspace);
  }
  // The groups, cut into tiles, on the GPU.
  void make_tiles() {
    std::vector<UpdateTile> tiles;
    std::vector<UpdateKind> kinds;
    const ParameterGroup everything{.begin = 0, .end = exp_avg_.size()};
    for (const ParameterGroup& group : groups_.empty() ? std::vector{everything} : groups_) {
      const auto same = [&](const UpdateKind& kind) {
        return kind.lr_scale == group.lr_scale && kind.decay_scale == group.decay_scale;
      };
      const auto found = std::find_if(kinds.begin(), kinds.end(), same);
      const auto kind = static_cast<std::int32_t>(found - kinds.begin());
      if (found == kinds.end()) kinds.push_back({.lr_scale = group.lr_scale, .decay_scale = group.decay_scale});
      for (Index begin = group.begin; begin < group.end; begin += update_tile)
        tiles.push_back({.begin = begin,
                         .count = static_cast<std::int32_t>(std::min(update_tile, group.end - begin)),
                         .kind = kind});
    }
    if (kinds.empty()) kinds.emplace_back();
    const auto upload = [](const auto& from, auto& there) {
      there = std::remove_cvref_t<decltype(there)>::uninitialized({static_cast<Index>(from.size())});
      copy_elements(D{}, from.data(), there.data(), there.size());
    };
    upload(tiles, tiles_);
    upload(kinds, kinds_);
  }

  AdamWOptions options_;
  std::vector<ParameterGroup> groups_;
  Tensor<T, 1, D> exp_avg_, exp_avg_sq_;
  Tensor<UpdateTile, 1, D> tiles_;  // on a GPU
  Tensor<UpdateKind, 1, D> kinds_;
  Index steps_ = 0;
};

template <class Model>
requires requires(Model& model) {
  model.flat().segments;
}
AdamW(Model&, AdamWOptions = {})->AdamW<accumulate_t<typename Model::value_type>, typename Model::device_type>;

/// What AdamW(model) is.
template <class Model>
using OptimizerOf = AdamW<accumulate_t<typename Model::value_type>, typename Model::device_type>;

}  // namespace diffmamba
