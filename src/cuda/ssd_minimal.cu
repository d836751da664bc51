// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The reference form of SSD and segment sums on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/ssd/segsum.cuh"
#include "diffmamba/ops/ssd/ssd_minimal.cuh"

namespace diffmamba::ssd {

#define DIFFMAMBA_SSD_MINIMAL(T)                                                                                 \
  template minimal::Outputs<T, cuda> minimal::forward(const minimal::Inputs<T, cuda>&, const minimal::Options&); \
  template minimal::Gradients<T, cuda> minimal::backward(                                                        \
      const minimal::Inputs<T, cuda>&, const minimal::Saved<T, cuda>&, const minimal::OutputGradients<T, cuda>&);
DIFFMAMBA_SSD_MINIMAL(float)
DIFFMAMBA_SSD_MINIMAL(double)
DIFFMAMBA_SSD_MINIMAL(bfloat16)

#define DIFFMAMBA_SEGSUM(T)                                                   \
  template Tensor<T, 3, cuda> segsum::forward(const View<const T, 2, cuda>&); \
  template Tensor<T, 2, cuda> segsum::backward(const View<const T, 3, cuda>&);
DIFFMAMBA_SEGSUM(float)
DIFFMAMBA_SEGSUM(double)

}  // namespace diffmamba::ssd
