// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/row_kernels.cuh"
#include "diffmamba/ops/swiglu/swiglu.hpp"

namespace diffmamba::swiglu {
namespace detail {

using namespace diffmamba::detail;

/// A thread's pack: work(row position, first channel).
template <int N, class Work>
__device__ inline void for_packs(const Extents<3>& shape, Work&& work) {
  const Index packs = shape[2] / N, total = shape[0] * shape[1] * packs;
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += Index{gridDim.x} * blockDim.x) {
    const RowPosition split(i, packs);
    work(RowPosition(split.batch, shape[1]), split.token * N);
  }
}

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <int N, class T>
__global__ void __launch_bounds__(256)
    swiglu_forward_kernel(const __grid_constant__ Inputs<T, cuda> in, const __grid_constant__ View<T, 3, cuda> out) {
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  for_packs<N>(in.x.extents(), [&](const RowPosition& at, Index c) {
    accumulate_t<T> x[N], z[N];
    load_unit(at.of(in.x) + c, x);
    load_unit(at.of(in.z) + c, z);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= z[i] * sigmoid_for<T>(z[i]);
    store_unit(at.of(out) + c, x);
  });
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// work(N) with the number of elements of a pack that all views take.
template <class T, class Work, class... Views>
void with_pack(Work&& work, const Views&... views) {
  constexpr int N = pack_size<T>;
  if ((takes_packs<N>(views) && ...))
    work(std::integral_constant<int, N>{});
  else
    work(std::integral_constant<int, 1>{});
}

}  // namespace detail

template <class T>
void forward(const Inputs<T, cuda>& in, const std::type_identity_t<View<T, 3, cuda>>& out) {
  check(in, out);
  if (in.x.size() == 0) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  detail::with_pack<T>(
      [&](auto pack) {
        constexpr int N = decltype(pack)::value;
        detail::launch_rows("swiglu_forward_kernel", detail::swiglu_forward_kernel<N, T>,
                            cuda_runtime::blocks_for(in.x.size() / N, 256), 256, 0, in, out);
      },
      in.x, in.z, out);
}

}  // namespace diffmamba::swiglu
