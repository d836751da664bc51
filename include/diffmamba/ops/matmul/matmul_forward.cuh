// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublasLt.h>

#include <compare>    // operator<=>
#include <map>        // std::map
#include <memory>     // std::unique_ptr
#include <mutex>      // std::mutex
#include <tuple>      // std::tie
#include <utility>    // std::pair
#include <vector>     // std::vector

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/memory.hpp"
#include "diffmamba/ops/matmul/any_strides.cuh"
#include "diffmamba/ops/matmul/few_rows.cuh"
#include "diffmamba/ops/matmul/matmul.hpp"

/// The matrix product on an NVIDIA GPU. Three ways, chosen by types, sizes, strides and alignment alone:
///
/// - few rows against rows of a weight (decoding): few_rows.cuh, at the speed of memory;
/// - cuBLASLt, planned once per shape: the first algorithm of the library's own ranking whose sums have a fixed order.
///   No timing decides, so the plan and the bits are the same in every run on one machine;
/// - what cuBLASLt does not take (two operand types, no contiguous axis, nothing to sum): any_strides.cuh.
namespace diffmamba {
namespace cuda_runtime {

inline void check(cublasStatus_t status, const char* call) {
  require(status == CUBLAS_STATUS_SUCCESS, "cuda: ", call, ": ", cublasLtGetStatusString(status));
}

inline cudaDataType_t data_type(Dtype type) {
  switch (type) {
    case Dtype::float64:
      return CUDA_R_64F;
    case Dtype::float32:
      return CUDA_R_32F;
    case Dtype::bfloat16:
      return CUDA_R_16BF;
    case Dtype::float16:
      return CUDA_R_16F;
    default:
      fail("matmul: a GPU does not multiply elements of type ", type);
  }
}

}  // namespace cuda_runtime

namespace detail {

/// One product as cuBLASLt sees it: column-major, which is c^T = b^T a^T of our row-major one.
struct GpuProduct {
  int device;
  Dtype a_type, b_type, c_type;
  FloatProduct mode;
  bool with_bias;
  bool a_turned, b_turned;
  Index m, n, k, a_stride, b_stride, c_stride;  // leading dimensions
  Index batch, a_batch, b_batch, c_batch;       // strides of the batch
  int a_alignment, b_alignment, c_alignment;    // bytes, at most `most_alignment`
  int rank;                                     // in the library's ranking
  auto operator<=>(const GpuProduct&) const = default;
};

/// Descriptors and the chosen algorithm of a product.
class GpuPlan {
 public:
  static constexpr std::size_t most_workspace = std::size_t{32} << 20;

  GpuPlan(cublasLtHandle_t handle, const GpuProduct& p) {
    using cuda_runtime::check;
    wide_ = p.c_type == Dtype::float64;
    const cublasComputeType_t compute = wide_ ? CUBLAS_COMPUTE_64F
                                        : p.a_type == Dtype::float32 && p.mode == FloatProduct::tf32
                                            ? CUBLAS_COMPUTE_32F_FAST_TF32
                                            : CUBLAS_COMPUTE_32F;
    check(cublasLtMatmulDescCreate(&operation_, compute, wide_ ? CUDA_R_64F : CUDA_R_32F), "cublasLtMatmulDescCreate");
    // Column-major, our b comes first and our a second.
    set(*operation_, CUBLASLT_MATMUL_DESC_TRANSA, p.b_turned ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(*operation_, CUBLASLT_MATMUL_DESC_TRANSB, p.a_turned ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.with_bias) {
      set(*operation_, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(*operation_, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, wide_ ? CUDA_R_64F : CUDA_R_32F);
    }
    layout(first_, p.b_type, p.b_turned ? p.k : p.n, p.b_turned ? p.n : p.k, p.b_stride, p.batch, p.b_batch);
    layout(second_, p.a_type, p.a_turned ? p.m : p.k, p.a_turned ? p.k : p.m, p.a_stride, p.batch, p.a_batch);
    layout(result_, p.c_type, p.n, p.m, p.c_stride, p.batch, p.c_batch);

    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{most_workspace});
    // A split of k is summed out of place in a fixed order, or there is none.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           std::uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(p.b_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(p.a_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(p.c_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(p.c_alignment));
    constexpr int most = 8;
    cublasLtMatmulHeuristicResult_t found[most];
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, operation_, first_, second_, result_, result_,
                                                                 preference, p.rank == 0 ? 1 : most, found, &count);
    (void)cublasLtMatmulPreferenceDestroy(preference);
    ok_ = status == CUBLAS_STATUS_SUCCESS && count > p.rank;
    if (!ok_) return;
    algorithm_ = found[p.rank].algo;
    workspace_needed_ = found[p.rank].workspaceSize;
    waves_ = found[p.rank].wavesCount;
  }
  GpuPlan(const GpuPlan&) = delete;
  GpuPlan& operator=(const GpuPlan&) = delete;
  ~GpuPlan() {
    for (auto* matrix : {first_, second_, result_})
      if (matrix != nullptr) (void)cublasLtMatrixLayoutDestroy(matrix);
    if (operation_ != nullptr) (void)cublasLtMatmulDescDestroy(operation_);
  }

