// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The update of a training step, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/train/device_update.cuh"

namespace diffmamba {

template void device_norm(const View<const float, 1, cuda>&, const View<double, 1, cuda>&, Workspace<cuda>&);
template void device_norm(const View<const double, 1, cuda>&, const View<double, 1, cuda>&, Workspace<cuda>&);
template void device_update(const UpdateArrays<float, float>&, const AdamWOptions&, MeasureNorm, Workspace<cuda>&);
template void device_update(const UpdateArrays<float, bfloat16>&, const AdamWOptions&, MeasureNorm, Workspace<cuda>&);
template void device_update(const UpdateArrays<double, double>&, const AdamWOptions&, MeasureNorm, Workspace<cuda>&);

}  // namespace diffmamba
