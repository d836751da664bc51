// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Matrix products on the GPU, and the linear layer's, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/linear/linear_backward.cuh"
#include "diffmamba/ops/matmul/matmul_forward.cuh"

namespace diffmamba {

template std::vector<MatmulPlan> matmul_plans<>();

namespace detail {
template void multiply_on_gpu<>(const GpuMatrix&, const GpuMatrix&, const GpuMatrix&, Index, const MatmulOptions&,
                                const void*, Index);
template void column_sums_on_gpu<>(const GpuMatrix&, void*, Index, GradientMode);
}  // namespace detail

}  // namespace diffmamba
