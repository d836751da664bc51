// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::is_trivially_copyable_v
#include <utility>      // std::exchange

#include "diffmamba/device/cuda.hpp"

namespace diffmamba::cuda_runtime {

/// Host memory that a GPU reads and writes by itself, so that copies run beside the host's work. Defined in
/// device/pinned.cuh.
template <class = void>
void* allocate_pinned(std::size_t bytes);
template <class = void>
void release_pinned(void* memory) noexcept;

/// Copies in the order of the stream and returns at once; host memory must be pinned and stay as it is until the copy
/// is done.
template <class = void>
void copy_bytes_async(const void* from, void* to, std::size_t bytes, Stream stream = current_stream());

/// An array of pinned host memory, zero at first.
template <class T>
class PinnedBuffer {
  static_assert(std::is_trivially_copyable_v<T>, "PinnedBuffer holds plain elements");

 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(Index size)
      : data_(static_cast<T*>(allocate_pinned(static_cast<std::size_t>(size) * sizeof(T)))), size_(size) {
    for (Index i = 0; i < size; ++i) data_[i] = T{};
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedBuffer() {
    if (data_ != nullptr) release_pinned(data_);
  }

  Index size() const { return size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](Index i) { return data_[i]; }
  const T& operator[](Index i) const { return data_[i]; }

  /// Copies the first `count` elements to the GPU, or from it, in the order of the stream.
  void upload(T* device, Index count, Stream stream = current_stream()) const {
    copy_bytes_async(data_, device, static_cast<std::size_t>(count) * sizeof(T), stream);
  }
  void download(const T* device, Index count, Stream stream = current_stream()) {
    copy_bytes_async(device, data_, static_cast<std::size_t>(count) * sizeof(T), stream);
  }

 private:
  T* data_ = nullptr;
  Index size_ = 0;
};

}  // namespace diffmamba::cuda_runtime
