// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The selective scan on the GPU, backward, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/selective_scan/selective_scan_backward.cuh"

namespace diffmamba::selective_scan {

#define DIFFMAMBA_SELECTIVE_SCAN_BACKWARD(T)                                                             \
  template std::size_t workspace_bytes(const Inputs<T, cuda>&, const Saved<T, cuda>&);                   \
  template void backward(const Inputs<T, cuda>&, const Saved<T, cuda>&, const OutputGradients<T, cuda>&, \
                         const GradientViews<T, cuda>&, Workspace<cuda>&, GradientMode);
DIFFMAMBA_SELECTIVE_SCAN_BACKWARD(float)
DIFFMAMBA_SELECTIVE_SCAN_BACKWARD(double)
DIFFMAMBA_SELECTIVE_SCAN_BACKWARD(bfloat16)

}  // namespace diffmamba::selective_scan
