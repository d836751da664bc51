// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "support/generate.hpp"

int generate_program::run_on_cuda_float32(const WriteOptions& o) {
  return run<diffmamba::cuda, float>(o);
}
