// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/nn/parameter.hpp"

namespace diffmamba {

// CUDA kernels

namespace detail {

inline constexpr int blocks_of_run = 16;

template <class R>
__global__ void __launch_bounds__(256) zero_runs_kernel(R* array, const ElementRun* runs) {
  const ElementRun run = runs[blockIdx.x / blocks_of_run];
  for (Index i = run.begin + Index{blockIdx.x % blocks_of_run} * 256 + threadIdx.x; i < run.end;
       i += Index{blocks_of_run} * 256)
    array[i] = R{};
}

}  // namespace detail

// Launchers

template <class R>
void zero_runs(const View<R, 1, cuda>& array, const View<const ElementRun, 1, cuda>& runs) {
  if (runs.size() == 0) return;
  require(runs.size() < (Index{1} << 31) / detail::blocks_of_run, "zero_runs: too many runs");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  detail::zero_runs_kernel<R><<<static_cast<unsigned>(runs.size() * detail::blocks_of_run), 256, 0, stream.handle>>>(
      array.data(), runs.data());
  cuda_runtime::check_launch("zero_runs_kernel");
}

}  // namespace diffmamba
