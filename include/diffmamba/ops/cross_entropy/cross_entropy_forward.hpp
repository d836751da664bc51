// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::copy_n, std::fill, std::max, std::min
#include <cmath>        // std::log
#include <limits>       // std::numeric_limits
#include <type_traits>  // std::type_identity_t

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy.hpp"

/// One row after another, in tiles of rows: its maximum, then the sum of exp(x - maximum). The losses of the rows are
/// added in double, in their order, when all are known.
namespace diffmamba::cross_entropy {
namespace detail {

/// use(lanes, number of their first element) over a row; what fills up the last ones is the lowest number,
/// whose exponential is 0.
template <class S, class Use>
void for_lanes(const S* row, Index size, Use&& use) {
  constexpr Index width = Lanes<S>::size;
  Index i = 0;
  for (; i + width <= size; i += width) use(Lanes<S>::load(row + i), i);
  if (i == size) return;
  S rest[width];
  std::fill(std::copy_n(row + i, size - i, rest), rest + width, std::numeric_limits<S>::lowest());
  use(Lanes<S>::load(rest), i);
}
/// Stores lanes at row[i], or as many of them as lie before `size`.
template <class S>
void store(const Lanes<S>& lanes, S* row, Index i, Index size) {
  constexpr Index width = Lanes<S>::size;
  if (i + width <= size) return lanes.store(row + i);
  S rest[width];
  lanes.store(rest);
  std::copy_n(rest, size - i, row + i);
}

/// exp(x - maximum) goes to `exponentials` where that is given (x itself is allowed); returns the logarithm of the sum
/// of exp(x). NaN if any x is.
template <class S>
struct RowSum {
  S maximum, sum;
  S logsumexp() const { return maximum + std::log(sum); }
  /// logsumexp - score, where both may be large and close together.
  S loss(double score) const {
    return static_cast<S>(std::log(static_cast<double>(sum)) + (static_cast<double>(maximum) - score));
  }
};
template <class S>
RowSum<S> sum_exponentials(const S* x, Index size, S* exponentials) {
  using L = Lanes<S>;
  L largest = L::all(std::numeric_limits<S>::lowest());
  for_lanes(x, size, [&](const L& lanes, Index) { largest = max(largest, lanes); });
  S lane[L::size];
  largest.store(lane);
  const S maximum = *std::max_element(lane, lane + L::size);
  const L shift = L::all(maximum);
  L sum = L::all(S(0));
  for_lanes(x, size, [&](const L& lanes, Index i) {
    const L e = exp(lanes - shift);
    sum = sum + e;
    if (exponentials != nullptr) store(e, exponentials, i, size);
  });
  return {maximum, sum.sum()};
}

/// (1 - s) x[label] + s mean(x): the loss of a row is its logsumexp minus this.
template <class S>
double label_score(const S* x, Index size, Index label, const Options& options) {
  if (options.label_smoothing == 0) return static_cast<double>(x[label]);
  double sum = 0;
  for (Index v = 0; v < size; ++v) sum += static_cast<double>(x[v]);
  return (1 - options.label_smoothing) * static_cast<double>(x[label]) +
         options.label_smoothing * sum / static_cast<double>(size);
}

/// A row of logits in the type of sums: the memory itself, or converted into a buffer.
template <class T>
const accumulate_t<T>* widen(const T* row, Index size, accumulate_t<T>* buffer) {
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    return row;
  } else {
    for (Index v = 0; v < size; ++v) buffer[v] = static_cast<accumulate_t<T>>(row[v]);
    return buffer;
  }
}

/// work(first row, last row, buffer of one row) over tiles of some 16000 logits.
template <class T, class Work>
void for_row_tiles(Index rows, Index columns, Work&& work) {
  const Index tile_rows = std::max<Index>(16384 / std::max<Index>(columns, 1), 1);
  parallel_for(tiles_of(rows, tile_rows), [&](Index tile) {
    Tensor<accumulate_t<T>, 1> buffer;
    if constexpr (!std::is_same_v<T, accumulate_t<T>>) buffer = Tensor<accumulate_t<T>, 1>::uninitialized({columns});
    work(tile * tile_rows, std::min((tile + 1) * tile_rows, rows), buffer.data());
  });
}

/// The losses of the rows as the reduction wants them.
template <class S>
void reduce(const S* row_losses, Index rows, Index kept, const Options& options, const View<S, 1>& loss) {
  if (options.reduction == Reduction::none) {
    for (Index i = 0; i < rows; ++i) loss(i) = row_losses[i];
    return;
  }
  double sum = 0;
  for (Index i = 0; i < rows; ++i) sum += static_cast<double>(row_losses[i]);
  if (options.reduction == Reduction::mean)
    sum = kept > 0 ? sum / static_cast<double>(kept) : std::numeric_limits<double>::quiet_NaN();
  loss(0) = static_cast<S>(sum);
}

}  // namespace detail

