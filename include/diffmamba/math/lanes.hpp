// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>          // std::bit_cast
#include <cmath>        // std::tanh, std::erf, std::pow
#include <cstdint>      // std::uint32_t
#include <limits>       // std::numeric_limits
#include <type_traits>  // std::is_same_v

#include "diffmamba/core/eigen_core.hpp"  // Eigen::internal packets
#include "diffmamba/math/real.hpp"        // is_lanes

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // a register type as a template argument
#endif

namespace diffmamba {

/// A yes or no for each number of a Lanes<T>.
template <class T>
struct Mask {
  typename Eigen::internal::packet_traits<T>::type raw;
};

/// As many T as one SIMD register holds, computed together: Eigen's packet of this build (16 floats with AVX-512, 8
/// with AVX, 4 with SSE or NEON, 1 where Eigen does not vectorise), with the arithmetic of one number. So a formula
/// that is a template over its value type serves a scalar loop, a GPU kernel and the vectorised CPU, in expressions as
/// in operators. Every lane is computed by the same instructions: the result of an element does not depend on where it
/// stands.
template <class T>
struct Lanes {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "Lanes: float or double");
  using value_type = T;
  using Register = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int size = Eigen::internal::unpacket_traits<Register>::size;

  Register raw;

  Lanes() = default;
  /// A constant of a formula in every lane, rounded to T.
  explicit Lanes(double value) : raw(Eigen::internal::pset1<Register>(static_cast<T>(value))) {}
  static Lanes of(const Register& raw) {
    Lanes result;
    result.raw = raw;
    return result;
  }
  /// The same number in every lane.
  static Lanes all(T value) { return of(Eigen::internal::pset1<Register>(value)); }
  static Lanes load(const T* from) { return of(Eigen::internal::ploadu<Register>(from)); }
  void store(T* to) const { Eigen::internal::pstoreu(to, raw); }
  /// first, first + 1, first + 2, ...
  static Lanes counting_from(T first) { return of(Eigen::internal::plset<Register>(first)); }

  /// f of each lane, one after another: for functions that have no vectorised form.
  template <class F>
  Lanes each(F&& f) const {
    T lane[size];
    store(lane);
    for (T& value : lane) value = f(value);
    return load(lane);
  }

  /// The sum of all lanes, in an order that the width fixes.
  T sum() const { return Eigen::internal::predux(raw); }

  friend Lanes operator+(Lanes a, Lanes b) { return of(Eigen::internal::padd(a.raw, b.raw)); }
  friend Lanes operator-(Lanes a, Lanes b) { return of(Eigen::internal::psub(a.raw, b.raw)); }
  friend Lanes operator*(Lanes a, Lanes b) { return of(Eigen::internal::pmul(a.raw, b.raw)); }
  friend Lanes operator/(Lanes a, Lanes b) { return of(Eigen::internal::pdiv(a.raw, b.raw)); }
  friend Lanes operator-(Lanes a) { return of(Eigen::internal::pnegate(a.raw)); }

  friend Mask<T> operator<(Lanes a, Lanes b) { return {Eigen::internal::pcmp_lt(a.raw, b.raw)}; }
  friend Mask<T> operator<=(Lanes a, Lanes b) { return {Eigen::internal::pcmp_le(a.raw, b.raw)}; }
  friend Mask<T> operator>(Lanes a, Lanes b) { return b < a; }
  friend Mask<T> operator>=(Lanes a, Lanes b) { return b <= a; }
  friend Mask<T> operator==(Lanes a, Lanes b) { return {Eigen::internal::pcmp_eq(a.raw, b.raw)}; }
  friend Mask<T> operator!=(Lanes a, Lanes b) { return !(a == b); }
};

template <class T>
inline constexpr bool is_lanes<Lanes<T>> = true;

