// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/device/memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/device/workspace.hpp"

using namespace diffmamba;

namespace {

/// Places of which a test says in which it is.
struct Numbered {
  static constexpr std::size_t alignment = 64;
  using Place = int;
  static Place here() { return place(); }
  static int& place() {
    static int value = 0;
    return value;
  }
  static void* allocate(std::size_t bytes, Place) { return ::operator new(bytes); }
  static void release(void* block, std::size_t, Place) noexcept { ::operator delete(block); }
};

}  // namespace

TEST_CASE("blocks are aligned, kept, and used again") {
  Arena<cpu> own;
  void* a = own.allocate(1000);
  void* b = own.allocate(0);
  CHECK(reinterpret_cast<std::uintptr_t>(a) % 64 == 0);
  CHECK(b != nullptr);
  CHECK(own.bytes_in_use() >= 1000);
  const std::size_t asked = own.system_allocations();
  own.deallocate(a);
  void* c = own.allocate(1000);
  CHECK(c == a);
  CHECK(own.system_allocations() == asked);
  void* large = own.allocate(1 << 20);
  CHECK(own.peak_bytes() >= (1 << 20));
  own.deallocate(large);
  own.reset_peak();
  CHECK(own.peak_bytes() == own.bytes_in_use());
  own.deallocate(b);
  own.deallocate(c);
  own.deallocate(nullptr);
  CHECK(own.bytes_in_use() == 0);
  own.release();
  void* again = own.allocate(1000);
  CHECK(own.system_allocations() > asked);
  own.deallocate(again);
}

TEST_CASE("a steady loop asks the system once, from any number of threads") {
  Arena<cpu> own;
  const Threads two(2);
  for (int round = 0; round < 3; ++round)
    parallel_for(200, [&](Index i) {
      const std::size_t bytes = static_cast<std::size_t>(64 * (i % 7 + 1));
      void* memory = own.allocate(bytes);
      std::memset(memory, static_cast<int>(i), bytes);
      own.deallocate(memory);
    });
  CHECK(own.bytes_in_use() == 0);
  CHECK(own.system_allocations() <= 2 * 7);
}

TEST_CASE("a workspace is cut from the front, checked, and reset") {
  alignas(64) unsigned char memory[1024];
  Workspace<> ws(memory, sizeof memory);
  float* a = ws.take<float>(10);
  CHECK(static_cast<void*>(a) == memory);
  const auto mark = ws.mark();
  double* b = ws.take<double>(3);
  CHECK(reinterpret_cast<unsigned char*>(b) == memory + 64);
  ws.reset(mark);
  CHECK(ws.take<double>(3) == b);
  CHECK_THROWS_WITH_AS((void)ws.take<float>(1000), "workspace: 4160 bytes are needed, 1024 were given", Error);
  static_assert(Workspace<>::bytes_of<float>(17) == 128);
  Workspace<> owned(4096);
  CHECK(reinterpret_cast<std::uintptr_t>(owned.take<char>(4096)) % 64 == 0);
}

TEST_CASE("arena: blocks of a pinned place are kept when the rest is given back") {
  CachingArena<Numbered> blocks;
  blocks.deallocate(blocks.allocate(1000));
  Numbered::place() = 1;
  blocks.deallocate(blocks.allocate(2000));
  const std::size_t both = blocks.bytes_reserved();
  blocks.pin(1);
  blocks.pin(1);
  blocks.release();
  CHECK(blocks.bytes_reserved() < both);
  CHECK(blocks.bytes_reserved() >= 2000);
  blocks.unpin(1);
  blocks.release();
  CHECK(blocks.bytes_reserved() >= 2000);
  blocks.unpin(1);
  blocks.release();
  CHECK(blocks.bytes_reserved() == 0);
  CHECK(blocks.bytes_in_use() == 0);
}
