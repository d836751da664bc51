// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>      // std::size_t
#include <cstdint>      // std::uint16_t, std::uint32_t, std::int32_t
#include <ostream>      // operator<<
#include <string_view>  // std::string_view
#include <type_traits>  // std::remove_cv_t

#include "diffmamba/core/config.hpp"

namespace diffmamba {

namespace detail {
/// std::bit_cast for host and device; g++, clang, MSVC and nvcc all know the builtin.
template <class To, class From>
DIFFMAMBA_HOST_DEVICE constexpr To bit_cast(const From& from) {
  return __builtin_bit_cast(To, from);
}
}  // namespace detail

/// The upper half of a float: 8 exponent bits, 7 of mantissa. A storage type: arithmetic happens in float, and rounding
/// (to nearest, ties to even, NaN kept) happens only when a value is stored.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  DIFFMAMBA_HOST_DEVICE explicit bfloat16(float value) {
    const auto word = detail::bit_cast<std::uint32_t>(value);
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? static_cast<std::uint16_t>((word >> 16) | 0x40u)
               : static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
  DIFFMAMBA_HOST_DEVICE operator float() const { return detail::bit_cast<float>(std::uint32_t{bits} << 16); }
};

/// IEEE binary16: 5 exponent bits, 10 of mantissa. A storage type like bfloat16; for inference only.
struct half {
  std::uint16_t bits = 0;

  half() = default;
  DIFFMAMBA_HOST_DEVICE explicit half(float value) {
    const auto word = detail::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (word >> 16) & 0x8000u;
    const std::uint32_t magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {  // NaN
      bits = static_cast<std::uint16_t>(sign | 0x7e00u);
    } else if (magnitude >= 0x47800000u) {  // 65536 and more: infinity
      bits = static_cast<std::uint16_t>(sign | 0x7c00u);
    } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; the addition of 0.5 rounds to nearest even
      const float shifted = detail::bit_cast<float>(magnitude) + 0.5f;
      bits = static_cast<std::uint16_t>(sign | (detail::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
    } else {
      const std::uint32_t rounded = magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u);
      bits = static_cast<std::uint16_t>(sign | (rounded >> 13));
    }
  }
  DIFFMAMBA_HOST_DEVICE operator float() const {
    const std::uint32_t sign = (std::uint32_t{bits} & 0x8000u) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
    if (exponent == 0)  // zero and subnormals: mantissa * 2^-24
      return detail::bit_cast<float>(
          sign | detail::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 5.9604644775390625e-8f));
    if (exponent == 31) return detail::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    return detail::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  }
};

/// The type in which sums of T are kept, and in which decay, states, A, D and dt_bias of a T operator live:
/// float for float, bfloat16 and half; double for double.
template <class T>
struct Accumulate {
  using type = T;
};
template <>
struct Accumulate<bfloat16> {
  using type = float;
};
template <>
struct Accumulate<half> {
  using type = float;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

/// Element types at run time: what a file says, what an error message prints.
enum class Dtype { float64, float32, bfloat16, float16, int64, int32, uint8, boolean };

namespace detail {
template <class T>
struct DtypeOf;  // no entry: not an element type of this library
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = Dtype::float64;
};
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = Dtype::float32;
};
template <>
struct DtypeOf<bfloat16> {
  static constexpr Dtype value = Dtype::bfloat16;
};
template <>
struct DtypeOf<half> {
  static constexpr Dtype value = Dtype::float16;
};
template <>
struct DtypeOf<std::int64_t> {
  static constexpr Dtype value = Dtype::int64;
};
template <>
struct DtypeOf<std::int32_t> {
  static constexpr Dtype value = Dtype::int32;
};
template <>
struct DtypeOf<std::uint8_t> {
  static constexpr Dtype value = Dtype::uint8;
};
template <>
struct DtypeOf<bool> {
  static constexpr Dtype value = Dtype::boolean;
};
}  // namespace detail

template <class T>
inline constexpr Dtype dtype_of = detail::DtypeOf<std::remove_cv_t<T>>::value;

constexpr std::size_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
    case Dtype::int64:
      return 8;
    case Dtype::float32:
    case Dtype::int32:
      return 4;
    case Dtype::bfloat16:
    case Dtype::float16:
      return 2;
    default:
      return 1;
  }
}

constexpr std::string_view name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return "float64";
    case Dtype::float32:
      return "float32";
    case Dtype::bfloat16:
      return "bfloat16";
    case Dtype::float16:
      return "float16";
    case Dtype::int64:
      return "int64";
    case Dtype::int32:
      return "int32";
    case Dtype::uint8:
      return "uint8";
    default:
      return "bool";
  }
}

inline std::ostream& operator<<(std::ostream& out, Dtype dtype) {
  return out << name_of(dtype);
}

}  // namespace diffmamba
