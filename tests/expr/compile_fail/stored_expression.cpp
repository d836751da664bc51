// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: this expression was stored in a variable, and its operands may be gone by now
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<float, 1>& y, const dm::Tensor<float, 1>& x) {
#if defined(MISTAKE)
  auto e = x * 2;
  y = e;
#else
  auto e = x * 2;
  y = std::move(e);
#endif
}
