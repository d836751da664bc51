// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The selective scan on the GPU, one token, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/selective_scan/selective_scan_step.cuh"

namespace diffmamba::selective_scan {

#define DIFFMAMBA_SELECTIVE_SCAN_STEP(T)                                                                    \
  template void step(const StepInputs<T, cuda>&, const View<accumulate_t<T>, 3, cuda>&, const Options&,     \
                     const View<T, 2, cuda>&);                                                              \
  template void step(const HeadStepInputs<T, cuda>&, const View<accumulate_t<T>, 4, cuda>&, const Options&, \
                     const View<T, 3, cuda>&);
DIFFMAMBA_SELECTIVE_SCAN_STEP(float)
DIFFMAMBA_SELECTIVE_SCAN_STEP(double)
DIFFMAMBA_SELECTIVE_SCAN_STEP(bfloat16)
DIFFMAMBA_SELECTIVE_SCAN_STEP(half)

}  // namespace diffmamba::selective_scan
