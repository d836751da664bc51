// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/ssd/ssd_forward.cuh"

namespace diffmamba::ssd {

template void forward(const Inputs<float, cuda>&, const Options&, const OutputViews<float, cuda>&);
template void forward(const Inputs<double, cuda>&, const Options&, const OutputViews<double, cuda>&);
template void forward(const Inputs<bfloat16, cuda>&, const Options&, const OutputViews<bfloat16, cuda>&);
template void forward(const Inputs<half, cuda>&, const Options&, const OutputViews<half, cuda>&);

}  // namespace diffmamba::ssd
