// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublasLt.h>

#include <compare>  // operator<=>
#include <map>      // std::map
#include <memory>   // std::unique_ptr
#include <mutex>    // std::mutex

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/ops/matmul/matmul.hpp"

/// The matrix product on an NVIDIA GPU, by cuBLASLt. A product is planned once per shape: the first algorithm of the
/// library's own ranking whose sums have a fixed order. No timing decides, so the plan and the bits are the same in
/// every run on one machine.
namespace diffmamba {
namespace cuda_runtime {

inline void check(cublasStatus_t status, const char* call) {
  require(status == CUBLAS_STATUS_SUCCESS, "cuda: ", call, ": ", cublasLtGetStatusString(status));
}

template <class T>
inline constexpr cudaDataType_t data_type = CUDA_R_32F;
template <>
inline constexpr cudaDataType_t data_type<double> = CUDA_R_64F;
template <>
inline constexpr cudaDataType_t data_type<bfloat16> = CUDA_R_16BF;
template <>
inline constexpr cudaDataType_t data_type<half> = CUDA_R_16F;

}  // namespace cuda_runtime

/// How float matrices are multiplied on a GPU: exactly (the default), or by tensor cores with 10-bit mantissas.
enum class FloatProduct { float32, tf32 };
inline FloatProduct& float_product_of_thread() {
  thread_local FloatProduct mode = FloatProduct::float32;
  return mode;
}

namespace detail {

/// One product as cuBLASLt sees it: column-major, which is c^T = b^T a^T of our row-major one.
struct GpuProduct {
  int device;
  cudaDataType_t a_type, b_type, c_type;
  FloatProduct mode;
  bool a_turned, b_turned;
  Index m, n, k, a_stride, b_stride, c_stride;  // leading dimensions
  Index batch, a_batch, b_batch, c_batch;       // strides of the batch
  int a_alignment, b_alignment, c_alignment;    // bytes, at most 256
  auto operator<=>(const GpuProduct&) const = default;
};

/// Descriptors and the chosen algorithm of a product.
class GpuPlan {
 public:
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20;

  GpuPlan(cublasLtHandle_t handle, const GpuProduct& p) {
    using cuda_runtime::check;
    const bool wide = p.c_type == CUDA_R_64F;
    const cublasComputeType_t compute = wide ? CUBLAS_COMPUTE_64F
                                        : p.a_type == CUDA_R_32F && p.mode == FloatProduct::tf32
                                            ? CUBLAS_COMPUTE_32F_FAST_TF32
                                            : CUBLAS_COMPUTE_32F;
    check(cublasLtMatmulDescCreate(&operation_, compute, wide ? CUDA_R_64F : CUDA_R_32F), "cublasLtMatmulDescCreate");
    // Column-major, our b comes first and our a second.
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.b_turned ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.a_turned ? CUBLAS_OP_T : CUBLAS_OP_N);
    layout(first_, p.b_type, p.b_turned ? p.k : p.n, p.b_turned ? p.n : p.k, p.b_stride, p.batch, p.b_batch);
    layout(second_, p.a_type, p.a_turned ? p.m : p.k, p.a_turned ? p.k : p.m, p.a_stride, p.batch, p.a_batch);
    layout(result_, p.c_type, p.n, p.m, p.c_stride, p.batch, p.c_batch);

    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{workspace_bytes});
    // A split of k is summed out of place in a fixed order, or there is none.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           std::uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(p.b_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(p.a_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(p.c_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(p.c_alignment));
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, operation_, first_, second_, result_, result_,
                                                                 preference, 1, &found, &count);
    (void)cublasLtMatmulPreferenceDestroy(preference);
    require(status == CUBLAS_STATUS_SUCCESS && count > 0, "matmul: cuBLASLt knows no way to multiply (", p.m, ", ", p.k,
            ") by (", p.k, ", ", p.n, ") of these types: ", cublasLtGetStatusString(status));
    algorithm_ = found.algo;
    workspace_needed_ = found.workspaceSize;
  }
  GpuPlan(const GpuPlan&) = delete;
  GpuPlan& operator=(const GpuPlan&) = delete;
  ~GpuPlan() {
    for (auto* matrix : {first_, second_, result_})
      if (matrix != nullptr) (void)cublasLtMatrixLayoutDestroy(matrix);
    if (operation_ != nullptr) (void)cublasLtMatmulDescDestroy(operation_);
  }

  void run(cublasLtHandle_t handle, const void* a, const void* b, void* c, double alpha, double beta,
           cudaStream_t stream, bool wide) const {
    const float alpha_float = static_cast<float>(alpha), beta_float = static_cast<float>(beta);
    const void* scale = wide ? static_cast<const void*>(&alpha) : &alpha_float;
    const void* keep = wide ? static_cast<const void*>(&beta) : &beta_float;
    // From the arena, in the order of the stream: free again for whatever is launched next.
    void* workspace = workspace_needed_ > 0 ? arena<cuda>().allocate(workspace_needed_) : nullptr;
    const cublasStatus_t status = cublasLtMatmul(handle, operation_, scale, b, first_, a, second_, keep, c, result_, c,
                                                 result_, &algorithm_, workspace, workspace_needed_, stream);
    arena<cuda>().deallocate(workspace);
    cuda_runtime::check(status, "cublasLtMatmul");
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, Value value) {
    cuda_runtime::check(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value),
                        "cublasLtMatmulDescSetAttribute");
  }
  static void layout(cublasLtMatrixLayout_t& matrix, cudaDataType_t type, Index rows, Index columns, Index stride,
                     Index batch, Index batch_stride) {
    using cuda_runtime::check;
    check(cublasLtMatrixLayoutCreate(&matrix, type, static_cast<std::uint64_t>(rows),
                                     static_cast<std::uint64_t>(columns), stride),
          "cublasLtMatrixLayoutCreate");
    const auto count = static_cast<std::int32_t>(batch);
    check(cublasLtMatrixLayoutSetAttribute(matrix, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
          "cublasLtMatrixLayoutSetAttribute");
    check(cublasLtMatrixLayoutSetAttribute(matrix, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                                           sizeof batch_stride),
          "cublasLtMatrixLayoutSetAttribute");
  }

  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t first_ = nullptr, second_ = nullptr, result_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_;
  std::size_t workspace_needed_ = 0;
};

