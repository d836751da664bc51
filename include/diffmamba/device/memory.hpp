// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::fill_n
#include <cstring>      // std::memcpy
#include <new>          // operator new, std::align_val_t
#include <type_traits>  // std::is_same_v

#include "diffmamba/device/caching_arena.hpp"
#include "diffmamba/device/cuda.hpp"
#include "diffmamba/device/device.hpp"

namespace diffmamba {

/// Memory of the host, aligned for the widest vectors and a cache line.
struct HostMemory {
  static constexpr std::size_t alignment = 64;
  struct Place {
    auto operator<=>(const Place&) const = default;
  };
  static Place here() { return {}; }
  static void* allocate(std::size_t bytes, Place) { return ::operator new (bytes, std::align_val_t{alignment}); }
  static void release(void* block, std::size_t, Place) noexcept {
    ::operator delete (block, std::align_val_t{alignment});
  }
};

/// Memory of a GPU, taken and given back in the order of the caller's current stream. A tensor that another stream uses
/// must live until that stream is done with it.
struct CudaMemory {
  static constexpr std::size_t alignment = 256;
  using Place = cuda_runtime::Stream;
  static Place here() { return cuda_runtime::current_stream(); }
  static void* allocate(std::size_t bytes, Place place) { return cuda_runtime::allocate(bytes, place); }
  static void release(void* block, std::size_t bytes, Place place) noexcept {
    cuda_runtime::release(block, bytes, place);
  }
};

template <class DeviceType>
using Arena = CachingArena<std::conditional_t<std::is_same_v<DeviceType, cpu>, HostMemory, CudaMemory>>;

/// The arena that tensors take their memory from. It lives as long as the process, so that a tensor with static storage
/// duration can still be destroyed.
template <class DeviceType = cpu>
Arena<DeviceType>& arena() {
  static Arena<DeviceType>& instance = *new Arena<DeviceType>;
  return instance;
}

/// Raw elements of a device: what tensors are made, copied and filled with.
template <class T>
void fill_elements(cpu, T* data, Index count, T value) {
  std::fill_n(data, count, value);
}
template <class T>
void fill_elements(cuda, T* data, Index count, T value) {
  cuda_runtime::fill(data, count, value);
}
template <class T>
void copy_elements(cpu, const T* from, T* to, Index count) {
  if (count > 0) std::memcpy(static_cast<void*>(to), from, static_cast<std::size_t>(count) * sizeof(T));
}
template <class T>
void copy_elements(cuda, const T* from, T* to, Index count) {
  cuda_runtime::copy_bytes(from, to, static_cast<std::size_t>(count) * sizeof(T));
}

}  // namespace diffmamba
