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
  for (Index row = blockIdx.x; row < in.weight.extent(1); row += gridDim.x) {
    const A factors[2] = {factor_of<A>(0, in.lambda, scale, row), factor_of<A>(1, in.lambda, scale, row)};
    A product[1] = {0};
    for (Index j = Index{threadIdx.x} * N; j < 2 * width; j += threads * N) {
      const int path = j < width ? 0 : 1;
      const Index i = j - path * width;
      A df[N], other[N];
      load_unit(upstream.dweight.pointer(row) + folded_column(roles.sizes, path, i), df);
      if (path == 1 && gradients.dlambda) {
        load_unit(in.weight.pointer(1, row) + i, other);
#pragma unroll
        for (int k = 0; k < N; ++k) product[0] += other[k] * df[k];
      }
      if (!gradients.dweight) continue;
#pragma unroll
      for (int k = 0; k < N; ++k) df[k] *= factors[path];
      A* const dw = gradients.dweight.pointer(path, row) + i;
      if (add) {
        load_unit(dw, other);
#pragma unroll
        for (int k = 0; k < N; ++k) df[k] += other[k];
      }
      store_unit(dw, df);
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
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const detail::Roles roles(options, in.weight.extent(2));
  const auto mark = workspace.mark();
  const bool one_lambda = gradients.dlambda && in.lambda.extent(0) != rows;
  A* const products = one_lambda ? workspace.take<A>(rows) : nullptr;
  const auto launch = [&](auto pack) {
    constexpr int N = decltype(pack)::value;
    if (rows == 0) return;
    detail::fold_backward_kernel<N, T><<<cuda_runtime::blocks_for(rows, 1), detail::threads, 0, stream.handle>>>(
        in, roles, options.scale, upstream, gradients, products, mode == GradientMode::add);
    cuda_runtime::check_launch("fold_backward_kernel");
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
