// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>         // std::min
#include <cmath>             // std::sqrt
#include <initializer_list>  // std::initializer_list
#include <limits>            // std::numeric_limits
#include <span>              // std::span

#include "diffmamba/core/error.hpp"
#include "diffmamba/device/parallel.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/tensor/view.hpp"

/// The global norm of gradients, and clipping by it (torch.nn.utils.clip_grad_norm_): one array that holds all
/// gradients, or several. Sums are kept in double, over fixed tiles added in their order: the same bits on any number
/// of threads, and whatever else the tiles are of.
namespace diffmamba {

namespace detail {

inline constexpr Index norm_tile = 16384;

template <class T>
double sum_of_squares(const View<T, 1>& x) {
  require(x.size() <= 1 || x.stride(0) == 1, "global_norm: the gradients must be contiguous");
  const Index size = x.size(), tiles = tiles_of(size, norm_tile);
  Workspace<cpu> workspace(Workspace<cpu>::bytes_of<double>(tiles));
  double* partial = workspace.take<double>(tiles);
  parallel_for(tiles, [&](Index tile) {
    constexpr int lanes = 16;  // independent sums, so that the loop can be vectorised without changing its order
    double sums[lanes] = {};
    const T* from = x.data() + tile * norm_tile;
    const Index count = std::min(norm_tile, size - tile * norm_tile);
    Index i = 0;
    for (; i + lanes <= count; i += lanes)
      for (int lane = 0; lane < lanes; ++lane) {
        const double value = static_cast<double>(from[i + lane]);
        sums[lane] += value * value;
      }
    for (; i < count; ++i) sums[0] += static_cast<double>(from[i]) * static_cast<double>(from[i]);
    double sum = 0;
    for (double lane : sums) sum += lane;
    partial[tile] = sum;
  });
  double sum = 0;
  for (Index tile = 0; tile < tiles; ++tile) sum += partial[tile];
  return sum;
}

}  // namespace detail

/// sqrt(sum x^2) over all elements of all arrays. NaN or infinite if an element is.
template <class T>
double global_norm(std::span<const View<T, 1>> gradients) {
  double sum = 0;
  for (const auto& gradient : gradients) sum += detail::sum_of_squares(gradient);
  return std::sqrt(sum);
}
template <class T>
double global_norm(const View<T, 1>& gradient) {
  return global_norm(std::span<const View<T, 1>>(&gradient, 1));
}

/// What gradients of this norm are multiplied with: min(1, max_norm / (norm + 1e-6)). An optimizer that takes a factor
/// (adamw_step) saves the pass over memory. A norm that is not finite gives a factor that is not, on purpose: hiding it
/// is not this function's business. max_norm = infinity never clips.
inline double clip_factor(double norm, double max_norm) {
  require(max_norm >= 0, "clip: max_norm is ", max_norm, ", expected 0 or more");
  if (max_norm == std::numeric_limits<double>::infinity()) return 1;
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

/// Scales the gradients to at most max_norm and returns the norm before.
template <class T>
double clip_global_norm(std::span<const View<T, 1>> gradients, double max_norm) {
  const double norm = global_norm(gradients), factor = clip_factor(norm, max_norm);
  if (factor == 1) return norm;
  for (const auto& gradient : gradients)
    parallel_for(tiles_of(gradient.size(), detail::norm_tile), [&](Index tile) {
      const Index end = std::min((tile + 1) * detail::norm_tile, gradient.size());
      const T scale = static_cast<T>(factor);
      for (Index i = tile * detail::norm_tile; i < end; ++i) gradient.data()[i] *= scale;
    });
  return norm;
}
template <class T>
double clip_global_norm(const View<T, 1>& gradient, double max_norm) {
  return clip_global_norm(std::span<const View<T, 1>>(&gradient, 1), max_norm);
}

}  // namespace diffmamba
