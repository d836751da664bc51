// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/swiglu/swiglu_forward.cuh"  // detail::for_packs

namespace diffmamba::swiglu {
namespace detail {

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <int N, class T>
__global__ void __launch_bounds__(256)
    swiglu_backward_kernel(const __grid_constant__ Inputs<T, cuda> in,
                           const __grid_constant__ View<const T, 3, cuda> dout,
                           const __grid_constant__ GradientViews<T, cuda> gradients) {
  using A = accumulate_t<T>;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  for_packs<N>(in.x.extents(), [&](const RowPosition& at, Index c) {
    A x[N], z[N], d[N];
    load_unit(at.of(in.x) + c, x);
    load_unit(at.of(in.z) + c, z);
    load_unit(at.of(dout) + c, d);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A s = sigmoid_for<T>(z[i]);
      x[i] *= d[i] * s * (A(1) + z[i] * (A(1) - s));  // dz
      d[i] *= z[i] * s;                               // dx
    }
    if (gradients.dx) store_unit(at.of(gradients.dx) + c, d);
    if (gradients.dz) store_unit(at.of(gradients.dz) + c, x);
  });
}

}  // namespace detail

// Launchers
// -----------------------------------------------------------------------------------------------------------

template <class T>
void backward(const Inputs<T, cuda>& in, const std::type_identity_t<View<const T, 3, cuda>>& dout,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients) {
  check(in, dout, gradients);
  if (in.x.size() == 0) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  detail::with_pack<T>(
      [&](auto pack) {
        constexpr int N = decltype(pack)::value;
        detail::launch_rows("swiglu_backward_kernel", detail::swiglu_backward_kernel<N, T>,
                            cuda_runtime::blocks_for(in.x.size() / N, 256), 256, 0, in, dout, gradients);
      },
      in.x, in.z, dout, gradients.dx, gradients.dz);
}

}  // namespace diffmamba::swiglu
