// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The loss of a language model on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/cross_entropy/cross_entropy_backward.cuh"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.cuh"

namespace diffmamba::cross_entropy {

#define DIFFMAMBA_FORWARD(T, Label)                                                                              \
  template void forward(const Inputs<T, Label, cuda>&, const Options&, const Outputs<T, cuda>&, Saved<T, cuda>*, \
                        Workspace<cuda>&);                                                                       \
  template void forward(const Inputs<T, Label, cuda>&, const Options&, const View<accumulate_t<T>, 1, cuda>&,    \
                        GradientMode, Workspace<cuda>&);
#define DIFFMAMBA_BACKWARD(T, Label)                                                                                 \
  template void backward(const Inputs<T, Label, cuda>&, const Saved<T, cuda>&,                                       \
                         const View<const accumulate_t<T>, 1, cuda>&, const View<T, 2, cuda>&);                      \
  template void forward_backward(const Inputs<T, Label, cuda>&, const Options&, const Outputs<T, cuda>&,             \
                                 const View<T, 2, cuda>&, Workspace<cuda>&, double);                                 \
  template void forward_backward(const Inputs<T, Label, cuda>&, const Options&, const View<T, 2, cuda>&,             \
                                 const View<const accumulate_t<T>, 1, cuda>&, const View<accumulate_t<T>, 1, cuda>&, \
                                 GradientMode, Workspace<cuda>&);
#define DIFFMAMBA_LABELS(Macro, T) Macro(T, std::int32_t) Macro(T, std::int64_t)
DIFFMAMBA_LABELS(DIFFMAMBA_FORWARD, float)
DIFFMAMBA_LABELS(DIFFMAMBA_FORWARD, double)
DIFFMAMBA_LABELS(DIFFMAMBA_FORWARD, bfloat16)
DIFFMAMBA_LABELS(DIFFMAMBA_FORWARD, half)
DIFFMAMBA_LABELS(DIFFMAMBA_BACKWARD, float)
DIFFMAMBA_LABELS(DIFFMAMBA_BACKWARD, double)
DIFFMAMBA_LABELS(DIFFMAMBA_BACKWARD, bfloat16)
#define DIFFMAMBA_KEPT(S, Label) \
  template void kept_scale(const View<const Label, 1, cuda>&, const Options&, double, const View<S, 1, cuda>&);
DIFFMAMBA_LABELS(DIFFMAMBA_KEPT, float)
DIFFMAMBA_LABELS(DIFFMAMBA_KEPT, double)

}  // namespace diffmamba::cross_entropy
