// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The SwiGLU gate on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/swiglu/swiglu_backward.cuh"

namespace diffmamba::swiglu {

template void forward<float>(const Inputs<float, cuda>&, const View<float, 3, cuda>&);
template void forward<double>(const Inputs<double, cuda>&, const View<double, 3, cuda>&);
template void forward<bfloat16>(const Inputs<bfloat16, cuda>&, const View<bfloat16, 3, cuda>&);
template void forward<half>(const Inputs<half, cuda>&, const View<half, 3, cuda>&);

#define DIFFMAMBA_BACKWARD(T) \
  template void backward<T>(const Inputs<T, cuda>&, const View<const T, 3, cuda>&, const GradientViews<T, cuda>&);
DIFFMAMBA_BACKWARD(float)
DIFFMAMBA_BACKWARD(double)
DIFFMAMBA_BACKWARD(bfloat16)

}  // namespace diffmamba::swiglu
