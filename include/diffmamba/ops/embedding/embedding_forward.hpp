// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::min, std::max, std::copy_n
#include <type_traits>  // std::type_identity_t

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/embedding/embedding.hpp"

namespace diffmamba::embedding {

/// out[b, t] = weight[tokens[b, t]], into the caller's memory: (batch, length, d_model), rows contiguous.
template <class T, class Token>
void forward(const Inputs<T, Token>& in, const std::type_identity_t<View<T, 3>>& out) {
  check(in);
  const Index batch = in.tokens.extent(0), length = in.tokens.extent(1), d_model = in.weight.extent(1);
  require_shape("embedding", "out", out, Extents<3>{batch, length, d_model});
  require(out.stride(2) == 1 || d_model <= 1, "embedding: the rows of out must be contiguous");
  const Index rows = std::max<Index>(16384 / std::max<Index>(d_model, 1), 1), count = batch * length;
  parallel_for(tiles_of(count, rows), [&](Index tile) {
    for (Index i = tile * rows; i < std::min((tile + 1) * rows, count); ++i) {
      const Index b = i / length, t = i % length;
      std::copy_n(in.weight.pointer(in.tokens(b, t)), d_model, out.pointer(b, t));
    }
  });
}

template <class T, class Token, Device D>
Tensor<T, 3, D> forward(const Inputs<T, Token, D>& in) {
  auto out = Tensor<T, 3, D>::uninitialized({in.tokens.extent(0), in.tokens.extent(1), in.weight.extent(1)});
  forward(in, out.view());
  return out;
}

}  // namespace diffmamba::embedding
