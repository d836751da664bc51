// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/math/real.hpp"
#include "diffmamba/math/sqrt.hpp"

namespace diffmamba {

struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

namespace detail {

/// The constants of a step and a group, as numbers or as registers of them.
template <class V>
struct AdamWConstants {
  V gradient_scale, decay, take1, keep2, take2, rate, root, eps;
};

/// The same for a learning rate lr (of the group) and a weight decay (of the group), with correction = 1 - beta^t. In
/// double, rounded once.
template <class T>
DIFFMAMBA_HOST_DEVICE inline AdamWConstants<T> adamw_constants(const AdamWOptions& options, double lr,
                                                               double weight_decay, double correction1,
                                                               double correction2, double gradient_scale) {
  return {.gradient_scale = static_cast<T>(gradient_scale),
          .decay = static_cast<T>(1 - lr * weight_decay),
          .take1 = static_cast<T>(1 - options.beta1),
          .keep2 = static_cast<T>(options.beta2),
          .take2 = static_cast<T>(1 - options.beta2),
          .rate = static_cast<T>(lr / correction1),
          .root = static_cast<T>(1 / sqrt(correction2)),
          .eps = static_cast<T>(options.eps)};
}

/// The formula of one element.
template <Real V>
DIFFMAMBA_HOST_DEVICE inline void adamw_element(V& p, V g, V& m, V& v, const AdamWConstants<V>& c) {
  g = c.gradient_scale * g;
  m = m + c.take1 * (g - m);
  v = c.keep2 * v + c.take2 * (g * g);
  p = c.decay * p - c.rate * (m / (c.root * sqrt(v) + c.eps));
}

}  // namespace detail

}  // namespace diffmamba
