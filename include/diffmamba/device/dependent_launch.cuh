// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>  // std::forward

#include "diffmamba/device/cuda.cuh"

/// Programmatic dependent launch: a kernel comes onto the multiprocessors while the one before it on the stream still
/// runs, and waits there. What a small kernel costs beside its work, a microsecond or two between one and the next,
/// goes away; so does the time of loads that do not depend on the kernel before (a weight). For kernels of one wave of
/// blocks: those of more would keep the one before from its multiprocessors.
///
/// The kernel calls begin_dependents() first, then what it may do early, and await_previous() before it reads or writes
/// anything that another kernel reads or writes. All of its threads must, on every path. Launched without, both do
/// nothing.
namespace diffmamba::cuda_runtime {

/// From now on the next kernel may come.
__device__ inline void begin_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Everything that was launched before is done, and its writes are seen.
__device__ inline void await_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// kernel<<<blocks, threads, shared, stream>>>(arguments...), allowed to come early. Only of kernels that call
/// await_previous().
template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, std::size_t shared, Stream stream,
                      Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = stream.handle;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...),
        "cudaLaunchKernelEx");
}

}  // namespace diffmamba::cuda_runtime
