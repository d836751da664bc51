// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/core/error.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// Dropout: out_i = x_i / (1 - p) with probability 1 - p, else 0; and the same mask for the gradient.
///
///   Tensor out = dropout::forward(x, {.p = 0.1, .random = Philox{seed, step}});          forward(x, options, out)
///   Tensor dx = dropout::backward(dout, the same options);                               backward(dout, options, dx)
///
/// Nothing is saved: element i in row-major order is kept if word i % 4 of block i / 4 of the generator lies at or
/// above p 2^32, so backward draws the mask again. The caller gives every layer and step a generator of its own
/// (random.child(layer)). The output may be the input. p = 0 copies, p = 1 gives zeros (also of infinities).
namespace diffmamba::dropout {

struct Options {
  double p = 0;
  Philox random = {};
};

inline void check(const Options& options) {
  require(options.p >= 0 && options.p <= 1, "dropout: p is ", options.p, ", expected 0 to 1");
}

}  // namespace diffmamba::dropout
