// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Sampling, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/generate/device_sampler.cuh"

namespace diffmamba {

template void device_sample(const SampleArrays<float>&, const SamplerOptions&, Workspace<cuda>&);
template void device_sample(const SampleArrays<double>&, const SamplerOptions&, Workspace<cuda>&);

}  // namespace diffmamba
