// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/contract.hpp"  // require_dense_rows

/// Segment sums (listing 1 of the Mamba-2 paper): the logarithm of a chunk's decay matrix, as a matrix,
///
///   out_ij = x_{j+1} + ... + x_i   for i >= j (0 on the diagonal),   -inf above it
///
/// for tests and for building other operators; `ssd` itself never stores it. Sums are made as they stand, row from row,
/// not as differences of running totals: no cancellation.
namespace diffmamba::ssd::segsum {

/// x (rows, length) -> (rows, length, length). Merge outer axes by reshape.
template <class T>
Tensor<T, 3> forward(const View<const T, 2>& x) {
  require_dense_rows("ssd::segsum", "x", x);
  const Index length = x.extent(1);
  auto out = Tensor<T, 3>::uninitialized(Extents{x.extent(0), length, length});
  parallel_for(x.extent(0), [&](Index row) {
    for (Index i = 0; i < length; ++i) {
      const T value = x(row, i);
      T* now = out.view().pointer(row, i);
      const T* before = now - length;  // row i - 1; not read for i = 0
      for (Index j = 0; j < i; ++j) now[j] = before[j] + value;
      now[i] = T(0);
      for (Index j = i + 1; j < length; ++j) now[j] = -std::numeric_limits<T>::infinity();
    }
  });
  return out;
}

/// dL/dx (rows, length) from dL/dout (rows, length, length), of which what is above the diagonal is not read:
///   dx_k = sum_{i >= k} sum_{j < k} dout_ij
template <class T>
Tensor<T, 2> backward(const View<const T, 3>& dout) {
  require_dense_rows("ssd::segsum", "dout", dout);
  require(dout.extent(1) == dout.extent(2), "ssd::segsum: dout is ", dout.extents(), ", expected square matrices");
  const Index length = dout.extent(1);
  auto dx = Tensor<T, 2>::uninitialized(Extents{dout.extent(0), length});
  Tensor<T, 2> columns(Extents{dout.extent(0), length});  // sum over i >= k, while k falls
  parallel_for(dout.extent(0), [&](Index row) {
    T* column = columns.view().pointer(row);
    for (Index k = length - 1; k >= 0; --k) {
      const T* from = dout.pointer(row, k);
      T sum = T(0);
      for (Index j = 0; j < k; ++j) sum += column[j] += from[j];
      dx(row, k) = sum;
    }
  });
  return dx;
}

// On a GPU, on the calling thread's current stream; defined in segsum.cuh.
template <class T>
Tensor<T, 3, cuda> forward(const View<const T, 2, cuda>& x);
template <class T>
Tensor<T, 2, cuda> backward(const View<const T, 3, cuda>& dout);

}  // namespace diffmamba::ssd::segsum
