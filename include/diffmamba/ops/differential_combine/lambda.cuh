// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/differential_combine/lambda.hpp"
#include "diffmamba/ops/row_kernels.cuh"  // RowSums

/// lambda on an NVIDIA GPU: one block, whatever the form.
namespace diffmamba::differential_combine {
namespace detail {

using LambdaBlock = diffmamba::detail::RowShape<1, 256, 1, true>;

/// The sum of lambda_q1, or the inner products of both pairs.
template <class T>
__device__ inline void lambda_sums(Lambda form, const LambdaInputs<T, cuda>& in, T (&sums)[2]) {
  sums[0] = sums[1] = 0;
  const Index size = in.lambda_q1.extent(0);
  for (Index i = threadIdx.x; i < size; i += LambdaBlock::threads) {
    if (form == Lambda::exponential) {
      sums[0] += in.lambda_q1(i) * in.lambda_k1(i);
      sums[1] += in.lambda_q2(i) * in.lambda_k2(i);
    } else {
      sums[0] += in.lambda_q1(i);
    }
  }
  diffmamba::detail::RowSums<LambdaBlock, T, 2> over_block;
  over_block(sums);
}

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(LambdaBlock::threads)
    lambda_forward_kernel(Lambda form, double lambda_init, const __grid_constant__ LambdaInputs<T, cuda> in,
                          const __grid_constant__ View<T, 1, cuda> lambda) {
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  const T init = static_cast<T>(lambda_init);
  if (form == Lambda::sigmoid_scalar || form == Lambda::sigmoid_per_channel) {
    for (Index i = threadIdx.x; i < lambda.extent(0); i += LambdaBlock::threads)
      lambda(i) = sigmoid(in.lambda_q1(i)) + init;
    return;
  }
  T sums[2] = {};
  if (form != Lambda::none) lambda_sums(form, in, sums);
  if (threadIdx.x > 0) return;
  if (form == Lambda::none)
    lambda(0) = 1;
  else if (form == Lambda::exponential)
    lambda(0) = exp(sums[0]) - exp(sums[1]) + init;
  else
    lambda(0) = sigmoid(sums[0]) + init;
}

template <class T>
__global__ void __launch_bounds__(LambdaBlock::threads)
    lambda_backward_kernel(Lambda form, const __grid_constant__ LambdaInputs<T, cuda> in,
                           const __grid_constant__ View<const T, 1, cuda> dlambda,
                           const __grid_constant__ LambdaGradientViews<T, cuda> gradients, bool add) {
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  const auto put = [add](const View<T, 1, cuda>& gradient, Index i, T value) {
    if (gradient) gradient(i) = add ? gradient(i) + value : value;
  };
  T factors[2] = {};
  if (form == Lambda::sigmoid_sum || form == Lambda::exponential) {
    lambda_sums(form, in, factors);
    if (form == Lambda::exponential) {
      factors[0] = exp(factors[0]) * dlambda(0);
      factors[1] = -exp(factors[1]) * dlambda(0);
    } else {
      factors[0] = sigmoid_derivative(factors[0]) * dlambda(0);
    }
  }
  for (Index i = threadIdx.x; i < in.lambda_q1.extent(0); i += LambdaBlock::threads) {
    if (form == Lambda::exponential) {
      put(gradients.dlambda_q1, i, factors[0] * in.lambda_k1(i));
      put(gradients.dlambda_k1, i, factors[0] * in.lambda_q1(i));
      put(gradients.dlambda_q2, i, factors[1] * in.lambda_k2(i));
      put(gradients.dlambda_k2, i, factors[1] * in.lambda_q2(i));
    } else {
      put(gradients.dlambda_q1, i,
          form == Lambda::sigmoid_sum ? factors[0] : sigmoid_derivative(in.lambda_q1(i)) * dlambda(i));
    }
  }
}

}  // namespace detail

// Launchers
// -----------------------------------------------------------------------------------------------------------

template <class T>
void lambda_forward(Lambda form, double lambda_init, const LambdaInputs<T, cuda>& in,
                    const std::type_identity_t<View<T, 1, cuda>>& lambda) {
  check(form, in, lambda);
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  diffmamba::detail::launch_rows("lambda_forward_kernel", detail::lambda_forward_kernel<T>, 1,
                                 detail::LambdaBlock::threads, 0, form, lambda_init, in, lambda);
}

template <class T>
void lambda_backward(Lambda form, const LambdaInputs<T, cuda>& in,
                     const std::type_identity_t<View<const T, 1, cuda>>& dlambda,
                     const LambdaGradientViews<T, cuda>& gradients, GradientMode mode) {
  check(form, in, dlambda, gradients);
  if (form == Lambda::none) return;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  diffmamba::detail::launch_rows("lambda_backward_kernel", detail::lambda_backward_kernel<T>, 1,
                                 detail::LambdaBlock::threads, 0, form, in, dlambda, gradients,
                                 mode == GradientMode::add);
}

}  // namespace diffmamba::differential_combine
