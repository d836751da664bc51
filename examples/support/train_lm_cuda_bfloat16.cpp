// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "support/train_lm.hpp"

int train_lm::run_on_cuda_bfloat16(TrainOptions& o, const diffmamba::Json& given) {
  return run<diffmamba::cuda, diffmamba::bfloat16>(o, given);
}
