// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The embedding on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/embedding/embedding_backward.cuh"
#include "diffmamba/ops/embedding/embedding_forward.cuh"

namespace diffmamba::embedding {

#define DIFFMAMBA_FORWARD(T, Token) template void forward(const Inputs<T, Token, cuda>&, const View<T, 3, cuda>&);
#define DIFFMAMBA_BACKWARD(T, G, Token)                                                \
  template void backward(const Inputs<T, Token, cuda>&, const View<const G, 3, cuda>&, \
                         const View<accumulate_t<T>, 2, cuda>&, GradientMode);
DIFFMAMBA_FORWARD(float, std::int32_t)
DIFFMAMBA_FORWARD(float, std::int64_t)
DIFFMAMBA_FORWARD(double, std::int32_t)
DIFFMAMBA_FORWARD(double, std::int64_t)
DIFFMAMBA_FORWARD(bfloat16, std::int32_t)
DIFFMAMBA_FORWARD(bfloat16, std::int64_t)
DIFFMAMBA_FORWARD(half, std::int32_t)
DIFFMAMBA_FORWARD(half, std::int64_t)
DIFFMAMBA_BACKWARD(float, float, std::int32_t)
DIFFMAMBA_BACKWARD(float, float, std::int64_t)
DIFFMAMBA_BACKWARD(double, double, std::int32_t)
DIFFMAMBA_BACKWARD(double, double, std::int64_t)
DIFFMAMBA_BACKWARD(bfloat16, bfloat16, std::int32_t)
DIFFMAMBA_BACKWARD(bfloat16, bfloat16, std::int64_t)
DIFFMAMBA_BACKWARD(bfloat16, float, std::int32_t)
DIFFMAMBA_BACKWARD(bfloat16, float, std::int64_t)

}  // namespace diffmamba::embedding
