// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>  // operator<=>
#include <cstddef>  // std::size_t
#include <map>      // std::map, std::multimap
#include <mutex>    // std::mutex

#include "diffmamba/core/config.hpp"

namespace diffmamba {

/// Blocks of memory, kept for reuse when they are given back, so that a loop which takes the same sizes again and again
/// (a training step) asks the system only the first time and never pays for fresh pages. Thread-safe.
///
/// `Source` is where blocks come from: `Place` says where the caller works (nothing on the CPU; device and stream on a
/// GPU, so that a block is only reused in the order of the stream that used it before), `here()`, `allocate(bytes,
/// place)` and `release(block, bytes, place)`.
template <class Source>
class CachingArena {
 public:
  using Place = typename Source::Place;

  CachingArena() = default;
  CachingArena(const CachingArena&) = delete;
  CachingArena& operator=(const CachingArena&) = delete;
  ~CachingArena() { release(); }

  /// At least one block even for zero bytes: the pointer of an empty tensor is never null.
  void* allocate(std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    const Place place = Source::here();
    {
      const std::lock_guard lock(mutex_);
      // Best fit, wasting at most an eighth.
      auto& blocks = free_[place];
      if (const auto found = blocks.lower_bound(size); found != blocks.end() && found->first <= size + size / 8) {
        void* block = found->second;
        note_use(block, found->first, place);
        blocks.erase(found);
        return block;
      }
    }
    void* block = nullptr;
    try {
      block = Source::allocate(size, place);
    } catch (...) {  // out of memory: what lies unused may be of the wrong sizes
      release();
      block = Source::allocate(size, place);
    }
    const std::lock_guard lock(mutex_);
    note_use(block, size, place);
    ++system_allocations_;
    bytes_reserved_ += size;
    return block;
  }

  void deallocate(void* block) noexcept {
    if (block == nullptr) return;
    const std::lock_guard lock(mutex_);
    const auto found = in_use_.find(block);
    bytes_in_use_ -= found->second.size;
    free_[found->second.place].emplace(found->second.size, block);
    in_use_.erase(found);
  }

  /// Gives every unused block back to the system, but none of a pinned place.
  void release() noexcept {
    const std::lock_guard lock(mutex_);
    for (auto entry = free_.begin(); entry != free_.end();) {
      if (pinned_.contains(entry->first)) {
        ++entry;
        continue;
      }
      for (const auto& [size, block] : entry->second) {
        Source::release(block, size, entry->first);
        bytes_reserved_ -= size;
      }
      entry = free_.erase(entry);
    }
  }

  /// Keeps the blocks of a place, unused ones too, until as many calls of unpin: whoever has noted their addresses (a
  /// recorded graph of launches) goes on using them.
  void pin(const Place& place) {
    const std::lock_guard lock(mutex_);
    ++pinned_[place];
  }
  void unpin(const Place& place) noexcept {
    const std::lock_guard lock(mutex_);
    if (const auto found = pinned_.find(place); found != pinned_.end() && --found->second == 0) pinned_.erase(found);
  }

  std::size_t bytes_in_use() const {
    const std::lock_guard lock(mutex_);
    return bytes_in_use_;
  }
  /// What the arena holds of the system's memory, used or not.
  std::size_t bytes_reserved() const {
    const std::lock_guard lock(mutex_);
    return bytes_reserved_;
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
  struct Use {
    std::size_t size;
    Place place;
  };

  static std::size_t rounded(std::size_t bytes) {
    const std::size_t unit = bytes < 4096 ? Source::alignment : 4096;
    return bytes == 0 ? unit : (bytes + unit - 1) / unit * unit;
  }
  void note_use(void* block, std::size_t size, const Place& place) {
    in_use_.emplace(block, Use{size, place});
    bytes_in_use_ += size;
    peak_ = peak_ < bytes_in_use_ ? bytes_in_use_ : peak_;
  }

  mutable std::mutex mutex_;
  std::map<Place, std::multimap<std::size_t, void*>> free_;
  std::map<void*, Use> in_use_;
  std::map<Place, int> pinned_;
  std::size_t bytes_in_use_ = 0, bytes_reserved_ = 0, peak_ = 0, system_allocations_ = 0;
};

}  // namespace diffmamba
