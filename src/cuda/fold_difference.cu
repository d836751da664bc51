// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The folded output projection of differential mixers on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/fold_difference/fold_difference_backward.cuh"

namespace diffmamba::fold_difference {

#define DIFFMAMBA_FORWARD(T) \
  template void forward<T>(const Inputs<T, cuda>&, const Options&, const OutputViews<T, cuda>&);
DIFFMAMBA_FORWARD(float)
DIFFMAMBA_FORWARD(double)
DIFFMAMBA_FORWARD(bfloat16)
DIFFMAMBA_FORWARD(half)

#define DIFFMAMBA_BACKWARD(T)                                                                        \
  template void backward<T>(const Inputs<T, cuda>&, const Options&, const OutputGradients<T, cuda>&, \
                            const GradientViews<T, cuda>&, Workspace<cuda>&, GradientMode);
DIFFMAMBA_BACKWARD(float)
DIFFMAMBA_BACKWARD(double)
DIFFMAMBA_BACKWARD(bfloat16)

}  // namespace diffmamba::fold_difference
