// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>  // std::size_t, std::byte

#include "diffmamba/core/error.hpp"
#include "diffmamba/device/memory.hpp"

namespace diffmamba {

/// Temporary memory of an operator. An operator's `workspace_bytes(...)` says how much a call takes; the forms that never
/// allocate cut it from here. Everything taken is free again when the call returns. Not thread-safe.
template <class DeviceType = cpu>
class Workspace {
 public:
  /// Memory of the caller, aligned to 64 bytes.
  Workspace(void* memory, std::size_t bytes) : memory_(static_cast<std::byte*>(memory)), bytes_(bytes) {}
  /// Memory from the device's arena, given back by the destructor.
  explicit Workspace(std::size_t bytes)
      : memory_(static_cast<std::byte*>(arena<DeviceType>().allocate(bytes))), bytes_(bytes), owned_(true) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (owned_) arena<DeviceType>().deallocate(memory_);
  }

  /// Uninitialised memory for `count` elements, aligned to 64 bytes. Throws Error when the workspace is too small.
  template <class T>
  T* take(Index count) {
    const std::size_t size = bytes_of<T>(count);
    require(used_ + size <= bytes_, "workspace: ", used_ + size, " bytes are needed, ", bytes_, " were given");
    T* result = reinterpret_cast<T*>(memory_ + used_);
    used_ += size;
    return result;
  }
  /// What take<T>(count) uses up.
  template <class T>
  static constexpr std::size_t bytes_of(Index count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }

  /// For calls one after another: `const auto mark = ws.mark(); ...; ws.reset(mark);`
  std::size_t mark() const { return used_; }
  void reset(std::size_t mark = 0) { used_ = mark; }

 private:
  std::byte* memory_;
  std::size_t bytes_, used_ = 0;
  bool owned_ = false;
};

}  // namespace diffmamba
