// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::min
#include <cstdint>      // std::uint64_t
#include <type_traits>  // std::type_identity_t

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/dropout/dropout.hpp"

namespace diffmamba::dropout {

/// out = x with the mask of the options and the scale 1 / (1 - p); any strides; out may be x.
template <class T, int Rank>
void forward(const View<T, Rank>& x, const Options& options,
             const std::type_identity_t<View<std::remove_const_t<T>, Rank>>& out) {
  using Value = std::remove_const_t<T>;
  using S = accumulate_t<Value>;
  static_assert(Rank >= 1, "dropout: a scalar has no elements to drop");
  check(options);
  require_shape("dropout", "out", out, x.extents());
  const Index size = x.size();
  if (size == 0) return;
  const Index length = x.extent(Rank - 1), x_step = x.stride(Rank - 1), out_step = out.stride(Rank - 1);
  const std::uint64_t least = threshold(options);
  const S factor = scale<S>(options);
  const Philox random = options.random.get();
  constexpr Index tile_size = 4096;  // whole blocks of four words
  parallel_for(tiles_of(size, tile_size), [&](Index tile) {
    const Index end = std::min((tile + 1) * tile_size, size);
    RandomWords words{};
    for (Index i = tile * tile_size; i < end;) {
      Index rest = i / length, from = 0, to = 0;
      for (int axis = Rank - 2; axis >= 0; --axis) {
        const Index index = rest % x.extent(axis);
        rest /= x.extent(axis);
        from += index * x.stride(axis);
        to += index * out.stride(axis);
      }
      for (Index column = i % length; column < length && i < end; ++column, ++i) {
        if (i % 4 == 0) words = random(static_cast<std::uint64_t>(i / 4));
        const bool kept = words[static_cast<int>(i % 4)] >= least;
        out.data()[to + column * out_step] =
            kept ? static_cast<Value>(static_cast<S>(x.data()[from + column * x_step]) * factor) : Value(S(0));
      }
    }
  });
}
template <class T, int Rank, Device D>
void forward(const Tensor<T, Rank, D>& x, const Options& options, const std::type_identity_t<View<T, Rank, D>>& out) {
  forward(x.view(), options, out);
}

template <class T, int Rank, Device D>
Tensor<std::remove_const_t<T>, Rank, D> forward(const View<T, Rank, D>& x, const Options& options) {
  auto out = Tensor<std::remove_const_t<T>, Rank, D>::uninitialized(x.extents());
  forward(x, options, out);
  return out;
}
template <class T, int Rank, Device D>
Tensor<T, Rank, D> forward(const Tensor<T, Rank, D>& x, const Options& options) {
  return forward(x.view(), options);
}

}  // namespace diffmamba::dropout
