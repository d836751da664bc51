// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>  // std::floating_point

#include "diffmamba/core/config.hpp"

namespace diffmamba {

/// True for Lanes (math/lanes.hpp): several numbers that are computed together, one SIMD register of them.
template <class V>
inline constexpr bool is_lanes = false;

/// What the formulas of this floor are written for: one number, or several in a register. A formula uses + - * /,
/// comparisons with select, and other functions of this floor, without naming std::, so that the one text serves a
/// scalar loop, a GPU kernel and the vectorised CPU.
template <class V>
concept Real = std::floating_point<V> || is_lanes<V>;

/// condition ? yes : no, with both sides computed; also lane by lane.
template <std::floating_point T>
DIFFMAMBA_HOST_DEVICE inline T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

}  // namespace diffmamba
