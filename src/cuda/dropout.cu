// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Dropout on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/dropout/dropout_forward.cuh"

namespace diffmamba::dropout {

template void drop_on_gpu(const View<const float, 4, cuda>&, const Options&, const View<float, 4, cuda>&);
template void drop_on_gpu(const View<const double, 4, cuda>&, const Options&, const View<double, 4, cuda>&);
template void drop_on_gpu(const View<const bfloat16, 4, cuda>&, const Options&, const View<bfloat16, 4, cuda>&);
template void drop_on_gpu(const View<const half, 4, cuda>&, const Options&, const View<half, 4, cuda>&);

}  // namespace diffmamba::dropout
