// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <sstream>  // std::ostringstream

#include "diffmamba/core/error.hpp"
#include "diffmamba/device/cuda.hpp"

namespace diffmamba::cuda_runtime {

/// Throws Error naming the call: check(cudaMemcpyAsync(...), "cudaMemcpyAsync"). Clears the error, so that the next
/// call is not blamed for it (a sticky one, after a fault in a kernel, stays: the process's GPU context is lost).
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) [[likely]]
    return;
  (void)cudaGetLastError();
  fail("cuda: ", call, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

/// After a launch: what the launch itself did wrong.
inline void check_launch(const char* kernel) {
  check(cudaGetLastError(), kernel);
}

/// Makes a GPU the current one of the thread, and what was before it current again at the end.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    device_ = device;
  }
  ~DeviceScope() {
    if (device_ != before_) (void)cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0, device_ = 0;
};

template <class>
int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

namespace detail {
/// Why there is no such GPU, in one sentence.
inline void require_device(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    fail("cuda: no GPU can be used: ", cudaGetErrorString(status));
  }
  require(0 <= device && device < count, "cuda: GPU ", device, " was asked for, there are ", count);
}
}  // namespace detail

template <class>
std::string device_name(int device) {
  detail::require_device(device);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  std::ostringstream name;
  name.precision(3);
  name << properties.name << " (compute capability " << properties.major << '.' << properties.minor << ", "
       << properties.multiProcessorCount << " multiprocessors, "
       << static_cast<double>(properties.totalGlobalMem) / (1 << 30) << " GiB)";
  return name.str();
}

template <class>
MemoryInfo memory_info(int device) {
  detail::require_device(device);
  const DeviceScope scope(device);
  MemoryInfo info;
  check(cudaMemGetInfo(&info.free, &info.total), "cudaMemGetInfo");
  return info;
}

template <class Void>
OwnedStream<Void>::OwnedStream(int device) {
  detail::require_device(device);
  const DeviceScope scope(device);
  stream_.device = device;
  check(cudaStreamCreateWithFlags(&stream_.handle, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}
template <class Void>
OwnedStream<Void>::~OwnedStream() {
  (void)cudaStreamSynchronize(stream_.handle);
  (void)cudaStreamDestroy(stream_.handle);
}

template <class>
void synchronize(Stream stream) {
  const DeviceScope scope(stream.device);
  check(cudaStreamSynchronize(stream.handle), "cudaStreamSynchronize");
}

template <class>
void* allocate(std::size_t bytes, Stream place) {
  detail::require_device(place.device);
  const DeviceScope scope(place.device);
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    std::size_t free = 0, total = 0;
    (void)cudaMemGetInfo(&free, &total);
    fail("cuda: cudaMalloc of ", bytes, " bytes on GPU ", place.device, " with ", free, " of ", total,
         " bytes free: ", cudaGetErrorString(status));
  }
  return block;
}

template <class>
void release(void* block, std::size_t, Stream place) noexcept {
  int before = 0;
  (void)cudaGetDevice(&before);
  (void)cudaSetDevice(place.device);
  (void)cudaFree(block);
  (void)cudaSetDevice(before);
}

template <class>
void copy_bytes(const void* from, void* to, std::size_t bytes) {
  if (bytes == 0) return;
  const Stream stream = current_stream();
  const DeviceScope scope(stream.device);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.handle), "cudaMemcpyAsync");
  cudaPointerAttributes source, target;
  check(cudaPointerGetAttributes(&source, from), "cudaPointerGetAttributes");
  check(cudaPointerGetAttributes(&target, to), "cudaPointerGetAttributes");
  if (source.type != cudaMemoryTypeDevice || target.type != cudaMemoryTypeDevice) synchronize<>(stream);
}

/// Blocks of a one-dimensional launch that walks over `count` items with a grid-size stride.
inline unsigned blocks_for(Index count, int threads) {
  const Index blocks = (count + threads - 1) / threads;
  return static_cast<unsigned>(blocks < (Index{1} << 16) ? blocks : Index{1} << 16);
}

// CUDA kernels

template <class T>
__global__ void fill_kernel(T* data, Index count, T value) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += Index{gridDim.x} * blockDim.x)
    data[i] = value;
}

// Launchers

template <class T>
void fill(T* data, Index count, T value) {
  if (count == 0) return;
  const Stream stream = current_stream();
  const DeviceScope scope(stream.device);
  fill_kernel<<<blocks_for(count, 256), 256, 0, stream.handle>>>(data, count, value);
  check_launch("fill_kernel");
}

}  // namespace diffmamba::cuda_runtime