  /// Whether cuBLASLt knows a way at all.
  explicit operator bool() const { return ok_; }

  void run(cublasLtHandle_t handle, const void* a, const void* b, void* c, double alpha, double beta, const void* bias,
           cudaStream_t stream) const {
    const float alpha_float = static_cast<float>(alpha), beta_float = static_cast<float>(beta);
    const void* scale = wide_ ? static_cast<const void*>(&alpha) : &alpha_float;
    const void* keep = wide_ ? static_cast<const void*>(&beta) : &beta_float;
    cublasLtMatmulDescOpaque_t operation = *operation_;  // the plan is shared by threads, the bias is this call's
    if (bias != nullptr) set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    // From the arena, in the order of the stream: free again for whatever is launched next.
    void* workspace = workspace_needed_ > 0 ? arena<cuda>().allocate(workspace_needed_) : nullptr;
    const cublasStatus_t status = cublasLtMatmul(handle, &operation, scale, b, first_, a, second_, keep, c, result_, c,
                                                 result_, &algorithm_, workspace, workspace_needed_, stream);
    arena<cuda>().deallocate(workspace);
    cuda_runtime::check(status, "cublasLtMatmul");
  }

  MatmulPlan describe(const GpuProduct& p) const {
    MatmulPlan plan{p.m, p.n, p.k, p.batch, p.a_type, p.b_type, p.c_type, p.a_turned, !p.b_turned};
    const auto get = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto value) {
      std::size_t written = 0;
      (void)cublasLtMatmulAlgoConfigGetAttribute(&algorithm_, attribute, &value, sizeof value, &written);
      return static_cast<int>(value);
    };
    plan.algorithm = get(CUBLASLT_ALGO_CONFIG_ID, std::int32_t{});
    plan.tile = get(CUBLASLT_ALGO_CONFIG_TILE_ID, std::uint32_t{});
    plan.stages = get(CUBLASLT_ALGO_CONFIG_STAGES_ID, std::uint32_t{});
    plan.cluster = get(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, std::uint16_t{});
    plan.split_k = get(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, std::int32_t{});
    plan.workspace = workspace_needed_;
    plan.waves = waves_;
    return plan;
  }

