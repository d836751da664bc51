// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>  // Eigen::internal packets
#include <cmath>       // std::tanh, std::erf, std::pow
#include <limits>      // std::numeric_limits

#include "diffmamba/math/real.hpp"  // Real

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // a register type as a template argument
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // an AVX-512 intrinsic of g++ 12 (GCC bug 105593)
#endif
#endif

namespace diffmamba {

/// A yes or no for each number of a Lanes<T>.
template <class T>
struct Mask {
  typename Eigen::internal::packet_traits<T>::type packet;
};

/// As many T as one SIMD register holds, computed together: Eigen's packet of this build (16 floats with AVX-512, 8
/// with AVX, 4 with SSE or NEON, 1 where Eigen does not vectorise), with operators, so that the formulas of this floor
/// can be written once for a number and for a register of them. Every lane is computed by the same instructions, so the
/// result of an element does not depend on where it stands.
///
/// This is the only header that speaks Eigen's packet language (Eigen::internal, the same since 3.3).
template <class T>
struct Lanes {
  using value_type = T;
  using Packet = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int size = Eigen::internal::unpacket_traits<Packet>::size;

  Packet packet;

  Lanes() = default;
  /// Every lane the same number, rounded to T.
  explicit Lanes(double value) : packet(Eigen::internal::pset1<Packet>(static_cast<T>(value))) {}
  static Lanes of(const Packet& packet) {
    Lanes result;
    result.packet = packet;
    return result;
  }
  static Lanes load(const T* from) { return of(Eigen::internal::ploadu<Packet>(from)); }
  void store(T* to) const { Eigen::internal::pstoreu(to, packet); }
  /// first, first + 1, first + 2, ...
  static Lanes counting_from(T first) { return of(Eigen::internal::plset<Packet>(first)); }

  /// f of each lane, one after another: for functions that have no vectorised form.
  template <class F>
  Lanes each(F&& f) const {
    T lane[size];
    store(lane);
    for (T& value : lane) value = f(value);
    return load(lane);
  }

  friend Lanes operator+(Lanes a, Lanes b) { return of(Eigen::internal::padd(a.packet, b.packet)); }
  friend Lanes operator-(Lanes a, Lanes b) { return of(Eigen::internal::psub(a.packet, b.packet)); }
  friend Lanes operator*(Lanes a, Lanes b) { return of(Eigen::internal::pmul(a.packet, b.packet)); }
  friend Lanes operator/(Lanes a, Lanes b) { return of(Eigen::internal::pdiv(a.packet, b.packet)); }
  friend Lanes operator-(Lanes a) { return of(Eigen::internal::pnegate(a.packet)); }

