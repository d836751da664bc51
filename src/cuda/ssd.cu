// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD forward on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/ssd/ssd_forward.cuh"

namespace diffmamba::ssd {

#define DIFFMAMBA_SSD(T)                                                                                      \
  template std::size_t workspace_bytes(const Inputs<T, cuda>&, const Options&);                               \
  template void forward(const Inputs<T, cuda>&, const Options&, const OutputViews<T, cuda>&, Saved<T, cuda>*, \
                        Workspace<cuda>&);
DIFFMAMBA_SSD(float)
DIFFMAMBA_SSD(double)
DIFFMAMBA_SSD(bfloat16)
DIFFMAMBA_SSD(half)

}  // namespace diffmamba::ssd
