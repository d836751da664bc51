// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::uintptr_t
#include <utility>  // std::swap

#include "diffmamba/tensor/extents.hpp"

namespace diffmamba::detail {

/// The bytes that a strided tensor covers: low + sum(step u) for all whole numbers 0 <= u <= limit.
struct Footprint {
  struct Term {
    Index step, limit;  // bytes, > 0
  };
  static constexpr int most = 16;

  std::uintptr_t low = 0;
  Index span = 0;  // sum of step * limit
  Term terms[most];
  int count = 0;
  bool empty = false;

  template <int Rank>
  Footprint(const void* data, const Extents<Rank>& extents, const Strides<Rank>& strides, Index item)
      : low(reinterpret_cast<std::uintptr_t>(data)) {
    static_assert(Rank < most);
    for (int i = 0; i < Rank; ++i) add(strides[i] * item, extents[i] - 1);
    add(1, item - 1);
  }

 private:
  void add(Index step, Index limit) {
    if (limit < 0) empty = true;
    if (step == 0 || limit <= 0) return;
    if (step < 0) {
      step = -step;
      low -= static_cast<std::uintptr_t>(step * limit);
    }
    span += step * limit;
    terms[count++] = {step, limit};
  }
};

/// Whether whole numbers 0 <= u_i <= limit_i exist with sum(step_i u_i) == target, the steps descending; `reach` is
/// sum(step_i limit_i). Gives up when the budget is spent, and says yes.
inline bool sum_is_possible(const Footprint::Term* terms, int count, Index target, Index reach, int& budget) {
  if (target == 0) return true;
  if (target < 0 || target > reach || count == 0) return false;
  if (--budget < 0) return true;
  const auto [step, limit] = *terms;
  const Index rest = reach - step * limit;
  const Index most = target / step < limit ? target / step : limit;
  const Index least = target > rest ? (target - rest + step - 1) / step : 0;
  for (Index u = most; u >= least; --u)
    if (sum_is_possible(terms + 1, count - 1, target - u * step, rest, budget)) return true;
  return false;
}

/// Whether two strided tensors share a byte. Exact, but for layouts so odd that the search is cut short: then it says
/// yes. Interleaved columns, x[:, :n] and x[:, n:], share none.
inline bool share_memory(const Footprint& a, const Footprint& b) {
  if (a.empty || b.empty) return false;
  // a.low + sum(step u) == b.low + sum(step v), with v replaced by limit - v so that everything stands on one side.
  const Index reach = a.span + b.span, target = static_cast<Index>(b.low - a.low) + b.span;
  if (target < 0 || target > reach) return false;
  Footprint::Term terms[2 * Footprint::most];
  int count = 0;
  for (const Footprint* side : {&a, &b})
    for (int i = 0; i < side->count; ++i) {
      int at = 0;  // sorted by descending step; equal steps become one
      while (at < count && terms[at].step > side->terms[i].step) ++at;
      if (at < count && terms[at].step == side->terms[i].step) {
        terms[at].limit += side->terms[i].limit;
        continue;
      }
      for (int k = count++; k > at; --k) terms[k] = terms[k - 1];
      terms[at] = side->terms[i];
    }
  int budget = 4000;
  return sum_is_possible(terms, count, target, reach, budget);
}

}  // namespace diffmamba::detail
