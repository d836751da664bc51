// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>      // std::int32_t
#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// The loss of a language model. With p = softmax(logits[:vocab_size]) of a row, V = vocab_size, s = label_smoothing:
///
///   loss_i = -(1 - s) log p[label] - s / V sum_v log p[v]                  (torch.nn.functional.cross_entropy)
///   dloss_i / dlogits[v] = p[v] - (1 - s) [v = label] - s / V
///
/// 0 and a zero gradient where label = ignore_index. `mean` divides by the number of labels that are kept (none kept:
/// NaN, as in torch, and zero gradients), `sum` does not, `none` leaves one loss per row. Columns from vocab_size on,
/// the padding of a head, never count and get zero gradients. Logits may be as large as the type holds.
///
///   auto [loss, saved] = cross_entropy::forward(in, options);
///   Tensor dlogits = cross_entropy::backward(in, saved, dloss);
///   loss = cross_entropy::forward_backward(in, options, dlogits, scale);       both at once; dlogits may be the logits
///
/// and each into the caller's memory: forward(in, options, {loss}, &saved, workspace), backward(in, saved, dloss,
/// dlogits), forward_backward(in, options, {loss}, dlogits, workspace, scale). A head whose logits are made in slices
/// of rows adds up its loss and takes the factor of its gradient from the device, so that nothing is read back:
///
///   kept_scale(labels, options, scale, factors)                                 scale / kept and 1 / kept, of all
///   labels forward_backward(in, options, dlogits, factor, loss, mode, workspace)       of a slice: loss (+)= sum of
///   its losses forward(in, options, loss, mode, workspace)                                 the same without the
///   gradient
///
/// Saved: the log of the sum of exponentials, 4 bytes per token (8 in double). The last form saves nothing and, in
/// place, needs no memory besides the logits. For a language model whose labels are its inputs, `shifted(labels)` are
/// the labels of the next positions; the last position of each sequence is ignored.
///
/// Labels in host memory are checked. On a GPU nobody looks at them before the kernel does: a label outside the
/// vocabulary gives that row, and so a mean or sum, the loss NaN, and the row no gradient.
namespace diffmamba::cross_entropy {

template <class T, class Label = std::int32_t, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 2, DeviceType> logits;      // (rows, vocab_padded), rows contiguous
  RequiredView<const Label, 1, DeviceType> labels;  // (rows), int32 or int64
};

enum class Reduction { mean, sum, none };

struct Options {
  Index vocab_size = 0;  // 0: every column counts
  Index ignore_index = -100;
  double label_smoothing = 0;
  Reduction reduction = Reduction::mean;
};

template <class T, Device DeviceType = cpu>
struct Saved {
  Tensor<accumulate_t<T>, 1, DeviceType> logsumexp;  // (rows)
  Tensor<accumulate_t<T>, 1, DeviceType> weight;     // (1): 1 / kept (mean; 0 if none is kept), else 1
  Options options;
};

/// Where forward writes.
template <class T, Device DeviceType = cpu>
struct Outputs {
  RequiredView<accumulate_t<T>, 1, DeviceType> loss;  // (1), or (rows) with Reduction::none
};

/// What the returning form of forward returns.
template <class T, Device DeviceType = cpu>
struct Result {
  Tensor<accumulate_t<T>, 1, DeviceType> loss;  // (1), or (rows) with Reduction::none
  Saved<T, DeviceType> saved;
};

/// Elements of the loss.
inline Index loss_size(Index rows, const Options& options) {
  return options.reduction == Reduction::none ? rows : 1;
}

/// Columns that count.
inline Index vocabulary(Index columns, const Options& options) {
  return options.vocab_size > 0 ? options.vocab_size : columns;
}

/// What the forms with a workspace take from it.
template <class T>
std::size_t workspace_bytes(Index rows) {
  return Workspace<cpu>::bytes_of<accumulate_t<T>>(rows) + Workspace<cpu>::bytes_of<accumulate_t<T>>(2);
}

