// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/linear/linear.hpp"
#include "diffmamba/ops/matmul/matmul_forward.hpp"

namespace diffmamba::linear {

/// y = x weight^T + bias into the caller's memory, a tensor or view (rows, out) of T or of a wider type (float logits
/// of a bfloat16 model).
template <class T, detail::OnCpu Result>
void forward(const Inputs<T>& in, Result&& result) {
  const auto y = as_view(result);
  using Y = typename std::remove_reference_t<Result>::value_type;
  check(in);
  static_assert(std::is_same_v<accumulate_t<Y>, accumulate_t<T>>, "linear: y is of x's type or of its accumulate_t");
  require_shape("linear", "y", y, Extents<2>{in.x.extent(0), in.weight.extent(0)});
  matmul_count().calls += 1;
  matmul_count().flops += 2 * in.x.size() * in.weight.extent(0);
  Tensor<accumulate_t<T>, 1> dense;  // the bias, if it is strided
  const accumulate_t<T>* bias = in.bias.data();
  if (in.bias && in.bias.stride(0) != 1) {
    dense = Tensor<accumulate_t<T>, 1>::uninitialized(in.bias.extents());
    for (Index j = 0; j < dense.size(); ++j) dense(j) = in.bias(j);
    bias = dense.data();
  }
  detail::multiply(View<const T, 2>(in.x), in.weight.template permute<1, 0>(), y, {}, bias);
}

template <class T>
Tensor<T, 2> forward(const Inputs<T>& in) {
  auto y = Tensor<T, 2>::uninitialized({in.x.extent(0), in.weight.extent(0)});
  forward(in, y);
  return y;
}

}  // namespace diffmamba::linear
