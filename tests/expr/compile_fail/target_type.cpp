// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: the expression computes in double and the target is float or less, or the reverse
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<float, 1>& y, const dm::Tensor<double, 1>& x) {
#if defined(MISTAKE)
  y = x * 2;
#else
  y = dm::cast<float>(x * 2);
#endif
}
