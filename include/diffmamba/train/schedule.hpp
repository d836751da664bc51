// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>    // std::cos
#include <numbers>  // std::numbers::pi

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/error.hpp"

namespace diffmamba {

/// The learning rate of step 0, 1, 2, ...: rising in a straight line over the first `warmup` steps, then falling from
/// lr to min_lr until step `steps` along half a cosine or a straight line, and constant from there. Pure functions of
/// the step: a run that is resumed at step n needs nothing else.
///
///   WarmupCosine schedule{.lr = 5e-4, .min_lr = 5e-5, .warmup = 100, .steps = 2000};
///   const double lr = schedule(step++);
struct WarmupCosine {
  double lr = 1e-3;
  double min_lr = 0;
  Index warmup = 0;
  Index steps = 1;
  double operator()(Index step) const;
};

struct WarmupLinear {
  double lr = 1e-3;
  double min_lr = 0;
  Index warmup = 0;
  Index steps = 1;
  double operator()(Index step) const;
};

struct WarmupConstant {
  double lr = 1e-3;
  Index warmup = 0;
  double operator()(Index step) const;
};

namespace detail {

/// Step 0 of a warm-up already moves: (step + 1) / warmup. 1 afterwards.
inline double warmup_factor(Index step, Index warmup) {
  require(step >= 0 && warmup >= 0, "schedule: step ", step, ", warmup ", warmup, ": expected 0 or more");
  return step < warmup ? static_cast<double>(step + 1) / static_cast<double>(warmup) : 1.0;
}
/// How much of the way from the end of the warm-up to the last step is done: 0 to 1.
inline double decay_progress(Index step, Index warmup, Index steps) {
  if (step <= warmup) return 0;
  return step >= steps ? 1.0 : static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
}

}  // namespace detail

inline double WarmupCosine::operator()(Index step) const {
  const double done = detail::decay_progress(step, warmup, steps);
  const double decayed = min_lr + 0.5 * (lr - min_lr) * (1 + std::cos(std::numbers::pi * done));
  return detail::warmup_factor(step, warmup) * decayed;
}
inline double WarmupLinear::operator()(Index step) const {
  const double done = detail::decay_progress(step, warmup, steps);
  return detail::warmup_factor(step, warmup) * (lr + (min_lr - lr) * done);
}
inline double WarmupConstant::operator()(Index step) const {
  return detail::warmup_factor(step, warmup) * lr;
}

}  // namespace diffmamba
