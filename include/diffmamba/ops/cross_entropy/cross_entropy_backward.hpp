// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::type_identity_t

#include "diffmamba/ops/cross_entropy/cross_entropy.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"

/// loss_i = logsumexp(x) - (1 - s) x[label] - s / V sum_v x[v], and d logsumexp / dx[v] = exp(x[v] - logsumexp) = p[v]:
///
///   dlogits[v] = dloss_i (p[v] - (1 - s) [v = label] - s / V),     dloss_i = dloss / kept (mean), dloss, or dloss[i]
namespace diffmamba::cross_entropy {
namespace detail {

/// Everything of a row's gradient but p: padding, smoothing and the label. `row` holds dloss p, in the type of sums.
template <class T, class S>
void finish_gradient(const S* row, Index size, Index columns, Index label, S dloss, const Options& options,
                     T* dlogits) {
  const S uniform = static_cast<S>(options.label_smoothing / static_cast<double>(size)) * dloss;
  if constexpr (std::is_same_v<T, S>) {
    if (uniform != S(0))
      for (Index v = 0; v < size; ++v) dlogits[v] = row[v] - uniform;
    dlogits[label] -= static_cast<S>(1 - options.label_smoothing) * dloss;
  } else {
    for (Index v = 0; v < size; ++v) {
      S value = row[v] - uniform;
      if (v == label) value -= static_cast<S>(1 - options.label_smoothing) * dloss;
      dlogits[v] = T(value);
    }
  }
  for (Index v = size; v < columns; ++v) dlogits[v] = T(S(0));
}

}  // namespace detail

/// dloss: (1), or (rows) with Reduction::none. dlogits: (rows, vocab_padded), rows contiguous; may be the logits.
template <class T, class Label>
void backward(const Inputs<T, Label>& in, const Saved<T>& saved,
              const std::type_identity_t<View<const accumulate_t<T>, 1>>& dloss,
              const std::type_identity_t<View<T, 2>>& dlogits) {
  using S = accumulate_t<T>;
  using L = Lanes<S>;
  const Options& options = saved.options;
  check(in, options);
  const Index rows = in.logits.extent(0), columns = in.logits.extent(1), size = vocabulary(columns, options);
  require_shape("cross_entropy", "saved.logsumexp", saved.logsumexp.view(), Extents<1>{rows});
  require_shape("cross_entropy", "dloss", dloss, Extents<1>{loss_size(rows, options)});
  check_gradient<T, Label, cpu>(in, dlogits);
  detail::for_row_tiles<T>(rows, size, [&](Index first, Index last, S* buffer) {
    for (Index i = first; i < last; ++i) {
      const Index label = in.labels(i);
      T* to = dlogits.pointer(i);
      if (label == options.ignore_index) {
        std::fill_n(to, columns, T(S(0)));
        continue;
      }
      const S scale = (options.reduction == Reduction::none ? dloss(i) : dloss(0)) * saved.weight(0);
      const S* x = detail::widen(in.logits.pointer(i), size, buffer);
      S* row = buffer;
      if constexpr (std::is_same_v<T, S>) row = to;
      const L shift = L::all(saved.logsumexp(i)), factor = L::all(scale);
      detail::for_lanes(x, size,
                        [&](const L& lanes, Index v) { detail::store(exp(lanes - shift) * factor, row, v, size); });
      detail::finish_gradient(row, size, columns, label, scale, options, to);
    }
  });
}

template <class T, class Label, Device D>
Tensor<T, 2, D> backward(const Inputs<T, Label, D>& in, const Saved<T, D>& saved,
                         const std::type_identity_t<View<const accumulate_t<T>, 1, D>>& dloss) {
  auto dlogits = Tensor<T, 2, D>::uninitialized(in.logits.extents());
  backward(in, saved, dloss, dlogits);
  return dlogits;
}

/// Loss and gradient in one pass over the logits, with dloss = scale (for each row, with Reduction::none). dlogits may
/// be the logits: then no second array of their size exists. scale is where an accumulated step puts its 1 / steps.
template <class T, class Label>
void forward_backward(const Inputs<T, Label>& in, const Options& options, const Outputs<T>& outputs,
                      const std::type_identity_t<View<T, 2>>& dlogits, Workspace<cpu>& workspace, double scale = 1) {
  using S = accumulate_t<T>;
  using L = Lanes<S>;
  const Index kept = check(in, options);
  const Index rows = in.logits.extent(0), columns = in.logits.extent(1), size = vocabulary(columns, options);
  require_shape("cross_entropy", "loss", outputs.loss, Extents<1>{loss_size(rows, options)});
  check_gradient<T, Label, cpu>(in, dlogits);
  const S dloss =
      static_cast<S>(options.reduction == Reduction::mean && kept > 0 ? scale / static_cast<double>(kept) : scale);
  const std::size_t mark = workspace.mark();
  S* losses = workspace.template take<S>(rows);
  detail::for_row_tiles<T>(rows, size, [&](Index first, Index last, S* buffer) {
    for (Index i = first; i < last; ++i) {
      const Index label = in.labels(i);
      T* to = dlogits.pointer(i);
      losses[i] = 0;
      if (label == options.ignore_index) {
        std::fill_n(to, columns, T(S(0)));
        continue;
      }
      const S* x = detail::widen(in.logits.pointer(i), size, buffer);
      S* row = buffer;
      if constexpr (std::is_same_v<T, S>) row = to;
      // x may be overwritten by the exponentials: what the loss needs of it comes first.
      const double score = detail::label_score(x, size, label, options);
      const auto sums = detail::sum_exponentials(x, size, row);
      losses[i] = sums.loss(score);
      const L factor = L::all(dloss / sums.sum);
      detail::for_lanes(row, size, [&](const L& e, Index v) { detail::store(e * factor, row, v, size); });
      detail::finish_gradient(row, size, columns, label, dloss, options, to);
    }
  });
  detail::reduce(losses, rows, kept, options, outputs.loss);
  workspace.reset(mark);
}

/// The same for a slice of the rows, with dloss = factor(0), and loss (+)= the sum of their losses.
template <class T, class Label>
void forward_backward(const Inputs<T, Label>& in, const Options& options,
                      const std::type_identity_t<View<T, 2>>& dlogits,
                      const std::type_identity_t<View<const accumulate_t<T>, 1>>& factor,
                      const std::type_identity_t<View<accumulate_t<T>, 1>>& loss, GradientMode mode,
                      Workspace<cpu>& workspace) {
  require(options.reduction == Reduction::sum, "cross_entropy: a slice gives the sum of its losses");
  require_shape("cross_entropy", "loss", loss, Extents<1>{1});
  accumulate_t<T> sum = 0;
  forward_backward(in, options, Outputs<T>{.loss = View<accumulate_t<T>, 1>(&sum, {1})}, dlogits, workspace,
                   static_cast<double>(factor(0)));
  loss(0) = mode == GradientMode::add ? loss(0) + sum : sum;
}

template <class T, class Label, Device D>
Tensor<accumulate_t<T>, 1, D> forward_backward(const Inputs<T, Label, D>& in, const Options& options,
                                               const std::type_identity_t<View<T, 2, D>>& dlogits, double scale = 1) {
  const Index rows = in.logits.extent(0);
  auto loss = Tensor<accumulate_t<T>, 1, D>::uninitialized({loss_size(rows, options)});
  Workspace<D> workspace(workspace_bytes<T>(rows));
  forward_backward(in, options, Outputs<T, D>{.loss = loss}, dlogits, workspace, scale);
  return loss;
}

}  // namespace diffmamba::cross_entropy
