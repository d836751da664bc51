// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/fold_difference/fold_difference_forward.hpp"  // detail::for_roles

namespace diffmamba::fold_difference {

/// Rows are independent; only a lambda that all rows share needs their sum, which is taken in the order of the rows.
template <class T>
void backward(const Inputs<T>& in, const Options& options, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  using A = accumulate_t<T>;
  check(in, options, upstream, gradients);
  const Index rows = in.weight.extent(1);
  const detail::Roles roles(options, in.weight.extent(2));
  const bool add = mode == GradientMode::add;
  const auto mark = workspace.mark();
  A* const products = workspace.take<A>(rows);  // sum(W2 * dF_2) of each row
  parallel_for(tiles_of(rows, detail::row_tile), [&](Index tile) {
    for (Index row = tile * detail::row_tile; row < rows && row < (tile + 1) * detail::row_tile; ++row)
      for (int path = 0; path < 2; ++path) {
        const A s = detail::factor_of<A>(path, in.lambda, options.scale, row);
        A product{};
        detail::for_roles(roles, path, [&](Index from, Index to, Index at) {
          const T* const w = in.weight.pointer(path, row);
          const A* const df = upstream.dweight.pointer(row) + at;
          if (path == 1 && gradients.dlambda)
            for (Index i = from; i < to; ++i) product += static_cast<A>(w[i]) * df[i - from];
          if (!gradients.dweight) return;
          A* const dw = gradients.dweight.pointer(path, row);
          for (Index i = from; i < to; ++i) dw[i] = add ? dw[i] + s * df[i - from] : s * df[i - from];
        });
        if (path == 1) products[row] = product;
      }
  });
  const auto put = [add](A& to, A value) { to = add ? to + value : value; };
  A sum{};
  for (Index row = 0; row < rows; ++row) {
    if (in.bias) {
      const A df = upstream.dbias(row);
      products[row] += in.bias(1, row) * df;
      for (int path = 0; gradients.dbias && path < 2; ++path)
        put(gradients.dbias(path, row), detail::factor_of<A>(path, in.lambda, options.scale, row) * df);
    }
    const A dlambda = -static_cast<A>(options.scale) * products[row];
    sum += dlambda;
    if (gradients.dlambda && in.lambda.extent(0) == rows) put(gradients.dlambda(row), dlambda);
  }
  if (gradients.dlambda && in.lambda.extent(0) != rows) put(gradients.dlambda(0), sum);
  workspace.reset(mark);
}

}  // namespace diffmamba::fold_difference
