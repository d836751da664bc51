// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::uintptr_t

#include "diffmamba/tensor/view.hpp"

namespace diffmamba::detail {

/// Whether every row of a view begins at a multiple of N elements, and there are as many of them as fill whole packs.
/// An absent view does not mind.
template <int N, class T, int Rank>
bool takes_packs(const View<T, Rank, cuda>& view) {
  if (!view) return true;
  bool good = reinterpret_cast<std::uintptr_t>(view.data()) % (sizeof(T) * N) == 0 && view.extent(Rank - 1) % N == 0;
  for (int axis = 0; axis + 1 < Rank; ++axis) good = good && (view.extent(axis) <= 1 || view.stride(axis) % N == 0);
  return good;
}

}  // namespace diffmamba::detail
