// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>  // std::size_t, std::byte
#include <map>      // std::multimap
#include <mutex>    // std::mutex
#include <new>      // operator new, std::align_val_t

#include "diffmamba/core/config.hpp"
#include "diffmamba/device/device.hpp"

namespace diffmamba {

/// Where memory of a device comes from: blocks aligned to 64 bytes, and kept for reuse when they are given back, so that
/// a loop that takes the same sizes again and again (a training step) allocates only the first time and never pays for
/// fresh pages. Thread-safe. `release` gives the unused blocks back to the system.
template <class Device>
class Arena;

template <>
class Arena<cpu> {
 public:
  static constexpr std::size_t alignment = 64;

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  /// At least one block even for zero bytes: the pointer of an empty tensor is never null.
  void* allocate(std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    {
      const std::lock_guard lock(mutex_);
      // Best fit, wasting at most an eighth.
      if (const auto found = free_.lower_bound(size); found != free_.end() && found->first <= size + size / 8) {
        void* block = found->second;
        in_use_.emplace(block, found->first);
        bytes_in_use_ += found->first;
        peak_ = peak_ < bytes_in_use_ ? bytes_in_use_ : peak_;
        free_.erase(found);
        return block;
      }
    }
    void* block = ::operator new(size, std::align_val_t{alignment});
    const std::lock_guard lock(mutex_);
    in_use_.emplace(block, size);
    bytes_in_use_ += size;
    peak_ = peak_ < bytes_in_use_ ? bytes_in_use_ : peak_;
    ++system_allocations_;
    return block;
  }

  void deallocate(void* block) noexcept {
    if (block == nullptr) return;
    const std::lock_guard lock(mutex_);
    const auto found = in_use_.find(block);
    bytes_in_use_ -= found->second;
    free_.emplace(found->second, block);
    in_use_.erase(found);
  }

  /// Gives every unused block back to the system.
  void release() noexcept {
    const std::lock_guard lock(mutex_);
    for (const auto& [size, block] : free_) ::operator delete(block, std::align_val_t{alignment});
    free_.clear();
  }

  std::size_t bytes_in_use() const {
    const std::lock_guard lock(mutex_);
    return bytes_in_use_;
  }
  /// Largest bytes_in_use since the last reset_peak.
  std::size_t peak_bytes() const {
    const std::lock_guard lock(mutex_);
    return peak_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    peak_ = bytes_in_use_;
  }
  /// How often the system was asked; constant in a steady state.
  std::size_t system_allocations() const {
    const std::lock_guard lock(mutex_);
    return system_allocations_;
  }

 private:
  static std::size_t rounded(std::size_t bytes) {
    const std::size_t unit = bytes < 4096 ? 64 : 4096;
    return bytes == 0 ? unit : (bytes + unit - 1) / unit * unit;
  }

  mutable std::mutex mutex_;
  std::multimap<std::size_t, void*> free_;
  std::map<void*, std::size_t> in_use_;
  std::size_t bytes_in_use_ = 0, peak_ = 0, system_allocations_ = 0;
};

/// The arena that tensors take their memory from. It lives as long as the process, so that a tensor with static storage
/// duration can still be destroyed.
template <class Device = cpu>
Arena<Device>& arena() {
  static Arena<Device>& instance = *new Arena<Device>;
  return instance;
}

}  // namespace diffmamba
