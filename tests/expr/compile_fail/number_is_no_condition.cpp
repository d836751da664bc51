// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: a comparison or tensor of bool is no number and a number no condition
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<float, 1>& y, const dm::Tensor<float, 1>& x) {
#if defined(MISTAKE)
  y = dm::where(x, x, 0);
#else
  y = dm::where(x > 0, x, 0);
#endif
}