/// Checks shapes and options.
template <class T, class Label, class D>
void check_shapes(const Inputs<T, Label, D>& in, const Options& options) {
  static_assert(std::is_same_v<Label, std::int32_t> || std::is_same_v<Label, std::int64_t>,
                "cross_entropy: labels are int32 or int64");
  const Index rows = in.logits.extent(0), columns = in.logits.extent(1);
  require(in.labels.extent(0) == rows, "cross_entropy: ", in.labels.extent(0), " labels for ", rows, " rows of logits");
  require(options.vocab_size >= 0 && options.vocab_size <= columns, "cross_entropy: vocab_size ", options.vocab_size,
          " does not fit logits ", in.logits.extents());
  require(options.label_smoothing >= 0 && options.label_smoothing <= 1, "cross_entropy: label_smoothing is ",
          options.label_smoothing, ", expected 0 to 1");
  require(in.logits.stride(1) == 1 || columns <= 1, "cross_entropy: the rows of logits must be contiguous");
}

/// Checks where a gradient is written.
template <class T, class Label, class D>
void check_gradient(const Inputs<T, Label, D>& in, const View<T, 2, D>& dlogits) {
  require_shape("cross_entropy", "dlogits", dlogits, in.logits.extents());
  require(dlogits.stride(1) == 1 || dlogits.extent(1) <= 1, "cross_entropy: the rows of dlogits must be contiguous");
}

/// Checks shapes and every label; returns how many are kept.
template <class T, class Label>
Index check(const Inputs<T, Label>& in, const Options& options) {
  check_shapes(in, options);
  const Index rows = in.logits.extent(0), vocab_size = vocabulary(in.logits.extent(1), options);
  Index kept = 0;
  for (Index i = 0; i < rows; ++i) {
    const Index label = in.labels(i);
    if (label == options.ignore_index) continue;
    require(0 <= label && label < vocab_size, "cross_entropy: label ", label, " at row ", i,
            " is outside the vocabulary of ", vocab_size);
    ++kept;
  }
  return kept;
}

/// labels[b, t + 1] at [b, t], ignore_index at the last position: with it, all logits of (batch, length, vocab) go in
/// as (batch * length, vocab), and none is copied.
template <class Label>
Tensor<std::remove_const_t<Label>, 1> shifted(const View<Label, 2>& labels, Index ignore_index = -100) {
  using Value = std::remove_const_t<Label>;
  const Index batch = labels.extent(0), length = labels.extent(1);
  auto result = Tensor<Value, 1>::uninitialized({batch * length});
  for (Index b = 0; b < batch; ++b)
    for (Index t = 0; t < length; ++t)
      result(b * length + t) = t + 1 < length ? labels(b, t + 1) : static_cast<Value>(ignore_index);
  return result;
}
template <class Label>
Tensor<Label, 1> shifted(const Tensor<Label, 2>& labels, Index ignore_index = -100) {
  return shifted(labels.view(), ignore_index);
}

// On a GPU, in the order of the current stream (cross_entropy_forward.cuh, cross_entropy_backward.cuh).

template <class T, class Label>
void forward(const Inputs<T, Label, cuda>& in, const Options& options, const Outputs<T, cuda>& outputs,
             Saved<T, cuda>* saved, Workspace<cuda>& workspace);
template <class T, class Label>
void forward(const Inputs<T, Label, cuda>& in, const Options& options,
             const std::type_identity_t<View<accumulate_t<T>, 1, cuda>>& loss, GradientMode mode,
             Workspace<cuda>& workspace);
template <class T, class Label>
void backward(const Inputs<T, Label, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<View<const accumulate_t<T>, 1, cuda>>& dloss,
              const std::type_identity_t<View<T, 2, cuda>>& dlogits);
template <class T, class Label>
void forward_backward(const Inputs<T, Label, cuda>& in, const Options& options, const Outputs<T, cuda>& outputs,
                      const std::type_identity_t<View<T, 2, cuda>>& dlogits, Workspace<cuda>& workspace,
                      double scale = 1);
template <class T, class Label>
void forward_backward(const Inputs<T, Label, cuda>& in, const Options& options,
                      const std::type_identity_t<View<T, 2, cuda>>& dlogits,
                      const std::type_identity_t<View<const accumulate_t<T>, 1, cuda>>& factor,
                      const std::type_identity_t<View<accumulate_t<T>, 1, cuda>>& loss, GradientMode mode,
                      Workspace<cuda>& workspace);
template <class Label, class S>
void kept_scale(const View<const Label, 1, cuda>& labels, const Options& options, double scale,
                const View<S, 1, cuda>& factors);

}  // namespace diffmamba::cross_entropy
