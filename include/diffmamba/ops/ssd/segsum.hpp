// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>       // std::numeric_limits
#include <type_traits>  // std::remove_const_t

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba::ssd {

/// The segment sums of the Mamba-2 paper (listing 1): out[..., i, j] = x[..., j + 1] + ... + x[..., i] for j <= i, and
/// minus infinity above the diagonal, so that exp(segsum(dt A)) is the matrix of decays from step j to step i.
/// x (..., length) -> (..., length, length). Each sum is taken by itself, so nothing cancels. To look at and to teach
/// with: the operator never forms this matrix in memory.
template <class T, int Rank>
Tensor<std::remove_const_t<T>, Rank + 1> segsum(const View<T, Rank, cpu>& x) {
  static_assert(Rank >= 1, "segsum: a scalar has no axis to sum along");
  using Value = std::remove_const_t<T>;
  require(x.contiguous(), "segsum: x, ", x.extents(), ", must be dense");
  const Index length = x.extent(Rank - 1), rows = length > 0 ? x.size() / length : 0;
  Extents<Rank + 1> extents;
  for (int axis = 0; axis < Rank; ++axis) extents[axis] = x.extent(axis);
  extents[Rank] = length;
  auto out = Tensor<Value, Rank + 1>::uninitialized(extents);
  parallel_for(rows, [&](Index row) {
    const T* from = x.data() + row * length;
    Value* to = out.data() + row * length * length;
    for (Index j = 0; j < length; ++j) {
      Value sum = 0;
      for (Index i = 0; i < j; ++i) to[i * length + j] = -std::numeric_limits<Value>::infinity();
      for (Index i = j; i < length; ++i) {
        if (i > j) sum += from[i];
        to[i * length + j] = sum;
      }
    }
  });
  return out;
}
template <class T, int Rank>
Tensor<T, Rank + 1> segsum(const Tensor<T, Rank>& x) {
  return segsum(x.view());
}

}  // namespace diffmamba::ssd
