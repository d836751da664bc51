// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ostream>  // operator<<
#include <string>   // std::string

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/error.hpp"

namespace diffmamba {

/// Sizes of a tensor's axes, outermost first. Rank 0 is a scalar (one element).
template <int Rank>
struct Extents {
  Index sizes[Rank > 0 ? Rank : 1] = {};

  Extents() = default;
  template <class... Sizes>
    requires(sizeof...(Sizes) == Rank && Rank > 0)
  DIFFMAMBA_HOST_DEVICE constexpr Extents(Sizes... size) : sizes{static_cast<Index>(size)...} {}

  DIFFMAMBA_HOST_DEVICE constexpr Index& operator[](int axis) { return sizes[axis]; }
  DIFFMAMBA_HOST_DEVICE constexpr Index operator[](int axis) const { return sizes[axis]; }
  /// Number of elements.
  DIFFMAMBA_HOST_DEVICE constexpr Index size() const {
    Index product = 1;
    for (int axis = 0; axis < Rank; ++axis) product *= sizes[axis];
    return product;
  }
  friend DIFFMAMBA_HOST_DEVICE constexpr bool operator==(const Extents& a, const Extents& b) {
    for (int axis = 0; axis < Rank; ++axis)
      if (a.sizes[axis] != b.sizes[axis]) return false;
    return true;
  }
};

template <class... Sizes>
Extents(Sizes...) -> Extents<static_cast<int>(sizeof...(Sizes))>;

/// Steps in elements from one index of an axis to the next.
template <int Rank>
using Strides = Extents<Rank>;

/// Strides of a dense row-major tensor: the last axis is contiguous.
template <int Rank>
DIFFMAMBA_HOST_DEVICE constexpr Strides<Rank> row_major(const Extents<Rank>& extents) {
  Strides<Rank> strides;
  Index step = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= extents[axis];
  }
  return strides;
}

/// "(2, 256, 1, 32)"
template <int Rank>
std::ostream& operator<<(std::ostream& out, const Extents<Rank>& extents) {
  out << '(';
  for (int axis = 0; axis < Rank; ++axis) out << (axis > 0 ? ", " : "") << extents[axis];
  return out << ')';
}

}  // namespace diffmamba
