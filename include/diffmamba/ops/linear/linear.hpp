// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/ops/matmul/matmul.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// The linear layer: y = x weight^T + bias, with the weight as every checkpoint stores it, (out, in).
///
///   Tensor y = linear::forward({.x = x, .weight = w})              linear::forward(in, y): into the caller's memory
///   auto [dx, dweight, dbias] = linear::backward(in, dy)           linear::backward(in, dy, {.dx = ..}, mode)
///
/// Nothing is saved for the backward pass: it takes the same Inputs again. (batch, length, channels) comes as
/// x.reshape(Extents{batch * length, channels}), which copies nothing, slices of the last axis included. A weight may
/// be a slice of a larger one. A head that is tied to the embedding is this operator with the embedding's weight, whose
/// gradients then add up: GradientMode::add into the same dweight.
namespace diffmamba::detail {

/// sums[j] (+)= sum over r of x[r, j], in a fixed order, on the current stream. `sums` is of accumulate_t of x's type.
template <class = void>
void column_sums_on_gpu(const GpuMatrix& x, void* sums, Index stride, GradientMode mode);

}  // namespace diffmamba::detail

namespace diffmamba::linear {

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 2, DeviceType> x;                // (rows, in)
  RequiredView<const T, 2, DeviceType> weight;           // (out, in)
  View<const accumulate_t<T>, 1, DeviceType> bias = {};  // (out)
};

/// What backward returns. dbias is empty where there is no bias.
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 2, DeviceType> dx;                     // (rows, in)
  Tensor<accumulate_t<T>, 2, DeviceType> dweight;  // (out, in)
  Tensor<accumulate_t<T>, 1, DeviceType> dbias;    // (out)
};

/// What backward writes; absent ones are not computed. dx is assigned, dweight and dbias follow the GradientMode.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 2, DeviceType> dx = {};                     // (rows, in)
  View<accumulate_t<T>, 2, DeviceType> dweight = {};  // (out, in)
  View<accumulate_t<T>, 1, DeviceType> dbias = {};    // (out)
};

template <class T, class D>
void check(const Inputs<T, D>& in) {
  require(in.x.extent(1) == in.weight.extent(1), "linear: x has ", in.x.extent(1), " channels but weight takes ",
          in.weight.extent(1), " (x: ", in.x.extents(), ", weight: ", in.weight.extents(), ")");
  if (in.bias) require_shape("linear", "bias", in.bias, Extents<1>{in.weight.extent(0)});
}

/// On a GPU: y = x weight^T + bias into a tensor or view (rows, out) of T or of accumulate_t<T>. Up to eight rows
/// (decoding) stream the weight through a kernel of their own. For more rows of a 16-bit y with a bias cuBLASLt has no
/// sum with a float one: the product is rounded, then the bias is added.
template <class T, diffmamba::detail::OnGpu Result>
void forward(const Inputs<T, cuda>& in, Result&& result) {
  const auto y = as_view(result);
  using Y = typename std::remove_reference_t<Result>::value_type;
  check(in);
  static_assert(std::is_same_v<accumulate_t<Y>, accumulate_t<T>>, "linear: y is of x's type or of its accumulate_t");
  require_shape("linear", "y", y, Extents<2>{in.x.extent(0), in.weight.extent(0)});
  matmul_count().calls += 1;
  matmul_count().flops += 2 * in.x.size() * in.weight.extent(0);
  diffmamba::detail::multiply_on_gpu(diffmamba::detail::gpu_matrix<const T, 2>(in.x),
                                     diffmamba::detail::gpu_matrix(in.weight.template permute<1, 0>()),
                                     diffmamba::detail::gpu_matrix(y), 1, {}, in.bias.data(),
                                     in.bias ? in.bias.stride(0) : 1);
}
template <class T>
Tensor<T, 2, cuda> forward(const Inputs<T, cuda>& in) {
  auto y = Tensor<T, 2, cuda>::uninitialized({in.x.extent(0), in.weight.extent(0)});
  forward(in, y);
  return y;
}

/// On a GPU: dy, (rows, out), is of T or of accumulate_t<T>.
template <class T, diffmamba::detail::OnGpu Upstream>
void backward(const Inputs<T, cuda>& in, const Upstream& upstream, const GradientViews<T, cuda>& gradients,
              GradientMode mode = GradientMode::assign) {
  const auto dy = as_view(upstream);
  check(in);
  const Index rows = in.x.extent(0), out = in.weight.extent(0);
  require_shape("linear", "dy", dy, Extents<2>{rows, out});
  const MatmulOptions options{.alpha = 1, .beta = mode == GradientMode::add ? 1.0 : 0.0};
  if (gradients.dx) matmul(dy, View<const T, 2, cuda>(in.weight), gradients.dx);
  if (gradients.dweight) matmul(dy.template permute<1, 0>(), View<const T, 2, cuda>(in.x), gradients.dweight, options);
  if (gradients.dbias) {
    require_shape("linear", "dbias", gradients.dbias, Extents<1>{out});
    diffmamba::detail::column_sums_on_gpu(diffmamba::detail::gpu_matrix(dy), gradients.dbias.data(),
                                          gradients.dbias.stride(0), mode);
  }
}
template <class T, diffmamba::detail::OnGpu Upstream>
Gradients<T, cuda> backward(const Inputs<T, cuda>& in, const Upstream& dy) {
  Gradients<T, cuda> result;
  result.dx = Tensor<T, 2, cuda>::uninitialized(in.x.extents());
  result.dweight = Tensor<accumulate_t<T>, 2, cuda>::uninitialized(in.weight.extents());
  if (in.bias) result.dbias = Tensor<accumulate_t<T>, 1, cuda>::uninitialized(in.bias.extents());
  GradientViews<T, cuda> views{.dx = result.dx, .dweight = result.dweight};
  if (in.bias) views.dbias = result.dbias;
  backward(in, dy, views);
  return result;
}

}  // namespace diffmamba::linear