 private:
  template <class Value>
  static void set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute, Value value) {
    cuda_runtime::check(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof value),
                        "cublasLtMatmulDescSetAttribute");
  }
  static void layout(cublasLtMatrixLayout_t& matrix, Dtype type, Index rows, Index columns, Index stride, Index batch,
                     Index batch_stride) {
    using cuda_runtime::check;
    check(cublasLtMatrixLayoutCreate(&matrix, cuda_runtime::data_type(type), static_cast<std::uint64_t>(rows),
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
  float waves_ = 0;
  bool wide_ = false, ok_ = false;
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
  std::vector<MatmulPlan> list() {
    const std::lock_guard lock(mutex_);
    std::vector<MatmulPlan> plans;
    for (const auto& [product, plan] : plans_)
      if (*plan) plans.push_back(plan->describe(product));
    return plans;
  }

 private:
  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<GpuProduct, std::unique_ptr<GpuPlan>> plans_;
};

/// The largest power of two, up to 16 bytes, that divides an address and the step from one matrix of a batch to the
/// next.
inline int alignment_of(const GpuMatrix& x) {
  const auto bits = reinterpret_cast<std::uintptr_t>(x.data) |
                    static_cast<std::uintptr_t>(x.batch) * static_cast<std::uintptr_t>(size_of(x.type)) | 16u;
  return static_cast<int>(bits & (~bits + 1));
}

/// How a matrix lies: in rows, in columns (turned), or neither. The stride is the leading dimension.
struct Orientation {
  bool known, turned;
  Index stride;
};
inline Orientation orientation(const GpuMatrix& x) {
  constexpr Index most = Index{1} << 31;
  if (x.rows >= most || x.columns >= most) return {false, false, 0};
  if ((x.column == 1 || x.columns == 1) && (x.row >= x.columns || x.rows == 1))
    return {true, false, x.rows == 1 ? x.columns : x.row};
  if ((x.row == 1 || x.rows == 1) && (x.column >= x.rows || x.columns == 1))
    return {true, true, x.columns == 1 ? x.rows : x.column};
  return {false, false, 0};
}
inline GpuMatrix transposed(const GpuMatrix& x) {
  return {x.data, x.type, x.columns, x.rows, x.column, x.row, x.batch};
}

/// By cuBLASLt, if it takes the product.
inline bool multiply_by_cublas(const GpuMatrix& a, const GpuMatrix& b, const GpuMatrix& c, Index batch,
                               const MatmulOptions& options, const void* bias, Index bias_stride,
                               const cuda_runtime::Stream& stream) {
  const Orientation a_lies = orientation(a), b_lies = orientation(b), c_lies = orientation(c);
  if (!a_lies.known || !b_lies.known || !c_lies.known || a.type != b.type || batch >= Index{1} << 31) return false;
  if (c.type != a.type && !(c.type == Dtype::float32 && size_of(a.type) == 2)) return false;
  if (c_lies.turned)
    return bias == nullptr &&
           multiply_by_cublas(transposed(b), transposed(a), transposed(c), batch, options, nullptr, 1, stream);
  // Where the library cannot add a float bias (16-bit results) it is added apart, to the rounded product.
  bool with_bias = bias != nullptr && bias_stride == 1;
  GpuProduct product{stream.device,
                     a.type,
                     b.type,
                     c.type,
                     float_product_of_thread(),
                     with_bias,
                     a_lies.turned,
                     b_lies.turned,
                     c.rows,
                     c.columns,
                     a.columns,
                     a_lies.stride,
                     b_lies.stride,
                     c_lies.stride,
                     batch,
                     a.batch,
                     b.batch,
                     c.batch,
                     alignment_of(a),
                     alignment_of(b),
                     alignment_of(c),
                     plan_rank_of_thread()};
  auto [handle, plan] = GpuPlans::instance().find(product);
  if (!*plan && with_bias) {
    product.with_bias = with_bias = false;
    std::tie(handle, plan) = GpuPlans::instance().find(product);
  }
  if (!*plan) return false;
  plan->run(handle, a.data, b.data, c.data, options.alpha, options.beta, with_bias ? bias : nullptr, stream.handle);
  if (bias != nullptr && !with_bias) add_bias(c, bias, bias_stride, stream.handle);
  return true;
}

template <class>
void multiply_on_gpu(const GpuMatrix& a, const GpuMatrix& b, const GpuMatrix& c, Index batch,
                     const MatmulOptions& options, const void* bias, Index bias_stride) {
  if (c.rows == 0 || c.columns == 0 || batch == 0) return;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const bool sums = a.columns > 0 && options.alpha != 0;
  if (sums && multiply_few_rows_on_gpu(a, b, c, batch, options, bias, bias_stride, stream.handle)) return;
  if (sums && multiply_by_cublas(a, b, c, batch, options, bias, bias_stride, stream)) return;
  multiply_any_strides(a, b, c, batch, options, bias, bias_stride, stream.handle);
}

}  // namespace detail

template <class>
std::vector<MatmulPlan> matmul_plans() {
  return detail::GpuPlans::instance().list();
}

}  // namespace diffmamba
