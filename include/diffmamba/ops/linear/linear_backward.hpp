// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/linear/linear.hpp"
#include "diffmamba/ops/matmul/matmul_forward.hpp"

/// With L = sum(dy * y) and y[r, o] = sum_i x[r, i] weight[o, i] + bias[o]:
///
///   dx[r, i]      = sum_o dy[r, o] weight[o, i]          dx = dy weight
///   dweight[o, i] = sum_r dy[r, o] x[r, i]               dweight = dy^T x
///   dbias[o]      = sum_r dy[r, o]
namespace diffmamba::linear {

/// Takes dy, (rows, out), and writes those gradients whose views are given; dx is assigned, dweight and dbias follow
/// the mode.
template <class T, detail::OnCpu Upstream>
void backward(const Inputs<T>& in, const Upstream& upstream, const GradientViews<T>& gradients,
              GradientMode mode = GradientMode::assign) {
  const auto dy = as_view(upstream);
  using S = accumulate_t<T>;
  check(in);
  const Index rows = in.x.extent(0), out = in.weight.extent(0);
  require_shape("linear", "dy", dy, Extents<2>{rows, out});
  const MatmulOptions options{.alpha = 1, .beta = mode == GradientMode::add ? 1.0 : 0.0};
  if (gradients.dx) matmul(dy, View<const T, 2>(in.weight), gradients.dx);
  if (gradients.dweight) matmul(dy.template permute<1, 0>(), View<const T, 2>(in.x), gradients.dweight, options);
  if (gradients.dbias) {
    require_shape("linear", "dbias", gradients.dbias, Extents<1>{out});
    constexpr Index columns = 64;
    parallel_for(tiles_of(out, columns), [&](Index tile) {
      const Index first = tile * columns, count = std::min(columns, out - first);
      S sums[columns] = {};
      const Index step = dy.stride(1);
      for (Index r = 0; r < rows; ++r) {
        const auto* row = dy.pointer(r, first);
        if (count == columns && step == 1)
          for (Index j = 0; j < columns; ++j) sums[j] += static_cast<S>(row[j]);
        else
          for (Index j = 0; j < count; ++j) sums[j] += static_cast<S>(row[j * step]);
      }
      for (Index j = 0; j < count; ++j) {
        S& target = gradients.dbias(first + j);
        target = mode == GradientMode::add ? target + sums[j] : sums[j];
      }
    });
  }
}

template <class T, detail::OnCpu Upstream>
Gradients<T> backward(const Inputs<T>& in, const Upstream& dy) {
  Gradients<T> result;
  result.dx = Tensor<T, 2>::uninitialized(in.x.extents());
  result.dweight = Tensor<accumulate_t<T>, 2>::uninitialized(in.weight.extents());
  if (in.bias) result.dbias = Tensor<accumulate_t<T>, 1>::uninitialized(in.bias.extents());
  GradientViews<T> views{.dx = result.dx, .dweight = result.dweight};
  if (in.bias) views.dbias = result.dbias;
  backward(in, dy, views);
  return result;
}

}  // namespace diffmamba::linear
