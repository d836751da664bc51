// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>  // std::string
#include <vector>  // std::vector

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
///
/// On a GPU (matmul_forward.cuh) the same calls go to the current stream, and the bits depend on sizes, strides,
/// alignment and the GPU only: every way that is taken sums in a fixed order.
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

/// How float matrices are multiplied on a GPU: exactly (the default), or by tensor cores with 10-bit mantissas. A
/// setting of the calling thread; 16-bit operands are multiplied exactly in either.
enum class FloatProduct { float32, tf32 };
inline FloatProduct& float_product_of_thread() {
  thread_local FloatProduct mode = FloatProduct::float32;
  return mode;
}

namespace cuda_runtime {

inline bool& weights_at_rest_of_thread() {
  thread_local bool at_rest = false;
  return at_rest;
}
/// A promise of the calling thread, until the scope ends: nothing that runs or waits on the stream writes a matrix that
/// is the second operand of a product, or the weight of a linear layer, under this scope. Then the product of a few
/// rows (decoding) reads its weight while the kernel before it still runs.
class WeightsAtRest {
 public:
  WeightsAtRest() : before_(weights_at_rest_of_thread()) { weights_at_rest_of_thread() = true; }
  ~WeightsAtRest() { weights_at_rest_of_thread() = before_; }
  WeightsAtRest(const WeightsAtRest&) = delete;
  WeightsAtRest& operator=(const WeightsAtRest&) = delete;

 private:
  bool before_;
};

}  // namespace cuda_runtime

/// What was chosen for a product on a GPU, for whoever wants to know where the time goes.
struct MatmulPlan {
  Index m, n, k, batch;
  Dtype a, b, c;
  bool a_turned, b_turned;                                            // a and b^T lie in rows when not turned
  int algorithm = 0, tile = 0, stages = 0, cluster = 0, split_k = 0;  // cuBLASLt's numbers
  std::size_t workspace = 0;
  float waves = 0;
};

/// The products that cuBLASLt has planned so far in this process, in the order of their shapes.
template <class = void>
std::vector<MatmulPlan> matmul_plans();

namespace detail {

template <class A, class B, class C, int Rank, class D>
void check_matmul(const View<A, Rank, D>& a, const View<B, Rank, D>& b, const View<C, Rank, D>& c) {
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

/// A matrix in GPU memory, or a batch of them, whose element type is data.
struct GpuMatrix {
  void* data;
  Dtype type;
  Index rows, columns;
  Index row, column, batch;  // strides
};
template <class T, int Rank>
GpuMatrix gpu_matrix(const View<T, Rank, cuda>& x) {
  static_assert(Rank == 2 || Rank == 3);
  return {const_cast<std::remove_const_t<T>*>(x.data()),
          dtype_of<T>,
          x.extent(Rank - 2),
          x.extent(Rank - 1),
          x.stride(Rank - 2),
          x.stride(Rank - 1),
          Rank == 3 ? x.stride(0) : 0};
}

/// c = alpha a b + beta c + bias on the current stream; bias, of accumulate_t of c's type, has one element per column
/// of c, or is null. Sizes have been checked.
template <class = void>
void multiply_on_gpu(const GpuMatrix& a, const GpuMatrix& b, const GpuMatrix& c, Index batch,
                     const MatmulOptions& options, const void* bias = nullptr, Index bias_stride = 1);

/// Which entry of the library's ranking new plans take: the first. For whoever measures what the others are worth.
inline int& plan_rank_of_thread() {
  thread_local int rank = 0;
  return rank;
}

/// A tensor or view in GPU memory.
template <class X>
concept OnGpu = requires(X& x) {
  as_view(x);
  requires std::is_same_v<typename std::remove_reference_t<X>::device_type, cuda>;
};

}  // namespace detail

/// The same on a GPU, in the order of the current stream. Element types are float, double, bfloat16 and half; a and b
/// have the same one, or one is float and the other 16 bits wide; c has one of theirs, or float.
template <detail::OnGpu A, detail::OnGpu B, detail::OnGpu C>
void matmul(const A& a, const B& b, C&& c, const MatmulOptions& options = {}) {
  const auto left = as_view(a);
  const auto right = as_view(b);
  const auto result = as_view(c);
  detail::check_matmul(left, right, result);
  constexpr int rank = A::rank;
  matmul_count().calls += 1;
  matmul_count().flops += 2 * left.size() * right.extent(rank - 1);
  detail::multiply_on_gpu(detail::gpu_matrix(left), detail::gpu_matrix(right), detail::gpu_matrix(result),
                          rank == 3 ? left.extent(0) : 1, options);
}
template <detail::OnGpu A, detail::OnGpu B>
auto matmul(const A& a, const B& b) {
  auto extents = a.extents();
  extents[A::rank - 1] = b.extent(A::rank - 1);
  auto result = Tensor<typename A::value_type, A::rank, cuda>::uninitialized(extents);
  matmul(a, b, result);
  return result;
}

}  // namespace diffmamba
