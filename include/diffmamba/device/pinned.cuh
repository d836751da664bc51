// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/pinned.hpp"

namespace diffmamba::cuda_runtime {

template <class>
void* allocate_pinned(std::size_t bytes) {
  detail::require_device(0);
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes == 0 ? 1 : bytes), "cudaMallocHost");
  return memory;
}
template <class>
void release_pinned(void* memory) noexcept {
  (void)cudaFreeHost(memory);
}
template <class>
void copy_bytes_async(const void* from, void* to, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  const DeviceScope scope(stream.device);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.handle), "cudaMemcpyAsync");
}

}  // namespace diffmamba::cuda_runtime
