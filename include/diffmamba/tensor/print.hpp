// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>   // std::snprintf
#include <ostream>  // operator<<
#include <string>   // std::string

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

namespace detail {

/// Up to 6 significant digits, as a stream prints by default, whatever the stream's own settings.
template <class T>
std::string element_text(T value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_integral_v<T>) {
    return std::to_string(value);
  } else {
    char text[32];
    std::snprintf(text, sizeof text, "%g", static_cast<double>(value));
    return text;
  }
}

/// Calls visit(index) for the indices of an axis that are shown; -1 stands for what is left out.
template <class Visit>
void each_shown(Index size, bool shorten, Visit&& visit) {
  constexpr Index edge = 3;
  for (Index i = 0; i < size; ++i) {
    if (shorten && size > 2 * edge && i == edge) {
      visit(Index{-1});
      i = size - edge;
    }
    visit(i);
  }
}

template <class T, int Rank, class Visit>
void each_element_shown(const View<T, Rank, cpu>& x, bool shorten, Visit&& visit) {
  if constexpr (Rank == 0)
    visit(*x.data());
  else
    each_shown(x.extent(0), shorten, [&](Index i) {
      if (i >= 0) each_element_shown(x.template select<0>(i), shorten, visit);
    });
}

template <class T, int Rank>
void print_rows(std::ostream& out, const View<T, Rank, cpu>& x, bool shorten, std::size_t width, std::size_t indent) {
  if constexpr (Rank == 0) {
    const std::string text = element_text(*x.data());
    out << std::string(width > text.size() ? width - text.size() : 0, ' ') << text;
  } else {
    out << '[';
    bool first = true;
    each_shown(x.extent(0), shorten, [&](Index i) {
      if (!first) {
        out << ',' << (Rank == 1 ? " " : std::string(Rank - 1, '\n') + std::string(indent + 1, ' '));
      }
      first = false;
      if (i < 0)
        out << "...";
      else
        print_rows(out, x.template select<0>(i), shorten, width, indent + 1);
    });
    out << ']';
  }
}

}  // namespace detail

/// "(2, 3) float32" and the elements in brackets, as NumPy prints them: aligned, and of more than 1000 elements only
/// three at each end of an axis.
template <class T, int Rank>
std::ostream& operator<<(std::ostream& out, const View<T, Rank, cpu>& x) {
  if (!x) return out << "(absent tensor of rank " << Rank << ')';
  const bool shorten = x.size() > 1000;
  std::size_t width = 0;
  detail::each_element_shown(x, shorten, [&](const T& value) {
    const std::size_t length = detail::element_text(value).size();
    width = length > width ? length : width;
  });
  out << x.extents() << ' ' << dtype_of<T> << '\n';
  detail::print_rows(out, x, shorten, width, 0);
  return out;
}

template <class T, int Rank>
std::ostream& operator<<(std::ostream& out, const Tensor<T, Rank, cpu>& x) {
  return out << x.view();
}

}  // namespace diffmamba
