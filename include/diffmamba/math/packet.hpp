// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <bit>          // std::bit_cast
#include <cstdint>      // std::uint32_t
#include <type_traits>  // std::is_same_v

#include "diffmamba/core/config.hpp"

// g++ 12 takes the deliberately undefined operand inside AVX-512 intrinsics for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace diffmamba {

/// As many numbers as one register of the machine holds (16 floats with AVX-512, 4 with SSE, one without SIMD), with
/// the arithmetic of one number. A formula that is a template over its value type, `V next(V h, V decay, V input)`, is
/// so the scalar reference, the vectorised kernel and the body of a CUDA kernel at once. The register is Eigen's.
///
/// exp and exp2 are ours: at most 1.6 ulp, exactly 1 at 0, 0 below 2^-125 (float; double to 2^-1074) and infinite
/// above the largest number; NaN stays NaN.
template <class T>
struct Packet {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "Packet: float or double");
  using Raw = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int width = Eigen::internal::unpacket_traits<Raw>::size;

  Raw raw;

  Packet() = default;
  Packet(const Raw& value) : raw(value) {}
  /// The same number in every lane.
  static Packet all(T value) { return Eigen::internal::pset1<Raw>(value); }
  static Packet load(const T* from) { return Eigen::internal::ploadu<Raw>(from); }
  void store(T* to) const { Eigen::internal::pstoreu(to, raw); }
  /// Sum of the lanes, in an order that the width fixes.
  T sum() const { return Eigen::internal::predux(raw); }

  friend Packet operator+(Packet a, Packet b) { return Packet(Eigen::internal::padd(a.raw, b.raw)); }
  friend Packet operator-(Packet a, Packet b) { return Packet(Eigen::internal::psub(a.raw, b.raw)); }
  friend Packet operator*(Packet a, Packet b) { return Packet(Eigen::internal::pmul(a.raw, b.raw)); }
  friend Packet operator/(Packet a, Packet b) { return Packet(Eigen::internal::pdiv(a.raw, b.raw)); }
};

/// a b + c, rounded once where the machine can.
template <class T>
inline Packet<T> multiply_add(Packet<T> a, Packet<T> b, Packet<T> c) {
  return Eigen::internal::pmadd(a.raw, b.raw, c.raw);
}

/// Lane by lane: the larger, the smaller (`a` where it is NaN), |a|, and `yes` where a > b, else `no`.
template <class T>
inline Packet<T> max(Packet<T> a, Packet<T> b) {
  return Eigen::internal::pmax(a.raw, b.raw);
}
template <class T>
inline Packet<T> min(Packet<T> a, Packet<T> b) {
  return Eigen::internal::pmin(a.raw, b.raw);
}
template <class T>
inline Packet<T> abs(Packet<T> a) {
  return Eigen::internal::pabs(a.raw);
}
template <class T>
inline Packet<T> select_greater(Packet<T> a, Packet<T> b, Packet<T> yes, Packet<T> no) {
  return Eigen::internal::pselect(Eigen::internal::pcmp_lt(b.raw, a.raw), yes.raw, no.raw);
}

namespace detail {

/// c[0] + c[1] x + c[2] x^2 + ...
template <class T, std::size_t Count>
inline Packet<T> polynomial(Packet<T> x, const T (&c)[Count]) {
  Packet<T> result = Packet<T>::all(c[Count - 1]);
  for (std::size_t k = Count - 1; k-- > 0;) result = multiply_add(result, x, Packet<T>::all(c[k]));
  return result;
}

// 2^x = 2^n 2^f with n = round(x), |f| <= 1/2. The polynomials of 2^f are minimax in the relative error under the
// condition that 2^0 = 1: 2.6e-9 (float, degree 6), 1.8e-17 (double, degree 11).
//
// Adding 1.5 * 2^23 rounds a float to an integer and leaves it in the low bits; adding 126 as well leaves the biased
// exponent of 2^(n-1) there, so one shift makes the factor. The factor 2 that is missing is in the coefficients, so
// that the largest numbers do not overflow early; and n = -126 gives the bits of 0.
template <class Raw>
inline Raw power_of_two(const Raw& whole) {
  if constexpr (std::is_same_v<Raw, float>) {
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(whole) << 23);
  } else {
    using Integers = typename Eigen::internal::unpacket_traits<Raw>::integer_packet;
    return Eigen::internal::preinterpret<Raw>(
        Eigen::internal::plogical_shift_left<23>(Eigen::internal::preinterpret<Integers>(whole)));
  }
}
inline Packet<float> exp2_scaled(Packet<float> whole, Packet<float> f) {
  static constexpr float twice[] = {2.0f,           1.386294430f,    0.4804530557f,   0.1110062110f,
                                    0.01923538583f, 0.002681328914f, 0.0003118939415f};
  using P = Packet<float>;
  const P scale = power_of_two(whole.raw), f2 = f * f;
  const P low = multiply_add(P::all(twice[1]), f, P::all(twice[0]));
  const P middle = multiply_add(P::all(twice[3]), f, P::all(twice[2]));
  const P high = multiply_add(P::all(twice[6]), f2, multiply_add(P::all(twice[5]), f, P::all(twice[4])));
  return multiply_add(multiply_add(high, f2, middle), f2, low) * scale;
}
inline Packet<double> exp2_scaled(Packet<double> n, Packet<double> f) {
  static constexpr double c[] = {1.0,
                                 0.69314718055994569679,
                                 0.24022650695910098007,
                                 0.055504108664790389252,
                                 0.0096181291076070019986,
                                 0.0013333558153441334774,
                                 0.00015403530441572599042,
                                 0.000015252727383872462884,
                                 1.3215442675115585098e-6,
                                 1.0180648196555812362e-7,
                                 7.0725704454692940706e-9,
                                 4.0779938562463537778e-10};
  return Packet<double>(Eigen::internal::pldexp(polynomial(f, c).raw, n.raw));
}

