// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/fold_difference/fold_difference.hpp"

namespace diffmamba::fold_difference {
namespace detail {

inline constexpr Index row_tile = 16;

/// What a row of W1 or W2 is multiplied with.
template <class A>
A factor_of(int path, const View<const A, 1>& lambda, double scale, Index row) {
  const A s = static_cast<A>(scale);
  return path == 0 ? s : -s * lambda(lambda.extent(0) == 1 ? 0 : row);
}

/// f(from, to, at) for every role: columns [from, to) of a path's weight, and where they begin in the folded weight.
template <class F>
void for_roles(const Roles& roles, int path, F&& f) {
  Index before = 0;
  for (const Index size : roles.sizes) {
    if (size > 0) f(before, before + size, 2 * before + path * size);
    before += size;
  }
}

}  // namespace detail

template <class T>
void forward(const Inputs<T>& in, const Options& options, const std::type_identity_t<OutputViews<T>>& outputs) {
  using A = accumulate_t<T>;
  check(in, options, outputs);
  const Index rows = in.weight.extent(1);
  const detail::Roles roles(options, in.weight.extent(2));
  parallel_for(tiles_of(rows, detail::row_tile), [&](Index tile) {
    for (Index row = tile * detail::row_tile; row < rows && row < (tile + 1) * detail::row_tile; ++row)
      for (int path = 0; path < 2; ++path) {
        const A s = detail::factor_of<A>(path, in.lambda, options.scale, row);
        detail::for_roles(roles, path, [&](Index from, Index to, Index at) {
          const T* const w = in.weight.pointer(path, row);
          T* const out = outputs.weight.pointer(row) + at;
          for (Index i = from; i < to; ++i) out[i - from] = T(s * static_cast<A>(w[i]));
        });
      }
  });
  if (!in.bias) return;
  for (Index row = 0; row < rows; ++row)
    outputs.bias(row) = detail::factor_of<A>(0, in.lambda, options.scale, row) * in.bias(0, row) +
                        detail::factor_of<A>(1, in.lambda, options.scale, row) * in.bias(1, row);
}

}  // namespace diffmamba::fold_difference