template <class T>
inline Mask<T> operator!(Mask<T> a) {
  using Register = typename Lanes<T>::Register;
  return {Eigen::internal::pandnot(Eigen::internal::ptrue(Register(a.raw)), a.raw)};
}
template <class T>
inline Mask<T> operator&(Mask<T> a, Mask<T> b) {
  return {Eigen::internal::pand(a.raw, b.raw)};
}
template <class T>
inline Mask<T> operator|(Mask<T> a, Mask<T> b) {
  return {Eigen::internal::por(a.raw, b.raw)};
}
template <class T>
inline Lanes<T> select(Mask<T> condition, Lanes<T> yes, Lanes<T> no) {
  return Lanes<T>::of(Eigen::internal::pselect(condition.raw, yes.raw, no.raw));
}

/// a b + c, rounded once where the machine can.
template <class T>
inline Lanes<T> multiply_add(Lanes<T> a, Lanes<T> b, Lanes<T> c) {
  return Lanes<T>::of(Eigen::internal::pmadd(a.raw, b.raw, c.raw));
}

/// The larger and the smaller, in one instruction; `a` where it is NaN (maximum and minimum give NaN where either is).
template <class T>
inline Lanes<T> max(Lanes<T> a, Lanes<T> b) {
  return Lanes<T>::of(Eigen::internal::pmax(a.raw, b.raw));
}
template <class T>
inline Lanes<T> min(Lanes<T> a, Lanes<T> b) {
  return Lanes<T>::of(Eigen::internal::pmin(a.raw, b.raw));
}

template <class T>
inline Lanes<T> abs(Lanes<T> x) {
  return Lanes<T>::of(Eigen::internal::pabs(x.raw));
}

