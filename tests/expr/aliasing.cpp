// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>

#include "diffmamba/expr/expr.hpp"
#include "diffmamba/expr/overlap.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::random_tensor;

// Every allocation of this program is counted.
namespace {
std::atomic<long> allocations{0};
void* counted(std::size_t size, std::size_t alignment) {
  ++allocations;
  void* memory = alignment > 16 ? std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment)
                                : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace
void* operator new(std::size_t size) {
  return counted(size, 0);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

TEST_CASE("an assignment allocates nothing") {
  const auto x = random_tensor<float>(Extents{600, 130}, 1), t = random_tensor<float>(Extents{130, 600}, 2);
  const auto b = random_tensor<bfloat16>(Extents{130}, 3);
  const auto row = random_tensor<float>(Extents{130}, 4);
  Tensor<float, 2> y({600, 130});
  Tensor<float, 1> r({600}), c({130});
  Tensor<bfloat16, 2> z({600, 130});
  const Threads two(2);
  y = x + 1;  // OpenMP starts its threads
  const auto count = [&](auto&& work) {
    const long before = allocations;
    const std::size_t system = arena().system_allocations();
    work();
    CHECK(arena().system_allocations() == system);
    return allocations - before;
  };
  CHECK(count([&] { y = silu(x) * row + 0.5f; }) == 0);
  CHECK(count([&] { y = x + t.view().permute<1, 0>() * b; }) == 0);
  CHECK(count([&] { z = x * b + where(x > 0, x, row); }) == 0);
  CHECK(count([&] { r = sqrt(mean(x * x, axis<1>)); }) == 0);
  CHECK(count([&] { c = sum(x, axis<0>); }) == 0);
  CHECK(count([&] { y = x / sqrt(mean(x * x, axis<1>, keepdims) + 1e-5f); }) == 0);
  CHECK(count([&] { y += x; }) == 0);
  CHECK(count([&] { y -= mean(y, axis<0>, keepdims); }) == 0);  // 130 results: on the stack
  CHECK(count([&] { CHECK(sum(x).value() != 0.0f); }) == 0);
}

TEST_CASE("an operand may be the target") {
  const auto x = random_tensor<float>(Extents{333, 45}, 1);
  Tensor<float, 2> y = x + 0;
  y = y * 2 + y;
  for (Index i = 0; i < x.size(); ++i) CHECK(y.data()[i] == doctest::Approx(3 * x.data()[i]));
  Tensor<bfloat16, 1> b({1001}, bfloat16(1.0f));
  b = b + b;
  for (bfloat16 v : b) CHECK(float(v) == 2.0f);
  auto columns = y.slice<1>(3, 40);
  assign(columns, columns * 0);
  CHECK(y(5, 3) == 0.0f);
  CHECK(y(5, 2) != 0.0f);
  auto turned = y.view().permute<1, 0>();
  assign(turned, turned + 1);
  CHECK(y(5, 3) == 1.0f);
}

TEST_CASE("parts of one tensor that share no element") {
  auto y = random_tensor<float>(Extents{50, 64}, 1);
  const auto x = y;
  assign(y.slice<1>(0, 32), y.slice<1>(32, 64) * 2);  // interleaved columns
  CHECK(y(7, 5) == 2 * x(7, 37));
  assign(y.slice<0>(0, 25), y.slice<0>(25, 50) + 1);
  assign(y.select<1>(3), y.select<1>(4));
  CHECK(y(30, 3) == y(30, 4));
}

TEST_CASE("shifted, transposed and broadcast operands of the target are refused") {
  const char* message =
      "assignment: an operand shares memory with the target, but not element by element (it is shifted, transposed or "
      "broadcast); assign to another tensor first";
  auto y = random_tensor<float>(Extents{50, 50}, 1);
  const auto x = y;
  CHECK_THROWS_WITH_AS(assign(y, y.view().permute<1, 0>()), message, Error);
  CHECK_THROWS_WITH_AS(assign(y.slice<0>(1, 50), y.slice<0>(0, 49)), message, Error);
  CHECK_THROWS_WITH_AS(assign(y.slice<1>(1, 50), y.slice<1>(0, 49) + 1), message, Error);
  CHECK_THROWS_WITH_AS(y -= y.select<0>(7), message, Error);
  CHECK_THROWS_WITH_AS((y = where(x > 0, x, 1.0f / y.view().permute<1, 0>())), message, Error);
  CHECK(std::memcmp(y.data(), x.data(), 2500 * 4) == 0);  // and nothing was written
  Tensor<float, 2> other = y.view().permute<1, 0>() + 0;
  CHECK(other(3, 4) == y(4, 3));
}

TEST_CASE("shared memory is found exactly: against all pairs of addresses") {
  std::mt19937 generator(5);
  const auto below = [&](Index n) { return static_cast<Index>(generator() % static_cast<unsigned>(n)); };
  static char memory[4096];
  int shared = 0;
  for (int round = 0; round < 20000; ++round) {
    Extents<3> ea, eb;
    Strides<3> sa, sb;
    for (int i = 0; i < 3; ++i) {
      ea[i] = 1 + below(4), eb[i] = 1 + below(4);
      sa[i] = below(12) - 2, sb[i] = below(12) - 2;
    }
    const Index item_a = 1 + below(3), item_b = 1 + below(3);
    char *a = memory + 1000 + below(40), *b = memory + 1000 + below(40);
    bool used[4096] = {}, want = false;
    const auto bytes = [](char* base, const Extents<3>& e, const Strides<3>& s, Index item, auto&& visit) {
      for (Index i = 0; i < e[0]; ++i)
        for (Index j = 0; j < e[1]; ++j)
          for (Index k = 0; k < e[2]; ++k)
            for (Index n = 0; n < item; ++n) visit(base - memory + (i * s[0] + j * s[1] + k * s[2]) * item + n);
    };
    bytes(a, ea, sa, item_a, [&](Index at) { used[at] = true; });
    bytes(b, eb, sb, item_b, [&](Index at) { want = want || used[at]; });
    CHECK(detail::share_memory(detail::Footprint(a, ea, sa, item_a), detail::Footprint(b, eb, sb, item_b)) == want);
    shared += want;
  }
  CHECK(shared > 2000);
  CHECK(shared < 18000);
}
