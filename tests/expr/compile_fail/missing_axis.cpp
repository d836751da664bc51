// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: axis<...> names an axis that the operand does not have, or one axis twice
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<float, 1>& y, const dm::Tensor<float, 2>& x) {
#if defined(MISTAKE)
  y = dm::sum(x, dm::axis<2>);
#else
  y = dm::sum(x, dm::axis<-1>);
#endif
}
