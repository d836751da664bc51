// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::is_same_v

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/math/sigmoid.hpp"

namespace diffmamba {

/// sigmoid(x) for results that are rounded to T: for the 16-bit types by the GPU's approximate exponential and division
/// (about 1e-6 relative), else the formula of math/sigmoid.hpp.
template <class T>
__device__ inline accumulate_t<T> sigmoid_for(accumulate_t<T> x) {
  if constexpr (std::is_same_v<T, bfloat16> || std::is_same_v<T, half>)
    return __fdividef(1.0f, 1.0f + __expf(-x));
  else
    return sigmoid(x);
}

}  // namespace diffmamba
