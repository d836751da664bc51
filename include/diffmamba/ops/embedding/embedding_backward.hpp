// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::min, std::fill_n
#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/embedding/embedding.hpp"

/// dweight[v] = sum of dout[b, t] over the positions with tokens[b, t] = v. Several positions write to the same row, so
/// the work is cut by columns: a tile walks over all positions in order and adds its 64 columns. No two threads meet,
/// and each element is summed in the order of the text.
namespace diffmamba::embedding {

/// Writes or adds into dweight: (vocab_size, d_model), rows contiguous. Rows of unused tokens are 0, or left alone.
template <class T, class Token>
void backward(const Inputs<T, Token>& in, const std::type_identity_t<View<const T, 3>>& dout,
              const std::type_identity_t<View<accumulate_t<T>, 2>>& dweight, GradientMode mode = GradientMode::assign) {
  using S = accumulate_t<T>;
  check(in);
  const Index batch = in.tokens.extent(0), length = in.tokens.extent(1), d_model = in.weight.extent(1);
  require_shape("embedding", "dout", dout, Extents<3>{batch, length, d_model});
  require_shape("embedding", "dweight", dweight, in.weight.extents());
  require((dout.stride(2) == 1 && dweight.stride(1) == 1) || d_model <= 1,
          "embedding: the rows of dout and dweight must be contiguous");
  constexpr Index columns = 64;
  parallel_for(tiles_of(d_model, columns), [&](Index tile) {
    const Index first = tile * columns, count = std::min(columns, d_model - first);
    if (mode == GradientMode::assign)
      for (Index v = 0; v < dweight.extent(0); ++v) std::fill_n(dweight.pointer(v, first), count, S(0));
    for (Index b = 0; b < batch; ++b)
      for (Index t = 0; t < length; ++t) {
        const T* from = dout.pointer(b, t, first);
        S* to = dweight.pointer(in.tokens(b, t), first);
        if (count == columns)  // a constant count vectorises at any optimisation level
          for (Index i = 0; i < columns; ++i) to[i] += static_cast<S>(from[i]);
        else
          for (Index i = 0; i < count; ++i) to[i] += static_cast<S>(from[i]);
      }
  });
}

template <class T, class Token, Device D>
Tensor<accumulate_t<T>, 2, D> backward(const Inputs<T, Token, D>& in,
                                       const std::type_identity_t<View<const T, 3, D>>& dout) {
  auto dweight = Tensor<accumulate_t<T>, 2, D>::uninitialized(in.weight.extents());
  backward(in, dout, dweight.view());
  return dweight;
}

}  // namespace diffmamba::embedding
