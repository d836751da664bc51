// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD backward on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/ssd/ssd_backward.cuh"

namespace diffmamba::ssd {

#define DIFFMAMBA_SSD_BACKWARD(T)                                                                        \
  template std::size_t workspace_bytes(const Inputs<T, cuda>&, const Saved<T, cuda>&);                   \
  template void backward(const Inputs<T, cuda>&, const Saved<T, cuda>&, const OutputGradients<T, cuda>&, \
                         const GradientViews<T, cuda>&, Workspace<cuda>&, GradientMode);
DIFFMAMBA_SSD_BACKWARD(float)
DIFFMAMBA_SSD_BACKWARD(double)
DIFFMAMBA_SSD_BACKWARD(bfloat16)

}  // namespace diffmamba::ssd