inline constexpr float exp2_magic = 12582912.0f + 126.0f;        // 1.5 * 2^23 + 126
inline constexpr double exp2_magic_double = 6755399441055744.0;  // 1.5 * 2^52

}  // namespace detail

/// 2^x.
inline Packet<float> exp2(Packet<float> x) {
  using P = Packet<float>;
  x = min(max(x, P::all(-126.0f)), P::all(128.0f));
  const P whole = x + P::all(detail::exp2_magic);
  return detail::exp2_scaled(whole, x - (whole - P::all(detail::exp2_magic)));
}
inline Packet<double> exp2(Packet<double> x) {
  using P = Packet<double>;
  x = min(max(x, P::all(-1080.0)), P::all(1025.0));
  const P n = (x + P::all(detail::exp2_magic_double)) - P::all(detail::exp2_magic_double);
  return detail::exp2_scaled(n, x - n);
}

/// e^x. n = round(x / ln 2) and x - n ln 2 with ln 2 in two pieces, the first of which times n is exact.
inline Packet<float> exp(Packet<float> x) {
  using P = Packet<float>;
  x = min(max(x, P::all(-87.0f)), P::all(88.8f));
  const P whole = multiply_add(x, P::all(1.44269504f), P::all(detail::exp2_magic));
  const P n = P::all(detail::exp2_magic) - whole;
  const P r = multiply_add(n, P::all(1.428606765330187e-6f), multiply_add(n, P::all(0.693145751953125f), x));
  return detail::exp2_scaled(whole, r * P::all(1.44269504f));
}
inline Packet<double> exp(Packet<double> x) {
  using P = Packet<double>;
  x = min(max(x, P::all(-750.0)), P::all(710.0));
  const P shifted = multiply_add(x, P::all(1.4426950408889634), P::all(detail::exp2_magic_double));
  const P n = shifted - P::all(detail::exp2_magic_double), minus = P::all(0.0) - n;
  const P r =
      multiply_add(minus, P::all(1.9082149292705877e-10), multiply_add(minus, P::all(0.693147180369123816490), x));
  return detail::exp2_scaled(n, r * P::all(1.4426950408889634));
}

/// 1 / (1 + e^-x)
template <class T>
inline Packet<T> sigmoid(Packet<T> x) {
  const Packet<T> one = Packet<T>::all(T(1));
  return one / (one + exp(Packet<T>::all(T(0)) - x));
}

/// x sigmoid(x), and its derivative s (1 + x (1 - s))
template <class T>
inline Packet<T> silu(Packet<T> x) {
  return x * sigmoid(x);
}
template <class T>
inline Packet<T> silu_derivative(Packet<T> x) {
  const Packet<T> one = Packet<T>::all(T(1)), s = sigmoid(x);
  return s * multiply_add(x, one - s, one);
}

/// log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|; x itself above 20. With s = e / (2 + e) in [0, 1/3],
/// log(1 + e) = 2 atanh(s) = 2 s (1 + s^2 q(s^2)); q is minimax (4.5e-9, 1.3e-18).
template <class T>
inline Packet<T> softplus(Packet<T> x) {
  using P = Packet<T>;
  static constexpr auto q = [](P v) {
    if constexpr (std::is_same_v<T, float>) {
      static constexpr float c[] = {0.333332081f, 0.200107689f, 0.140008154f, 0.140064178f};
      return detail::polynomial(v, c);
    } else {
      static constexpr double c[] = {0.33333333333333154693,  0.20000000000077618189,  0.14285714274051237089,
                                     0.11111111977310858987,  0.090908722223112168457, 0.076932745623485081974,
                                     0.066505559136388021008, 0.060525099099305595705, 0.041723237365977439347,
                                     0.085051752424509011421};
      return detail::polynomial(v, c);
    }
  };
  const P zero = P::all(T(0)), e = exp(zero - abs(x)), s = e / (P::all(T(2)) + e), v = s * s;
  const P log = (s + s) * multiply_add(v, q(v), P::all(T(1)));
  return select_greater(x, P::all(T(20)), x, max(x, zero) + log);
}

/// sigmoid(x); 1 above 20.
template <class T>
inline Packet<T> softplus_derivative(Packet<T> x) {
  return select_greater(x, Packet<T>::all(T(20)), Packet<T>::all(T(1)), sigmoid(x));
}

}  // namespace diffmamba

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