  friend Mask<T> operator<(Lanes a, Lanes b) { return {Eigen::internal::pcmp_lt(a.packet, b.packet)}; }
  friend Mask<T> operator<=(Lanes a, Lanes b) { return {Eigen::internal::pcmp_le(a.packet, b.packet)}; }
  friend Mask<T> operator>(Lanes a, Lanes b) { return b < a; }
  friend Mask<T> operator>=(Lanes a, Lanes b) { return b <= a; }
  friend Mask<T> operator==(Lanes a, Lanes b) { return {Eigen::internal::pcmp_eq(a.packet, b.packet)}; }
  friend Mask<T> operator!=(Lanes a, Lanes b) { return !(a == b); }
};

template <class T>
inline constexpr bool is_lanes<Lanes<T>> = true;

template <class T>
inline Mask<T> operator!(Mask<T> a) {
  using Packet = typename Lanes<T>::Packet;
  return {Eigen::internal::pandnot(Eigen::internal::ptrue(Packet(a.packet)), a.packet)};
}
template <class T>
inline Mask<T> operator&(Mask<T> a, Mask<T> b) {
  return {Eigen::internal::pand(a.packet, b.packet)};
}
template <class T>
inline Mask<T> operator|(Mask<T> a, Mask<T> b) {
  return {Eigen::internal::por(a.packet, b.packet)};
}
template <class T>
inline Lanes<T> select(Mask<T> condition, Lanes<T> yes, Lanes<T> no) {
  return Lanes<T>::of(Eigen::internal::pselect(condition.packet, yes.packet, no.packet));
}

/// a b + c, rounded once where the machine can.
template <class T>
inline Lanes<T> multiply_add(Lanes<T> a, Lanes<T> b, Lanes<T> c) {
  return Lanes<T>::of(Eigen::internal::pmadd(a.packet, b.packet, c.packet));
}

/// e^x. In float: x = n ln 2 + r with a whole n and |r| <= ln 2 / 2, e^r by a polynomial of degree 7 (Cephes'
/// coefficients), times 2^n in two steps, so that the result runs smoothly into infinity and through the subnormal
/// numbers to 0 (Eigen's own stops at e^+-88.4). Within 2 units in the last place; NaN stays NaN.
template <class T>
inline Lanes<T> exp(Lanes<T> x) {
  using Packet = typename Lanes<T>::Packet;
  namespace packets = Eigen::internal;
  if constexpr (Lanes<T>::size == 1) {
    return Lanes<T>::of(std::exp(x.packet));
  } else if constexpr (std::is_same_v<T, float>) {
    using Whole = typename packets::unpacket_traits<Packet>::integer_packet;
    using L = Lanes<float>;
    // The comparisons are false for a NaN, which then passes.
    x = select(x > L(89.0), L(89.0), select(x < L(-104.0), L(-104.0), x));
    const L magic(12582912.0);  // 1.5 * 2^23: adding it rounds to a whole number, which stands in the low bits
    const L shifted = multiply_add(x, L(1.44269504088896341), magic);
    const L n = shifted - magic;
    L r = multiply_add(n, L(-0.693359375), x);  // ln 2 in two parts, the first exact
    r = multiply_add(n, L(2.12194440e-4), r);
    L p = multiply_add(L(1.9875691500e-4), r, L(1.3981999507e-3));
    p = multiply_add(p, r, L(8.3334519073e-3));
    p = multiply_add(p, r, L(4.1665795894e-2));
    p = multiply_add(p, r, L(1.6666665459e-1));
    p = multiply_add(p, r, L(5.0000001201e-1));
    p = multiply_add(p, r * r, r + L(1.0));
    const Whole bits = packets::preinterpret<Whole>(shifted.packet);
    const Whole whole = packets::psub(bits, packets::pset1<Whole>(0x4B400000));  // the bits of magic
    const Whole first = packets::parithmetic_shift_right<1>(whole), second = packets::psub(whole, first);
    const Whole bias = packets::pset1<Whole>(127);
    const auto power = [&](const Whole& exponent) {
      return L::of(
          packets::preinterpret<Packet>(Whole(packets::plogical_shift_left<23>(Whole(packets::padd(exponent, bias))))));
    };
    return p * power(first) * power(second);
  } else if constexpr (packets::packet_traits<T>::HasExp) {
    using L = Lanes<T>;
    const L inside = L::of(packets::pexp(x.packet));
    return select(x > L(709.782712893384), L(std::numeric_limits<T>::infinity()),
                  select(x < L(-708.0), L(0.0), inside));
  } else {
    return x.each([](T value) { return std::exp(value); });
  }
}

template <class T>
inline Lanes<T> log(Lanes<T> x) {
  if constexpr (Lanes<T>::size > 1 && Eigen::internal::packet_traits<T>::HasLog)
    return Lanes<T>::of(Eigen::internal::plog(x.packet));
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

template <class T>
inline Lanes<T> sqrt(Lanes<T> x) {
  if constexpr (Lanes<T>::size > 1 && Eigen::internal::packet_traits<T>::HasSqrt)
    return Lanes<T>::of(Eigen::internal::psqrt(x.packet));
  else
    return x.each([](T value) { return std::sqrt(value); });
}

template <class T>
inline Lanes<T> abs(Lanes<T> x) {
  return Lanes<T>::of(Eigen::internal::pabs(x.packet));
}

template <class T>
inline Lanes<T> tanh(Lanes<T> x) {
  if constexpr (Lanes<T>::size > 1 && Eigen::internal::packet_traits<T>::HasTanh)
    return Lanes<T>::of(Eigen::internal::ptanh(x.packet));
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
