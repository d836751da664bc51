// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Decoding's product with the norm before it and the convolution behind, compiled once for
// diffmamba::cuda_instantiated.
#include "diffmamba/ops/normed_linear/normed_linear_forward.cuh"

namespace diffmamba::normed_linear {

template void forward(const Inputs<bfloat16, cuda>&, const View<bfloat16, 2, cuda>&);

}  // namespace diffmamba::normed_linear
