// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// expect: operands live on different devices
#include "diffmamba/expr/expr.hpp"

namespace dm = diffmamba;

void statement(dm::Tensor<float, 1>& y, const dm::Tensor<float, 1>& x, dm::View<const float, 1, dm::cuda> on_gpu) {
#if defined(MISTAKE)
  y = x * on_gpu;
#else
  y = x * y;
  (void)on_gpu;
#endif
}
