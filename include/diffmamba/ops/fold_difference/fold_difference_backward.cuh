// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/fold_difference/fold_difference_forward.cuh"  // detail::factor_of

namespace diffmamba::fold_difference {
namespace detail {

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// A block for a row of both weights. products: the row's part of dL/dlambda, for a lambda that all rows share; null
/// with one for each row.
template <int N, class T>
__global__ void __launch_bounds__(threads)
    fold_backward_kernel(const __grid_constant__ Inputs<T, cuda> in, Roles roles, double scale,
                         const __grid_constant__ OutputGradients<T, cuda> upstream,
                         const __grid_constant__ GradientViews<T, cuda> gradients, accumulate_t<T>* products,
                         bool add) {
  using A = accumulate_t<T>;
  const Index width = in.weight.extent(2);
  RowSums<RowShape<1, threads, 1, true>, A, 1> over_row;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  for (Index row = blockIdx.x; row < in.weight.extent(1); row += gridDim.x) {
    const A factors[2] = {factor_of<A>(0, in.lambda, scale, row), factor_of<A>(1, in.lambda, scale, row)};
    A product[1] = {0};
    const auto offset = [&](int path) {
      return path * gradients.dweight.stride(0) + row * gradients.dweight.stride(1);
    };
    for (Index i = Index{threadIdx.x} * N; i < width; i += threads * N) {
      A df[2][N], sum[2][N], weight[N];  // all loads are begun before the first value is used
#pragma unroll
      for (int path = 0; path < 2; ++path) {
        load_unit(upstream.dweight.pointer(row) + folded_column(roles.sizes, path, i), df[path]);
        load_unit_if(gradients.dweight && add, gradients.dweight.data() + offset(path) + i, sum[path]);
      }
      load_unit_if(bool(gradients.dlambda), in.weight.pointer(1, row) + i, weight);
#pragma unroll
      for (int k = 0; k < N; ++k) product[0] += weight[k] * df[1][k];
      if (!gradients.dweight) continue;
#pragma unroll
      for (int path = 0; path < 2; ++path) {
#pragma unroll
        for (int k = 0; k < N; ++k) sum[path][k] += df[path][k] * factors[path];
        store_unit(gradients.dweight.data() + offset(path) + i, sum[path]);
      }
    }
    if (gradients.dlambda) over_row(product);
    if (threadIdx.x > 0) continue;
    const auto put = [add](A& to, A value) { to = add ? to + value : value; };
    if (in.bias) {
      const A df = upstream.dbias(row);
      product[0] += in.bias(1, row) * df;
      for (int path = 0; gradients.dbias && path < 2; ++path) put(gradients.dbias(path, row), factors[path] * df);
    }
    if (!gradients.dlambda) continue;
    const A dlambda = -static_cast<A>(scale) * product[0];
    if (products != nullptr)
      products[row] = dlambda;
    else
      put(gradients.dlambda(row), dlambda);
  }
}

}  // namespace detail

// Launchers
// -----------------------------------------------------------------------------------------------------------

template <class T>
void backward(const Inputs<T, cuda>& in, const Options& options,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  using A = accumulate_t<T>;
  check(in, options, upstream, gradients);
  const Index rows = in.weight.extent(1);
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const detail::Roles roles(options, in.weight.extent(2));
  const auto mark = workspace.mark();
  const bool one_lambda = gradients.dlambda && in.lambda.extent(0) != rows;
  A* const products = one_lambda ? workspace.take<A>(rows) : nullptr;
  const auto launch = [&](auto pack) {
    constexpr int N = decltype(pack)::value;
    if (rows == 0) return;
    detail::launch_rows("fold_backward_kernel", detail::fold_backward_kernel<N, T>, cuda_runtime::blocks_for(rows, 1),
                        detail::threads, 0, in, roles, options.scale, upstream, gradients, products,
                        mode == GradientMode::add);
  };
  constexpr int N = detail::pack_size<A>;
  if (detail::roles_take_packs<N>(roles) && detail::takes_packs<N>(in.weight) &&
      detail::takes_packs<N>(upstream.dweight) && detail::takes_packs<N>(gradients.dweight))
    launch(std::integral_constant<int, N>{});
  else
    launch(std::integral_constant<int, 1>{});
  if (one_lambda)
    detail::launch_line_sums(detail::LineSums<A, 1>{{products}, {gradients.dlambda.data()}}, rows, 1, mode);
  workspace.reset(mark);
}

}  // namespace diffmamba::fold_difference
