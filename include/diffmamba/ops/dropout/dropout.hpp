// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>      // std::uint64_t
#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/error.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// Dropout: out_i = x_i / (1 - p) with probability 1 - p, else 0; and the same mask for the gradient.
///
///   Tensor out = dropout::forward(x, {.p = 0.1, .random = Philox{seed, step}});          forward(x, options, out)
///   Tensor dx = dropout::backward(dout, the same options);                               backward(dout, options, dx)
///
/// Nothing is saved: element i in row-major order is kept if word i % 4 of block i / 4 of the generator lies at or
/// above p 2^32, so backward draws the mask again. The caller gives every layer and step a generator of its own
/// (random.child(layer)); a StepRandom reads the number of the step where the mask is drawn, so that a captured graph
/// draws anew each time. A GPU draws the mask that the CPU draws. The output may be the input. p = 0 copies, p = 1
/// gives zeros (also of infinities).
namespace diffmamba::dropout {

struct Options {
  double p = 0;
  StepRandom random = {};
};

inline void check(const Options& options) {
  require(options.p >= 0 && options.p <= 1, "dropout: p is ", options.p, ", expected 0 to 1");
}

/// What a word of the generator must reach for its element to be kept: 2^32 p, which fits 33 bits (p = 1 drops every
/// word).
inline std::uint64_t threshold(const Options& options) {
  return static_cast<std::uint64_t>(options.p * 4294967296.0);
}
template <class S>
S scale(const Options& options) {
  return options.p < 1 ? static_cast<S>(1 / (1 - options.p)) : S(0);
}

/// On the current stream; shapes have been checked.
template <class T>
void drop_on_gpu(const View<const T, 4, cuda>& x, const Options& options, const View<T, 4, cuda>& out);

template <class T, int Rank>
void forward(const View<T, Rank, cuda>& x, const Options& options,
             const std::type_identity_t<View<std::remove_const_t<T>, Rank, cuda>>& out) {
  static_assert(1 <= Rank && Rank <= 4, "dropout: a GPU takes tensors of rank 1 to 4");
  using Value = std::remove_const_t<T>;
  check(options);
  require_shape("dropout", "out", out, x.extents());
  Extents<4> extents;
  Strides<4> from, to;
  for (int axis = 0; axis < 4; ++axis) {
    const int own = axis - (4 - Rank);
    extents[axis] = own < 0 ? 1 : x.extent(own);
    from[axis] = own < 0 ? 0 : x.stride(own);
    to[axis] = own < 0 ? 0 : out.stride(own);
  }
  if (x.size() > 0)
    drop_on_gpu(View<const Value, 4, cuda>(x.data(), extents, from), options,
                View<Value, 4, cuda>(out.data(), extents, to));
}

}  // namespace diffmamba::dropout
