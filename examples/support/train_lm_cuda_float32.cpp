// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "support/train_lm.hpp"

int train_lm::run_on_cuda_float32(TrainOptions& o, const diffmamba::Json& given) {
  return run<diffmamba::cuda, float>(o, given);
}