/// A handle per GPU and the plans made so far. Thread-safe.
class GpuPlans {
 public:
  static GpuPlans& instance() {
    static GpuPlans& plans = *new GpuPlans;
    return plans;
  }
  std::pair<cublasLtHandle_t, const GpuPlan*> find(const GpuProduct& product) {
    const std::lock_guard lock(mutex_);
    cublasLtHandle_t& handle = handles_[product.device];
    if (handle == nullptr) cuda_runtime::check(cublasLtCreate(&handle), "cublasLtCreate");
    auto& plan = plans_[product];
    if (plan == nullptr) plan = std::make_unique<GpuPlan>(handle, product);
    return {handle, plan.get()};
  }

 private:
  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<GpuProduct, std::unique_ptr<GpuPlan>> plans_;
};

inline int alignment_of(const void* data) {
  int alignment = 256;
  while (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(alignment) != 0) alignment /= 2;
  return alignment;
}

/// Whether an operand lies transposed, and its leading dimension. Throws Error if no axis is contiguous.
inline std::pair<bool, Index> orientation(const char* name, Index rows, Index columns, Index row, Index column) {
  if ((column == 1 || columns == 1) && (row >= columns || rows == 1)) return {false, rows == 1 ? columns : row};
  if ((row == 1 || rows == 1) && (column >= rows || columns == 1)) return {true, columns == 1 ? rows : column};
  fail("matmul: ", name, " is a strided matrix (", rows, ", ", columns, ") with steps of ", row, " and ", column,
       "; on a GPU one of its axes must be contiguous");
}

template <class A, class B, class C, int Rank>
void multiply(const View<A, Rank, cuda>& a, const View<B, Rank, cuda>& b, const View<C, Rank, cuda>& c,
              const MatmulOptions& options) {
  using T = accumulate_t<C>;
  constexpr int row = Rank - 2, column = Rank - 1;
  const Index m = a.extent(row), k = a.extent(column), n = b.extent(column), batch = Rank == 3 ? c.extent(0) : 1;
  if (c.size() == 0) return;
  require(k > 0, "matmul: products over an empty axis are not offered on a GPU (a: ", a.extents(), ")");
  const auto [a_turned, a_stride] = orientation("a", m, k, a.stride(row), a.stride(column));
  const auto [b_turned, b_stride] = orientation("b", k, n, b.stride(row), b.stride(column));
  const auto [c_turned, c_stride] = orientation("c", m, n, c.stride(row), c.stride(column));
  require(!c_turned, "matmul: the rows of c must be contiguous on a GPU");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const auto batch_of = [&](const auto& view) { return Rank == 3 ? view.stride(0) : Index{0}; };
  const GpuProduct product{stream.device,
                           cuda_runtime::data_type<std::remove_const_t<A>>,
                           cuda_runtime::data_type<std::remove_const_t<B>>,
                           cuda_runtime::data_type<C>,
                           float_product_of_thread(),
                           a_turned,
                           b_turned,
                           m,
                           n,
                           k,
                           a_stride,
                           b_stride,
                           c_stride,
                           batch,
                           batch_of(a),
                           batch_of(b),
                           batch_of(c),
                           alignment_of(a.data()),
                           alignment_of(b.data()),
                           alignment_of(c.data())};
  const auto [handle, plan] = GpuPlans::instance().find(product);
  plan->run(handle, a.data(), b.data(), c.data(), options.alpha, options.beta, stream.handle,
            std::is_same_v<T, double>);
}

}  // namespace detail
}  // namespace diffmamba
