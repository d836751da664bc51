// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: an expression is assigned to a tensor of its own rank; assign(target, expression) broadcasts
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<float, 2>& y, const dm::Tensor<float, 1>& row) {
#if defined(MISTAKE)
  y = row * 2;
#else
  dm::assign(y, row * 2);
#endif
}
