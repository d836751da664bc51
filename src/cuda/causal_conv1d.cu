// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The causal convolution on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.cuh"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.cuh"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.cuh"

namespace diffmamba::causal_conv1d {

#define DIFFMAMBA_INFERENCE(T)                                                                                   \
  template std::size_t workspace_bytes<T>(const Inputs<T, cuda>&);                                                  \
  template void forward<T>(const Inputs<T, cuda>&, const Options&, const OutputViews<T, cuda>&,                  \
                           std::type_identity_t<Saved<T, cuda>>*, Workspace<cuda>&);                             \
  template void step<T>(const StepInputs<T, cuda>&, const std::type_identity_t<View<accumulate_t<T>, 3, cuda>>&, \
                        const Options&, const std::type_identity_t<View<T, 3, cuda>>&);
#define DIFFMAMBA_TRAINING(T)                                                      \
  template void backward<T>(const Inputs<T, cuda>&, const Saved<T, cuda>&,         \
                            const std::type_identity_t<OutputGradients<T, cuda>>&, \
                            const std::type_identity_t<GradientViews<T, cuda>>&, Workspace<cuda>&, GradientMode);
DIFFMAMBA_INFERENCE(float)
DIFFMAMBA_INFERENCE(double)
DIFFMAMBA_INFERENCE(bfloat16)
DIFFMAMBA_INFERENCE(half)
DIFFMAMBA_TRAINING(float)
DIFFMAMBA_TRAINING(double)
DIFFMAMBA_TRAINING(bfloat16)

}  // namespace diffmamba::causal_conv1d
