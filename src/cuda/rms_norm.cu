// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Both norms on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/layer_norm/layer_norm_backward.cuh"
#include "diffmamba/ops/layer_norm/layer_norm_forward.cuh"
#include "diffmamba/ops/rms_norm/rms_norm_backward.cuh"

#define DIFFMAMBA_FORWARD(T) \
  template void forward<T>(const Inputs<T, cuda>&, const Options&, const OutputViews<T, cuda>&, Saved<T, cuda>*);
#define DIFFMAMBA_BACKWARD(T)                                                                               \
  template void backward<T>(const Inputs<T, cuda>&, const Saved<T, cuda>&, const OutputGradients<T, cuda>&, \
                            const GradientViews<T, cuda>&, Workspace<cuda>&, GradientMode);

namespace diffmamba::rms_norm {
template std::size_t workspace_bytes(const Inputs<float, cuda>&);
template std::size_t workspace_bytes(const Inputs<double, cuda>&);
template std::size_t workspace_bytes(const Inputs<bfloat16, cuda>&);
DIFFMAMBA_FORWARD(float)
DIFFMAMBA_FORWARD(double)
DIFFMAMBA_FORWARD(bfloat16)
DIFFMAMBA_FORWARD(half)
DIFFMAMBA_BACKWARD(float)
DIFFMAMBA_BACKWARD(double)
DIFFMAMBA_BACKWARD(bfloat16)
}  // namespace diffmamba::rms_norm

namespace diffmamba::layer_norm {
DIFFMAMBA_FORWARD(float)
DIFFMAMBA_FORWARD(double)
DIFFMAMBA_FORWARD(bfloat16)
DIFFMAMBA_FORWARD(half)
DIFFMAMBA_BACKWARD(float)
DIFFMAMBA_BACKWARD(double)
DIFFMAMBA_BACKWARD(bfloat16)
}  // namespace diffmamba::layer_norm
