// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: the target of an assignment is read only
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::View<float, 1> y, dm::View<const float, 1> x) {
#if defined(MISTAKE)
  dm::assign(x, y * 2);
#else
  dm::assign(y, x * 2);
#endif
}