/// Into the caller's memory; saved may be null. Allocates nothing (Saved of another size, and a row per thread for
/// 16-bit logits, excepted).
template <class T, class Label>
void forward(const Inputs<T, Label>& in, const Options& options, const Outputs<T>& outputs, Saved<T>* saved,
             Workspace<cpu>& workspace) {
  using S = accumulate_t<T>;
  const Index kept = check(in, options), rows = in.logits.extent(0);
  const Index size = vocabulary(in.logits.extent(1), options);
  require_shape("cross_entropy", "loss", outputs.loss, Extents<1>{loss_size(rows, options)});
  if (saved != nullptr) {
    if (!saved->logsumexp || saved->logsumexp.extent(0) != rows) saved->logsumexp = Tensor<S, 1>::uninitialized({rows});
    if (!saved->weight) saved->weight = Tensor<S, 1>::uninitialized({1});
    const bool mean = options.reduction == Reduction::mean;
    saved->weight(0) = !mean ? S(1) : kept > 0 ? static_cast<S>(1 / static_cast<double>(kept)) : S(0);
    saved->options = options;
  }
  const std::size_t mark = workspace.mark();
  S* losses = workspace.template take<S>(rows);
  detail::for_row_tiles<T>(rows, size, [&](Index first, Index last, S* buffer) {
    for (Index i = first; i < last; ++i) {
      const Index label = in.labels(i);
      const bool ignored = label == options.ignore_index;
      S logsumexp = 0;
      losses[i] = 0;
      if (!ignored) {
        const S* x = detail::widen(in.logits.pointer(i), size, buffer);
        const auto sums = detail::sum_exponentials(x, size, static_cast<S*>(nullptr));
        logsumexp = sums.logsumexp();
        losses[i] = sums.loss(detail::label_score(x, size, label, options));
      }
      if (saved != nullptr) saved->logsumexp(i) = logsumexp;
    }
  });
  detail::reduce(losses, rows, kept, options, outputs.loss);
  workspace.reset(mark);
}

/// loss (+)= the sum of the rows' losses.
template <class T, class Label>
void forward(const Inputs<T, Label>& in, const Options& options,
             const std::type_identity_t<View<accumulate_t<T>, 1>>& loss, GradientMode mode, Workspace<cpu>& workspace) {
  require(options.reduction == Reduction::sum, "cross_entropy: a slice gives the sum of its losses");
  require_shape("cross_entropy", "loss", loss, Extents<1>{1});
  accumulate_t<T> sum = 0;
  forward(in, options, Outputs<T>{.loss = View<accumulate_t<T>, 1>(&sum, {1})}, static_cast<Saved<T>*>(nullptr),
          workspace);
  loss(0) = mode == GradientMode::add ? loss(0) + sum : sum;
}

/// factors (2): scale and 1, divided by the number of labels that are kept; 0 and NaN if there is none.
template <class Label, class S>
void kept_scale(const View<const Label, 1>& labels, const Options& options, double scale, const View<S, 1>& factors) {
  require_shape("cross_entropy", "factors", factors, Extents<1>{2});
  Index kept = 0;
  for (Index i = 0; i < labels.extent(0); ++i) kept += labels(i) != options.ignore_index;
  const double count = static_cast<double>(kept);
  factors(0) = kept > 0 ? static_cast<S>(scale / count) : S(0);
  factors(1) = kept > 0 ? static_cast<S>(1 / count) : std::numeric_limits<S>::quiet_NaN();
}

template <class T, class Label, Device D>
Result<T, D> forward(const Inputs<T, Label, D>& in, const Options& options = {}) {
  Result<T, D> result;
  const Index rows = in.logits.extent(0);
  result.loss = Tensor<accumulate_t<T>, 1, D>::uninitialized({loss_size(rows, options)});
  Workspace<D> workspace(workspace_bytes<T>(rows));
  forward(in, options, Outputs<T, D>{.loss = result.loss}, &result.saved, workspace);
  return result;
}

}  // namespace diffmamba::cross_entropy
