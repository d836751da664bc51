// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>  // std::numeric_limits

#include "diffmamba/expr/node.hpp"
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/math/minmax.hpp"

// sum, mean, max, min: over all elements or some axes, anywhere in an expression.
//
//   float loss = mean(square(x - y));
//   rms = sqrt(mean(x * x, axis<1>));                             // (rows)
//   y = x / sqrt(mean(x * x, axis<-1>, keepdims) + 1e-5f);        // (rows, columns)
//
// Sums are kept in the type that the expression computes in and added in an order that follows from the shapes alone.

namespace diffmamba {

template <int... Axes>
struct AxisList {};

/// The axes to reduce, counted from 0, or from -1 at the end: axis<1>, axis<0, 2>, axis<-1>.
template <int... Axes>
inline constexpr AxisList<Axes...> axis{};

struct KeepDims {};
/// Reduced axes stay, with one element, so that the result broadcasts against what was reduced.
inline constexpr KeepDims keepdims{};

namespace detail {

template <class T, class Combine>
T combine_lanes(Lanes<T> lanes, Combine combine) {
  T lane[Lanes<T>::size];
  lanes.store(lane);
  for (int width = Lanes<T>::size / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = combine(lane[i], lane[i + width]);
  return lane[0];
}

struct Sum {
  static constexpr const char* name = "sum";
  static constexpr bool empty_is_defined = true;
  static constexpr double identity = 0.0;
  template <class V>
  DIFFMAMBA_HOST_DEVICE static V combine(V a, V b) {
    return a + b;
  }
  template <class T>
  static T across(Lanes<T> lanes) {
    return lanes.sum();
  }
  template <class T>
  DIFFMAMBA_HOST_DEVICE static T finish(T total, Index) {
    return total;
  }
};
struct Mean : Sum {
  static constexpr const char* name = "mean";
  static constexpr bool empty_is_defined = false;
  template <class T>
  DIFFMAMBA_HOST_DEVICE static T finish(T total, Index count) {
    return total / static_cast<T>(count);
  }
};
struct Max {
  static constexpr const char* name = "max";
  static constexpr bool empty_is_defined = false;
  static constexpr double identity = -std::numeric_limits<double>::infinity();
  template <class V>
  DIFFMAMBA_HOST_DEVICE static V combine(V a, V b) {
    return maximum(a, b);
  }
  template <class T>
  static T across(Lanes<T> lanes) {
    return combine_lanes(lanes, combine<T>);
  }
  template <class T>
  DIFFMAMBA_HOST_DEVICE static T finish(T largest, Index) {
    return largest;
  }
};
struct Min {
  static constexpr const char* name = "min";
  static constexpr bool empty_is_defined = false;
  static constexpr double identity = std::numeric_limits<double>::infinity();
  template <class V>
  DIFFMAMBA_HOST_DEVICE static V combine(V a, V b) {
    return minimum(a, b);
  }
  template <class T>
  static T across(Lanes<T> lanes) {
    return combine_lanes(lanes, combine<T>);
  }
  template <class T>
  DIFFMAMBA_HOST_DEVICE static T finish(T smallest, Index) {
    return smallest;
  }
};

template <int Rank, int... Axes>
constexpr bool is_reduced(int position) {
  return (((Axes < 0 ? Axes + Rank : Axes) == position) || ...);
}
template <int Rank, int... Axes>
constexpr bool axes_are_valid() {
  constexpr int count = (0 + ... + ((Axes < 0 ? Axes + Rank : Axes) >= 0 && (Axes < 0 ? Axes + Rank : Axes) < Rank));
  int distinct = 0;
  for (int position = 0; position < Rank; ++position) distinct += is_reduced<Rank, Axes...>(position);
  return count == static_cast<int>(sizeof...(Axes)) && distinct == count;
}

template <class Op, bool Keep, int... Axes, class X>
auto reduce_axes(X&& x, AxisList<Axes...>) {
  using Arg = node_t<X>;
  static_assert(axes_are_valid<Arg::rank, Axes...>(),
                "diffmamba: axis<...> names an axis that the operand does not have, or one axis twice");
  return [&]<int... Positions>(std::integer_sequence<int, Positions...>) {
    return ReductionNode<Op, Keep, Arg, is_reduced<Arg::rank, Axes...>(Positions)...>(as_node(std::forward<X>(x)));
  }
  (std::make_integer_sequence<int, Arg::rank>{});
}

template <class Op, class X>
auto reduce_all(X&& x) {
  return [&]<int... Positions>(std::integer_sequence<int, Positions...>) {
    return reduce_axes<Op, false>(std::forward<X>(x), AxisList<Positions...>{});
  }
  (std::make_integer_sequence<int, node_t<X>::rank>{});
}

}  // namespace detail

#define DIFFMAMBA_REDUCTION(name, Op)                                        \
  template <Operand X>                                                       \
  auto name(X&& x) {                                                         \
    return detail::reduce_all<detail::Op>(std::forward<X>(x));               \
  }                                                                          \
  template <Operand X, int... Axes>                                          \
  auto name(X&& x, AxisList<Axes...> axes) {                                 \
    return detail::reduce_axes<detail::Op, false>(std::forward<X>(x), axes); \
  }                                                                          \
  template <Operand X, int... Axes>                                          \
  auto name(X&& x, AxisList<Axes...> axes, KeepDims) {                       \
    return detail::reduce_axes<detail::Op, true>(std::forward<X>(x), axes);  \
  }

DIFFMAMBA_REDUCTION(sum, Sum)
DIFFMAMBA_REDUCTION(mean, Mean)
DIFFMAMBA_REDUCTION(max, Max)  // NaN if any element is; throws Error over no element
DIFFMAMBA_REDUCTION(min, Min)

#undef DIFFMAMBA_REDUCTION

}  // namespace diffmamba
