// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/core/dtype.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>

using namespace diffmamba;

namespace {

template <class T>
T from_bits(unsigned bits) {
  T value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

/// Every 16-bit number is its own rounding, and between two neighbours the nearer one is taken, the even one from the
/// middle.
template <class T>
void check_all(double smallest_step, unsigned infinity) {
  Index wrong = 0;
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    const float value = from_bits<T>(bits);
    const unsigned back = T(value).bits;
    if (std::isnan(value))
      wrong += !std::isnan(static_cast<float>(from_bits<T>(back)));
    else
      wrong += back != bits;
  }
  CHECK(wrong == 0);
  for (unsigned bits = 0; bits + 1 < infinity; ++bits) {
    const double low = static_cast<float>(from_bits<T>(bits)), high = static_cast<float>(from_bits<T>(bits + 1));
    const double middle = (low + high) / 2;
    const float exact = static_cast<float>(middle);  // one bit more: a float holds it
    if (static_cast<double>(exact) != middle) {
      ++wrong;
      continue;
    }
    const float below = std::nextafter(exact, 0.0f),
                above = std::nextafter(exact, std::numeric_limits<float>::infinity());
    wrong += T(exact).bits != (bits % 2 == 0 ? bits : bits + 1);
    wrong += T(below).bits != bits;
    wrong += T(above).bits != bits + 1;
    wrong += T(-below).bits != (bits | 0x8000u);
  }
  CHECK(wrong == 0);
  CHECK(static_cast<double>(static_cast<float>(from_bits<T>(1))) == smallest_step);
  CHECK(T(std::numeric_limits<float>::infinity()).bits == infinity);
  CHECK(T(std::numeric_limits<float>::max()).bits == infinity);
  CHECK(T(-0.0f).bits == 0x8000u);
  CHECK(std::isnan(static_cast<float>(T(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(std::isnan(static_cast<float>(T(std::bit_cast<float>(0x7f800001u)))));  // a NaN of low bits only stays one
  CHECK(std::isnan(static_cast<float>(T(std::bit_cast<float>(0xff800001u)))));
}

}  // namespace

TEST_CASE("bfloat16: all numbers, all middles between neighbours") {
  check_all<bfloat16>(0x1p-133, 0x7f80u);
}

TEST_CASE("half: all numbers, all middles between neighbours") {
  check_all<half>(0x1p-24, 0x7c00u);
}

TEST_CASE("names and sizes") {
  std::ostringstream out;
  out << dtype_of<float> << ' ' << dtype_of<const bfloat16> << ' ' << dtype_of<half> << ' ' << dtype_of<double> << ' '
      << dtype_of<std::int64_t> << ' ' << dtype_of<std::int32_t> << ' ' << dtype_of<std::uint8_t> << ' '
      << dtype_of<bool>;
  CHECK(out.str() == "float32 bfloat16 float16 float64 int64 int32 uint8 bool");
  CHECK(size_of(Dtype::bfloat16) == sizeof(bfloat16));
  CHECK(size_of(Dtype::float16) == sizeof(half));
  CHECK(size_of(Dtype::float64) == 8);
  CHECK(size_of(Dtype::int32) == 4);
  CHECK(size_of(Dtype::boolean) == 1);
  static_assert(std::is_same_v<accumulate_t<bfloat16>, float> && std::is_same_v<accumulate_t<double>, double>);
}
