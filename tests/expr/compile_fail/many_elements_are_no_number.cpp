// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: only an expression of one element is a number
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(float& s, const dm::Tensor<float, 1>& x) {
#if defined(MISTAKE)
  s = (x * 2).value();
#else
  s = dm::max(x * 2).value();
#endif
}
