// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "diffmamba/tensor/view.hpp"

namespace diffmamba::test {

/// The element of a view at an index of a larger space, by NumPy's rule: the plain definition of broadcasting.
template <class T, int Rank, int Space>
double broadcast_element(const View<T, Rank, cpu>& view, const Index (&index)[Space]) {
  Index offset = 0;
  for (int i = 1; i <= Rank; ++i)
    if (view.extent(Rank - i) > 1) offset += index[Space - i] * view.stride(Rank - i);
  return static_cast<double>(view.data()[offset]);
}

/// Compares y with f of the elements of the operands, one element after another.
template <class T, int Rank, class F, class... Views>
void check_elements(const View<T, Rank, cpu>& y, double tolerance, F&& f, const Views&... views) {
  Index bad = 0, first = -1;
  for (Index linear = 0; linear < y.size(); ++linear) {
    Index index[Rank > 0 ? Rank : 1] = {}, rest = linear;
    for (int a = Rank - 1; a >= 0; --a) {
      index[a] = rest % y.extent(a);
      rest /= y.extent(a);
    }
    const double want = f(broadcast_element(views, index)...), got = broadcast_element(y, index);
    if (!(std::abs(got - want) <= tolerance * std::max(1.0, std::abs(want)))) {
      ++bad;
      if (first < 0) first = linear;
    }
  }
  INFO("first wrong element ", first, " of ", y.size());
  CHECK(bad == 0);
}

template <class T>
constexpr double tolerance = std::is_same_v<T, double>  ? 1e-14
                             : std::is_same_v<T, float> ? 2e-6
                                                        : 8e-3;

}  // namespace diffmamba::test
