// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: float and double do not mix in one expression
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<double, 1>& y, const dm::Tensor<float, 1>& x, const dm::Tensor<double, 1>& w) {
#if defined(MISTAKE)
  y = x * w;
#else
  y = dm::cast<double>(x) * w;
#endif
}
