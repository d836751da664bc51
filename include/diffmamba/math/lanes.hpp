// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>  // Eigen::internal packets
#include <cmath>       // std::tanh, std::erf, std::pow
#include <limits>      // std::numeric_limits

#include "diffmamba/math/packet.hpp"  // exp
#include "diffmamba/math/real.hpp"    // Real

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
/// The sister of Packet (math/packet.hpp), which the kernels of the operators use, with comparisons.
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

  /// The sum of all lanes, in an order that the width fixes.
  T sum() const { return Eigen::internal::predux(packet); }

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

/// e^x, within 2 units in the last place; 0 below 2^-125 in float. NaN stays NaN.
template <class T>
inline Lanes<T> exp(Lanes<T> x) {
  return Lanes<T>::of(exp(Packet<T>(x.packet)).raw);
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
