// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// What modules need between the operators, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/nn/parameter.cuh"
#include "diffmamba/nn/scan_parts.cuh"

namespace diffmamba {

#define DIFFMAMBA_NN_RANKS(R, Rank)                                                                              \
  template Tensor<R, Rank, cuda> negative_exp(const View<const R, Rank, cuda>&);                                 \
  template Tensor<R, Rank, cuda> negative_exp(const View<R, Rank, cuda>&);                                       \
  template void add_product(const View<R, Rank, cuda>&, const View<R, Rank, cuda>&, const View<R, Rank, cuda>&); \
  template void add_product(const View<R, Rank, cuda>&, const View<const R, Rank, cuda>&, const View<R, Rank, cuda>&);
#define DIFFMAMBA_NN_PARAMETERS(R)                                                                 \
  template void zero_runs(const View<R, 1, cuda>&, const View<const ElementRun, 1, cuda>&);        \
  DIFFMAMBA_NN_RANKS(R, 1)                                                                         \
  DIFFMAMBA_NN_RANKS(R, 2)                                                                         \
  template void add_over_batch<R, R, 3>(const View<R, 4, cuda>&, const View<R, 3, cuda>&);         \
  template void add_to(const View<const R, 1, cuda>&, const View<R, 1, cuda>&);                    \
  template void add_to(const View<const R, 2, cuda>&, const View<R, 2, cuda>&);                    \
  template void add_to(const View<const R, 3, cuda>&, const View<R, 3, cuda>&);                    \
  template void multiply_by(const View<R, 1, cuda>&, const View<const R, 1, cuda>&);               \
  template void fold_halves_backward(const View<const R, 2, cuda>&, const View<const R, 1, cuda>&, \
                                     const View<const R, 2, cuda>&, const View<R, 2, cuda>&, const View<R, 1, cuda>&);
DIFFMAMBA_NN_PARAMETERS(float)
DIFFMAMBA_NN_PARAMETERS(double)

template void add_to(const View<const bfloat16, 3, cuda>&, const View<bfloat16, 3, cuda>&);
template void add_to(const View<const half, 3, cuda>&, const View<half, 3, cuda>&);
template void fold_halves_backward(const View<const bfloat16, 2, cuda>&, const View<const float, 1, cuda>&,
                                   const View<const float, 2, cuda>&, const View<float, 2, cuda>&,
                                   const View<float, 1, cuda>&);
template void fold_halves_backward(const View<const half, 2, cuda>&, const View<const float, 1, cuda>&,
                                   const View<const float, 2, cuda>&, const View<float, 2, cuda>&,
                                   const View<float, 1, cuda>&);

#define DIFFMAMBA_NN_ACTIVATIONS(T)                                                                     \
  template void subtract_paths(const View<const T, 3, cuda>&, const View<T, 3, cuda>&);                 \
  template void subtract_paths_backward(const View<const T, 3, cuda>&, const View<T, 3, cuda>&);        \
  template void add_paths(const View<const T, 3, cuda>&, const View<T, 3, cuda>&);                      \
  template void fold_halves(const View<const T, 2, cuda>&, const View<const accumulate_t<T>, 1, cuda>&, \
                            const View<T, 2, cuda>&);                                                   \
  template void remember_inputs<T>(const View<const T, 3, cuda>&, const View<accumulate_t<T>, 3, cuda>&);
DIFFMAMBA_NN_ACTIVATIONS(float)
DIFFMAMBA_NN_ACTIVATIONS(double)
DIFFMAMBA_NN_ACTIVATIONS(bfloat16)
DIFFMAMBA_NN_ACTIVATIONS(half)

}  // namespace diffmamba
