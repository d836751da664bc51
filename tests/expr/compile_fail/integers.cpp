// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: expressions compute in float or double; convert integers with cast<float>(...)
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<float, 1>& y, const dm::Tensor<std::int32_t, 1>& ids) {
#if defined(MISTAKE)
  y = ids * 2;
#else
  y = dm::cast<float>(ids) * 2;
#endif
}
