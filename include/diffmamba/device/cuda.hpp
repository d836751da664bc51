// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>  // operator<=>
#include <cstddef>  // std::size_t
#include <string>   // std::string

#include "diffmamba/core/config.hpp"

struct CUstream_st;  // what cudaStream_t points to

/// What the library needs of the CUDA runtime, without any CUDA syntax, so that a .cpp serves both devices. Defined in
/// device/cuda.cuh: a program that uses a GPU either includes diffmamba.cuh, compiled by nvcc, or links
/// diffmamba::cuda_instantiated; one that does neither does not link, and the linker names these functions. (They are
/// templates over nothing, so that header-only use in several files links and explicit instantiation emits them.)
namespace diffmamba::cuda_runtime {

/// Number of GPUs that can be used; 0 without a GPU or a driver, never an error.
template <class = void>
int device_count();
/// "NVIDIA H100 80GB HBM3 (compute capability 9.0, 132 multiprocessors, 79.1 GiB)". Throws Error if there is none.
template <class = void>
std::string device_name(int device = 0);

/// What of a GPU's memory is free, and how much there is.
struct MemoryInfo {
  std::size_t free = 0, total = 0;
};
template <class = void>
MemoryInfo memory_info(int device = 0);

/// Where the launches of a thread go: a GPU and a stream on it. A handle, not the stream itself.
struct Stream {
  int device = 0;
  CUstream_st* handle = nullptr;  // null: the default stream of the device
  auto operator<=>(const Stream&) const = default;
};

/// The stream of the calling thread: what the innermost StreamScope says, else the default stream of GPU 0.
inline Stream& current_stream_slot() {
  thread_local Stream stream;
  return stream;
}
inline Stream current_stream() {
  return current_stream_slot();
}

/// Makes every launch, copy and allocation of the calling thread go to the caller's stream, until the scope ends.
class StreamScope {
 public:
  explicit StreamScope(Stream stream) : before_(current_stream()) { current_stream_slot() = stream; }
  ~StreamScope() { current_stream_slot() = before_; }
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  Stream before_;
};

/// A stream of one's own, waited for and destroyed at the end.
template <class = void>
class OwnedStream {
 public:
  explicit OwnedStream(int device = 0);
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  operator Stream() const { return stream_; }

 private:
  Stream stream_;
};

/// Waits until the stream has done all that was launched on it. Errors of launches show here at the latest.
template <class = void>
void synchronize(Stream stream = current_stream());

/// cudaMalloc on the place's device; throws Error saying how much was asked and how much is free.
template <class = void>
void* allocate(std::size_t bytes, Stream place);
template <class = void>
void release(void* block, std::size_t bytes, Stream place) noexcept;

/// Copies in the order of the current stream, between any two of host and GPU. When host memory takes part the call
/// returns only after its bytes have been read or written.
template <class = void>
void copy_bytes(const void* from, void* to, std::size_t bytes);

template <class T>
void fill(T* data, Index count, T value);

}  // namespace diffmamba::cuda_runtime
