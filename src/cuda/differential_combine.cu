// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The differential combination on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/differential_combine/differential_combine_backward.cuh"
#include "diffmamba/ops/differential_combine/lambda.cuh"

namespace diffmamba::differential_combine {

#define DIFFMAMBA_FORWARD(T) \
  template void forward<T>(const Inputs<T, cuda>&, const Options&, const OutputViews<T, cuda>&, Saved<T, cuda>*);
DIFFMAMBA_FORWARD(float)
DIFFMAMBA_FORWARD(double)
DIFFMAMBA_FORWARD(bfloat16)
DIFFMAMBA_FORWARD(half)

#define DIFFMAMBA_BACKWARD(T)                                                                               \
  template std::size_t workspace_bytes(const Inputs<T, cuda>&);                                             \
  template void backward<T>(const Inputs<T, cuda>&, const Saved<T, cuda>&, const OutputGradients<T, cuda>&, \
                            const GradientViews<T, cuda>&, Workspace<cuda>&, GradientMode);
DIFFMAMBA_BACKWARD(float)
DIFFMAMBA_BACKWARD(double)
DIFFMAMBA_BACKWARD(bfloat16)

#define DIFFMAMBA_LAMBDA(T)                                                                            \
  template void lambda_forward(Lambda, double, const LambdaInputs<T, cuda>&, const View<T, 1, cuda>&); \
  template void lambda_backward(Lambda, const LambdaInputs<T, cuda>&, const View<const T, 1, cuda>&,   \
                                const LambdaGradientViews<T, cuda>&, GradientMode);
DIFFMAMBA_LAMBDA(float)
DIFFMAMBA_LAMBDA(double)

}  // namespace diffmamba::differential_combine
