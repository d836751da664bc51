// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/error.hpp"
#include "diffmamba/device/parallel.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// Matrix products: the one place in the library where matrices are multiplied.
///
///   matmul(a, b, c, {.alpha, .beta})      c = alpha a b + beta c         (m, k) (k, n) -> (m, n)
///   Tensor c = matmul(a, b)               c = a b
///
/// Every operand may be a strided view, a transpose included: `matmul(x, w.permute<1, 0>())`. Of a and b one of the two
/// axes should be contiguous (stride 1); other strides work, slowly. With rank 3 the first axis is a batch of products;
/// a stride of 0 along it shares an operand. Element types may differ (bfloat16 activations, a float result): products
/// and sums are kept in accumulate_t of c, and c is rounded once. With beta = 0 what is in c is never read.
///
/// Any size may be zero; with k = 0, c = beta c. The bits of the result depend on sizes, strides of b and a and the
/// build only, never on the number of threads. Packing buffers are kept by each thread and bounded, so that in a steady
/// state nothing is allocated.
namespace diffmamba {

struct MatmulOptions {
  double alpha = 1;
  double beta = 0;
};

/// What the calling thread has multiplied: one call per matmul (or linear pass), batched or not, and 2 m k n operations
/// each. Tests prove by it that paths share a product, benchmarks count the operations of a step. Costs two additions.
struct MatmulCount {
  Index calls = 0;
  Index flops = 0;
};
inline MatmulCount& matmul_count() {
  thread_local MatmulCount count;
  return count;
}

namespace detail {

template <class A, class B, class C, int Rank>
void check_matmul(const View<A, Rank>& a, const View<B, Rank>& b, const View<C, Rank>& c) {
  static_assert(Rank == 2 || Rank == 3, "matmul: operands are matrices (rank 2) or batches of them (rank 3)");
  static_assert(!std::is_const_v<C>, "matmul: the result cannot be written");
  constexpr int row = Rank - 2, column = Rank - 1;
  require(a.extent(column) == b.extent(row), "matmul: a has ", a.extent(column), " columns but b has ", b.extent(row),
          " rows (a: ", a.extents(), ", b: ", b.extents(), ")");
  require(c.extent(row) == a.extent(row) && c.extent(column) == b.extent(column), "matmul: c is ", c.extents(),
          ", but a b is (", a.extent(row), ", ", b.extent(column), ") (a: ", a.extents(), ", b: ", b.extents(), ")");
  if constexpr (Rank == 3)
    require(a.extent(0) == b.extent(0) && a.extent(0) == c.extent(0), "matmul: a, b and c are batches of ", a.extent(0),
            ", ", b.extent(0), " and ", c.extent(0), " matrices");
}

}  // namespace detail
}  // namespace diffmamba