namespace detail {

/// c[0] + c[1] x + c[2] x^2 + ...
template <class T, std::size_t Count>
inline Lanes<T> polynomial(Lanes<T> x, const T (&c)[Count]) {
  Lanes<T> result = Lanes<T>::all(c[Count - 1]);
  for (std::size_t k = Count - 1; k-- > 0;) result = multiply_add(result, x, Lanes<T>::all(c[k]));
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
inline Lanes<float> exp2_scaled(Lanes<float> whole, Lanes<float> f) {
  static constexpr float twice[] = {2.0f,           1.386294430f,    0.4804530557f,   0.1110062110f,
                                    0.01923538583f, 0.002681328914f, 0.0003118939415f};
  using L = Lanes<float>;
  const L scale = L::of(power_of_two(whole.raw)), f2 = f * f;
  const L low = multiply_add(L::all(twice[1]), f, L::all(twice[0]));
  const L middle = multiply_add(L::all(twice[3]), f, L::all(twice[2]));
  const L high = multiply_add(L::all(twice[6]), f2, multiply_add(L::all(twice[5]), f, L::all(twice[4])));
  return multiply_add(multiply_add(high, f2, middle), f2, low) * scale;
}
inline Lanes<double> exp2_scaled(Lanes<double> n, Lanes<double> f) {
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
  return Lanes<double>::of(Eigen::internal::pldexp(polynomial(f, c).raw, n.raw));
}

inline constexpr float exp2_magic = 12582912.0f + 126.0f;        // 1.5 * 2^23 + 126
inline constexpr double exp2_magic_double = 6755399441055744.0;  // 1.5 * 2^52

}  // namespace detail

/// 2^x, at most 1.6 ulp. Exactly 1 at 0, 0 below 2^-125 (double: 2^-1074) and infinite above the largest number; NaN
/// stays NaN. So does exp.
inline Lanes<float> exp2(Lanes<float> x) {
  using L = Lanes<float>;
  x = min(max(x, L::all(-126.0f)), L::all(128.0f));
  const L whole = x + L::all(detail::exp2_magic);
  return detail::exp2_scaled(whole, x - (whole - L::all(detail::exp2_magic)));
}
inline Lanes<double> exp2(Lanes<double> x) {
  using L = Lanes<double>;
  x = min(max(x, L::all(-1080.0)), L::all(1025.0));
  const L n = (x + L::all(detail::exp2_magic_double)) - L::all(detail::exp2_magic_double);
  return detail::exp2_scaled(n, x - n);
}

/// e^x, at most 1.6 ulp. n = round(x / ln 2) and x - n ln 2 with ln 2 in two pieces, the first of which times n is
/// exact.
inline Lanes<float> exp(Lanes<float> x) {
  using L = Lanes<float>;
  x = min(max(x, L::all(-87.0f)), L::all(88.8f));
  const L whole = multiply_add(x, L::all(1.44269504f), L::all(detail::exp2_magic));
  const L n = L::all(detail::exp2_magic) - whole;
  const L r = multiply_add(n, L::all(1.428606765330187e-6f), multiply_add(n, L::all(0.693145751953125f), x));
  return detail::exp2_scaled(whole, r * L::all(1.44269504f));
}
inline Lanes<double> exp(Lanes<double> x) {
  using L = Lanes<double>;
  x = min(max(x, L::all(-750.0)), L::all(710.0));
  const L shifted = multiply_add(x, L::all(1.4426950408889634), L::all(detail::exp2_magic_double));
  const L n = shifted - L::all(detail::exp2_magic_double), minus = L::all(0.0) - n;
  const L r =
      multiply_add(minus, L::all(1.9082149292705877e-10), multiply_add(minus, L::all(0.693147180369123816490), x));
  return detail::exp2_scaled(n, r * L::all(1.4426950408889634));
}

template <class T>
inline Lanes<T> log(Lanes<T> x) {
  if constexpr (Lanes<T>::size > 1 && Eigen::internal::packet_traits<T>::HasLog)
    return Lanes<T>::of(Eigen::internal::plog(x.raw));
  else
    return x.each([](T value) { return std::log(value); });
}

/// log(1 + x), by Kahan: with u = 1 + x rounded, log(u) x / (u - 1) makes good for what the rounding lost.
template <class T>
inline Lanes<T> log1p(Lanes<T> x) {
  using L = Lanes<T>;
  const L u = x + L(1.0), rounded = u - L(1.0);
  const L result = log(u) * (x / rounded);
  return select((rounded == L(0.0)) | (u == L(std::numeric_limits<double>::infinity())), x,
                result);  // x itself where 1 + x is 1 or infinite
}

/// log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|; x itself above 20. With s = e / (2 + e) in [0, 1/3],
/// log(1 + e) = 2 atanh(s) = 2 s (1 + s^2 q(s^2)); q is minimax (4.5e-9, 1.3e-18).
template <class T>
inline Lanes<T> softplus(Lanes<T> x) {
  using L = Lanes<T>;
  static constexpr auto q = [](L v) {
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
  const L zero = L::all(T(0)), e = exp(zero - abs(x)), s = e / (L::all(T(2)) + e), v = s * s;
  const L log = (s + s) * multiply_add(v, q(v), L::all(T(1)));
  return select(x > L(20), x, max(x, zero) + log);
}

template <class T>
inline Lanes<T> sqrt(Lanes<T> x) {
  if constexpr (Lanes<T>::size > 1 && Eigen::internal::packet_traits<T>::HasSqrt)
    return Lanes<T>::of(Eigen::internal::psqrt(x.raw));
  else
    return x.each([](T value) { return std::sqrt(value); });
}

template <class T>
inline Lanes<T> tanh(Lanes<T> x) {
  if constexpr (Lanes<T>::size > 1 && Eigen::internal::packet_traits<T>::HasTanh)
    return Lanes<T>::of(Eigen::internal::ptanh(x.raw));
  else
    return x.each([](T value) { return std::tanh(value); });
}

template <class T>
inline Lanes<T> erf(Lanes<T> x) {
  return x.each([](T value) { return std::erf(value); });
}

template <class T>
inline Lanes<T> pow(Lanes<T> x, Lanes<T> p) {
  T a[Lanes<T>::size], b[Lanes<T>::size];
  x.store(a);
  p.store(b);
  for (int i = 0; i < Lanes<T>::size; ++i) a[i] = std::pow(a[i], b[i]);
  return Lanes<T>::load(a);
}

template <class T>
inline Lanes<T> maximum(Lanes<T> a, Lanes<T> b) {
  return select((a > b) | (a != a), a, b);
}

template <class T>
inline Lanes<T> minimum(Lanes<T> a, Lanes<T> b) {
  return select((a < b) | (a != a), a, b);
}

}  // namespace diffmamba

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
