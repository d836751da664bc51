// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The selective scan on the GPU, forward, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/selective_scan/selective_scan_forward.cuh"

namespace diffmamba::selective_scan {

#define DIFFMAMBA_SELECTIVE_SCAN_FORWARD(T)                                                                   \
  template std::size_t workspace_bytes(const Inputs<T, cuda>&, const Options&);                               \
  template void forward(const Inputs<T, cuda>&, const Options&, const OutputViews<T, cuda>&, Saved<T, cuda>*, \
                        Workspace<cuda>&);
DIFFMAMBA_SELECTIVE_SCAN_FORWARD(float)
DIFFMAMBA_SELECTIVE_SCAN_FORWARD(double)
DIFFMAMBA_SELECTIVE_SCAN_FORWARD(bfloat16)
DIFFMAMBA_SELECTIVE_SCAN_FORWARD(half)

}  // namespace diffmamba::selective_scan
