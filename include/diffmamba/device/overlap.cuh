// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::uintptr_t

#include "diffmamba/device/cuda.cuh"

/// Kernels that begin while the one before them in the stream still runs (programmatic dependent launch, sm_90): what
/// does not depend on it, above all the way of a weight into the L2 cache, then costs no time of its own. The rules:
///
/// - a kernel launched by `launch_overlapped` writes nothing and reads nothing that other kernels write before its
///   `wait_for_earlier_kernels()`, which every block calls (every thread of it, or one of them before a barrier);
///   prefetching into L2 is no reading: L2 is where all writes arrive;
/// - any kernel may call `let_next_kernel_begin()`, best at its start; a kernel launched in the ordinary way behind it
///   still waits for its end.
namespace diffmamba::cuda_runtime {

/// Returns when all that was launched before this kernel has ended and its writes can be seen.
__device__ inline void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Once every block of this kernel has said so, the next one may take the room that is left on the GPU.
__device__ inline void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Brings [address, address + bytes), both multiples of 16, towards L2. One thread asks for all of it.
__device__ inline void prefetch_to_l2(const void* address, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "r"(bytes)
               : "memory");
#endif
}
/// The same for the line of one address, of any alignment; any thread may ask.
__device__ inline void touch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
}

/// kernel<<<grid, block, shared bytes, stream>>>(arguments...), overlapping with the kernel before it where the GPU
/// can.
template <class... Parameters, class... Arguments>
void launch_overlapped(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                       cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

}  // namespace diffmamba::cuda_runtime
