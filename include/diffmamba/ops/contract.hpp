// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/tensor/tensor.hpp"  // View, require_shape

// What the contracts of operators check in common.
namespace diffmamba {

/// The elements of the last axis must lie next to one another; all other axes may have any stride.
template <class T, int Rank, class D>
void require_dense_rows(const char* op, const char* name, const View<T, Rank, D>& view) {
  if (view.extent(Rank - 1) <= 1 || view.stride(Rank - 1) == 1) [[likely]]
    return;
  fail(op, ": ", name, ", ", view.extents(), ", must be dense along its last axis; its stride there is ",
       view.stride(Rank - 1));
}

/// Shape and dense rows of an operand that may be left out.
template <class T, int Rank, class D>
void require_operand(const char* op, const char* name, const View<T, Rank, D>& view, const Extents<Rank>& expected) {
  if (!view) return;
  require_shape(op, name, view, expected);
  require_dense_rows(op, name, view);
}

/// Shape and dense rows of an operand that must be there.
template <class T, int Rank, class D>
void require_operand(const char* op, const char* name, const RequiredView<T, Rank, D>& view,
                     const Extents<Rank>& expected) {
  require_shape(op, name, view, expected);
  require_dense_rows(op, name, view);
  require(view || view.size() == 0, op, ": ", name, ", ", view.extents(), ", has no memory");
}

/// Forward passes of these operators that the calling thread has begun. Tests prove by it that the two paths of a
/// differential mixer are one convolution and one scan; matmul_count (ops/matmul) counts the products.
struct ForwardCount {
  Index causal_conv1d = 0, selective_scan = 0, ssd = 0;
};
inline ForwardCount& forward_count() {
  thread_local ForwardCount count;
  return count;
}

/// Saved tensors keep their memory from one call to the next; only another shape takes new memory from the arena.
template <class T, int Rank, class D>
void reuse_or_allocate(Tensor<T, Rank, D>& tensor, const Extents<Rank>& extents) {
  if (!tensor || !(tensor.extents() == extents)) tensor = Tensor<T, Rank, D>::uninitialized(extents);
}

}  // namespace diffmamba
