// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD's decoding on the GPU, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/ops/ssd/ssd_step.cuh"

namespace diffmamba::ssd {

template void step(const StepInputs<float, cuda>&, const View<float, 4, cuda>&, const Options&,
                   const View<float, 4, cuda>&);
template void step(const StepInputs<double, cuda>&, const View<double, 4, cuda>&, const Options&,
                   const View<double, 4, cuda>&);
template void step(const StepInputs<bfloat16, cuda>&, const View<float, 4, cuda>&, const Options&,
                   const View<bfloat16, 4, cuda>&);
template void step(const StepInputs<half, cuda>&, const View<float, 4, cuda>&, const Options&,
                   const View<half, 4, cuda>&);
// States of 16 bits.
template void step(const StepInputs<bfloat16, cuda>&, const View<bfloat16, 4, cuda>&, const Options&,
                   const View<bfloat16, 4, cuda>&);

}  // namespace diffmamba::ssd
