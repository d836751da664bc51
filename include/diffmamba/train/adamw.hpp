// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min
#include <cmath>      // std::pow, std::sqrt
#include <span>       // std::span
#include <utility>    // std::move
#include <vector>     // std::vector

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/math/sqrt.hpp"
#include "diffmamba/tensor/tensor.hpp"

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

struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

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

/// The constants of a step and a group, as numbers or as registers of them.
template <class V>
struct AdamWConstants {
  V gradient_scale, decay, take1, keep2, take2, rate, root, eps;
};

/// The formula of one element.
template <Real V>
inline void adamw_element(V& p, V g, V& m, V& v, const AdamWConstants<V>& c) {
  g = c.gradient_scale * g;
  m = m + c.take1 * (g - m);
  v = c.keep2 * v + c.take2 * (g * g);
  p = c.decay * p - c.rate * (m / (c.root * sqrt(v) + c.eps));
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
  require(step >= 1, "adamw: step ", step, ", expected 1 or more");
  require(options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1, "adamw: betas (",
          options.beta1, ", ", options.beta2, "), expected 0 <= beta < 1");
  require(options.eps >= 0 && options.lr >= 0 && options.weight_decay >= 0, "adamw: lr ", options.lr, ", eps ",
          options.eps, ", weight_decay ", options.weight_decay, ": expected 0 or more");
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
    require(0 <= group.begin && group.begin <= group.end && group.end <= size, "adamw: a group [", group.begin, ", ",
            group.end, ") of ", size, " parameters");
    const double lr = options.lr * group.lr_scale;
    const detail::AdamWConstants<T> constants{
        .gradient_scale = static_cast<T>(gradient_scale),
        .decay = static_cast<T>(1 - lr * options.weight_decay * group.decay_scale),
        .take1 = static_cast<T>(1 - options.beta1),
        .keep2 = static_cast<T>(options.beta2),
        .take2 = static_cast<T>(1 - options.beta2),
        .rate = static_cast<T>(lr / correction1),
        .root = static_cast<T>(1 / std::sqrt(correction2)),
        .eps = static_cast<T>(options.eps),
    };
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

/// The two averages, the groups and the number of steps done: what an optimizer remembers.
template <class T>
class AdamW {
 public:
  /// For `size` parameters in one array.
  explicit AdamW(Index size, const AdamWOptions& options = {}, std::vector<ParameterGroup> groups = {})
      : options_(options), groups_(std::move(groups)), exp_avg_(Extents<1>(size)), exp_avg_sq_(Extents<1>(size)) {}

  /// For a model whose parameters lie in one array: model.flat() has values(), gradients() and segments that say
  /// whether they decay.
  template <class Model>
  requires requires(Model& model) { model.flat().segments; }
  explicit AdamW(Model& model, const AdamWOptions& options = {})
      : AdamW(model.flat().values().size(), options, groups_of(model.flat().segments)) {}

  /// One step with the learning rate of the options, or `lr`.
  void step(const View<T, 1>& parameters, const View<const T, 1>& gradients) {
    step(parameters, gradients, options_.lr);
  }
  void step(const View<T, 1>& parameters, const View<const T, 1>& gradients, double lr, double gradient_scale = 1) {
    AdamWOptions options = options_;
    options.lr = lr;
    adamw_step(
        AdamWArrays<T>{
            .parameters = parameters, .gradients = gradients, .exp_avg = exp_avg_, .exp_avg_sq = exp_avg_sq_},
        steps_ + 1, options, gradient_scale, groups_);
    ++steps_;
  }
  template <class Model>
  requires requires(Model& model) { model.flat().segments; }
  void step(Model& model, double lr, double gradient_scale = 1) {
    require(static_cast<bool>(model.flat().gradients()),
            "adamw: the model has no gradients; run a backward pass first");
    step(model.flat().values(), model.flat().gradients(), lr, gradient_scale);
  }

  // For checkpoints.
  const AdamWOptions& options() const { return options_; }
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  Index steps() const { return steps_; }
  void set_steps(Index steps) {
    require(steps >= 0, "adamw: ", steps, " steps");
    steps_ = steps;
  }
  View<T, 1> exp_avg() { return exp_avg_; }
  View<const T, 1> exp_avg() const { return exp_avg_; }
  View<T, 1> exp_avg_sq() { return exp_avg_sq_; }
  View<const T, 1> exp_avg_sq() const { return exp_avg_sq_; }

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

  AdamWOptions options_;
  std::vector<ParameterGroup> groups_;
  Tensor<T, 1> exp_avg_, exp_avg_sq_;
  Index steps_ = 0;
};

template <class Model>
requires requires(Model& model) {
  model.flat().segments;
}
AdamW(Model&, AdamWOptions = {})->AdamW<typename Model::value_type>;

}  // namespace diffmamba
