// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/cross_entropy/cross_entropy_forward.cuh"
#include "diffmamba/tensor/takes_packs.hpp"

/// The formulas are those of cross_entropy_backward.hpp. With the log of the sum of exponentials at hand each logit is
/// on its own; forward_backward writes the gradient in the pass that makes the loss (cross_entropy_forward.cuh).
namespace diffmamba::cross_entropy {
namespace detail {

template <class T>
struct GradientArguments {
  using S = accumulate_t<T>;
  const T* logits;
  T* dlogits;
  Index logits_row, dlogits_row;
  Numbers labels;
  Index columns, size, ignore_index;
  double smoothing;
  const S* logsumexp;
  const S* dloss;
  Index dloss_stride;  // 0: one for all rows
  const S* weight;
};

// CUDA kernels

/// A block of 256 per row.
template <class T, int Vector>
__global__ __launch_bounds__(256) void gradient_kernel(const __grid_constant__ GradientArguments<T> p) {
  using S = accumulate_t<T>;
  const Index row = blockIdx.x, label = p.labels(row);
  const bool counts = label != p.ignore_index && 0 <= label && label < p.size;
  const S dloss = p.dloss[row * p.dloss_stride] * p.weight[0], shift = p.logsumexp[row];
  const S uniform = static_cast<S>(p.smoothing / static_cast<double>(p.size)) * dloss;
  const S at_label = static_cast<S>(1 - p.smoothing) * dloss;
  const T* from = p.logits + row * p.logits_row;
  T* to = p.dlogits + row * p.dlogits_row;
#pragma unroll 4
  for (Index v = threadIdx.x * Vector; v < p.columns; v += 256 * Vector) {
    S x[Vector];
    load_pack<Vector>(from + v).widen(x);
#pragma unroll
    for (int i = 0; i < Vector; ++i) {
      x[i] = exp_for<T>(x[i] - shift) * dloss - uniform;
      if (v + i == label) x[i] -= at_label;
      if (!counts || v + i >= p.size) x[i] = 0;
    }
    store_pack<Vector>(to + v, x);
  }
}

}  // namespace detail

template <class T, class Label>
void backward(const Inputs<T, Label, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<View<const accumulate_t<T>, 1, cuda>>& dloss,
              const std::type_identity_t<View<T, 2, cuda>>& dlogits) {
  const Options& options = saved.options;
  check_shapes(in, options);
  check_gradient(in, dlogits);
  const Index rows = in.logits.extent(0), columns = in.logits.extent(1);
  require_shape("cross_entropy", "saved.logsumexp", saved.logsumexp.view(), Extents<1>{rows});
  require_shape("cross_entropy", "dloss", dloss, Extents<1>{loss_size(rows, options)});
  require(rows < Index{1} << 31, "cross_entropy: ", rows, " rows are more than a GPU takes in one launch");
  if (rows == 0) return;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  constexpr int vector = diffmamba::detail::pack_size<T>;
  const bool none = options.reduction == Reduction::none;
  const detail::GradientArguments<T> arguments{in.logits.data(),
                                               dlogits.data(),
                                               in.logits.stride(0),
                                               dlogits.stride(0),
                                               detail::Numbers(in.labels),
                                               columns,
                                               vocabulary(columns, options),
                                               options.ignore_index,
                                               options.label_smoothing,
                                               saved.logsumexp.data(),
                                               dloss.data(),
                                               none ? dloss.stride(0) : 0,
                                               saved.weight.data()};
  const bool vectors = diffmamba::detail::takes_packs<vector>(View<const T, 2, cuda>(in.logits)) &&
                       diffmamba::detail::takes_packs<vector>(dlogits);
  (vectors ? detail::gradient_kernel<T, vector>
           : detail::gradient_kernel<T, 1>)<<<static_cast<unsigned>(rows), 256, 0, stream.handle>>>(arguments);
  cuda_runtime::check_launch("gradient_kernel");
}

template <class T, class Label>
void forward_backward(const Inputs<T, Label, cuda>& in, const Options& options, const Outputs<T, cuda>& outputs,
                      const std::type_identity_t<View<T, 2, cuda>>& dlogits, Workspace<cuda>& workspace, double scale) {
  using S = accumulate_t<T>;
  check_shapes(in, options);
  check_gradient(in, dlogits);
  const Index rows = in.logits.extent(0);
  require_shape("cross_entropy", "loss", outputs.loss, Extents<1>{loss_size(rows, options)});
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const std::size_t mark = workspace.mark();
  const bool none = options.reduction == Reduction::none;
  S* losses = none ? outputs.loss.data() : workspace.template take<S>(rows);
  auto arguments = detail::row_arguments(in, options, losses, none ? outputs.loss.stride(0) : 1);
  arguments.dlogits = dlogits.data();
  arguments.dlogits_row = dlogits.stride(0);
  arguments.scale = static_cast<S>(scale);
  if (options.reduction == Reduction::mean) {
    S* factors = workspace.template take<S>(2);
    kept_scale<Label>(in.labels, options, 1.0, View<S, 1, cuda>(factors, {2}));
    arguments.factor = factors;
  }
  detail::launch_rows<T, true>(arguments, stream.handle);
  if (!none) detail::reduce_losses<T, Label>(in, options, losses, false, outputs.loss.data(), nullptr, stream.handle);
  workspace.reset(mark);
}

template <class T, class Label>
void forward_backward(const Inputs<T, Label, cuda>& in, const Options& options,
                      const std::type_identity_t<View<T, 2, cuda>>& dlogits,
                      const std::type_identity_t<View<const accumulate_t<T>, 1, cuda>>& factor,
                      const std::type_identity_t<View<accumulate_t<T>, 1, cuda>>& loss, GradientMode mode,
                      Workspace<cuda>& workspace) {
  using S = accumulate_t<T>;
  check_shapes(in, options);
  check_gradient(in, dlogits);
  require(options.reduction == Reduction::sum, "cross_entropy: a slice gives the sum of its losses");
  require_shape("cross_entropy", "loss", loss, Extents<1>{1});
  require(factor && factor.size() >= 1, "cross_entropy: the factor of the gradient is absent");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const std::size_t mark = workspace.mark();
  S* losses = workspace.template take<S>(in.logits.extent(0));
  auto arguments = detail::row_arguments(in, options, losses, 1);
  arguments.dlogits = dlogits.data();
  arguments.dlogits_row = dlogits.stride(0);
  arguments.factor = factor.data();
  detail::launch_rows<T, true>(arguments, stream.handle);
  detail::reduce_losses<T, Label>(in, options, losses, mode == GradientMode::add, loss.data(), nullptr, stream.handle);
  workspace.reset(mark);
}

}  // namespace diffmamba::cross_entropy
