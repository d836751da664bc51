// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: this expression was stored in a variable, and its operands may be gone by now
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

dm::Tensor<float, 1> made();

void statement(dm::Tensor<float, 1>& y, const dm::Tensor<float, 1>& x) {
#if defined(MISTAKE)
  auto e = x + made();
  dm::Tensor<float, 1> z = e;
  y = z * 1;
#else
  y = x + made();
#endif
}
