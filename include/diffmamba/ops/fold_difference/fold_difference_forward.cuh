// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/fold_difference/fold_difference.hpp"
#include "diffmamba/ops/row_kernels.cuh"

namespace diffmamba::fold_difference {
namespace detail {

using namespace diffmamba::detail;

inline constexpr int threads = 256;

/// What a row of W1 or W2 is multiplied with.
template <class A>
__device__ inline A factor_of(int path, const View<const A, 1, cuda>& lambda, double scale, Index row) {
  const A s = static_cast<A>(scale);
  return path == 0 ? s : -s * lambda(lambda.extent(0) == 1 ? 0 : row);
}

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// A block for a row of both weights.
template <int N, class T>
__global__ void __launch_bounds__(threads)
    fold_forward_kernel(const __grid_constant__ Inputs<T, cuda> in, Roles roles, double scale,
                        const __grid_constant__ OutputViews<T, cuda> to) {
  using A = accumulate_t<T>;
  const Index width = in.weight.extent(2);
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  for (Index row = blockIdx.x; row < in.weight.extent(1); row += gridDim.x) {
    const A factors[2] = {factor_of<A>(0, in.lambda, scale, row), factor_of<A>(1, in.lambda, scale, row)};
    for (Index j = Index{threadIdx.x} * N; j < 2 * width; j += threads * N) {
      const int path = j < width ? 0 : 1;
      const Index i = j - path * width;
      A values[N];
      load_unit(in.weight.pointer(path, row) + i, values);
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] *= factors[path];
      store_unit(to.weight.pointer(row) + folded_column(roles.sizes, path, i), values);
    }
    if (in.bias && threadIdx.x == 0) to.bias(row) = factors[0] * in.bias(0, row) + factors[1] * in.bias(1, row);
  }
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Whether no pack of N columns crosses the end of a role.
template <int N>
bool roles_take_packs(const Roles& roles) {
  bool good = true;
  for (const Index size : roles.sizes) good = good && size % N == 0;
  return good;
}

}  // namespace detail

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options,
             const std::type_identity_t<OutputViews<T, cuda>>& outputs) {
  check(in, options, outputs);
  const Index rows = in.weight.extent(1);
  if (rows == 0) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const detail::Roles roles(options, in.weight.extent(2));
  const auto launch = [&](auto pack) {
    constexpr int N = decltype(pack)::value;
    detail::launch_rows("fold_forward_kernel", detail::fold_forward_kernel<N, T>, cuda_runtime::blocks_for(rows, 1),
                        detail::threads, 0, in, roles, options.scale, outputs);
  };
  constexpr int N = detail::pack_size<T>;
  if (detail::roles_take_packs<N>(roles) && detail::takes_packs<N>(in.weight) && detail::takes_packs<N>(outputs.weight))
    launch(std::integral_constant<int, N>{});
  else
    launch(std::integral_constant<int, 1>{});
}

}  // namespace diffmamba::fold_difference
