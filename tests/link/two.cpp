// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "everything.hpp"

namespace two {
const void* arena_seen_here();
const void* arena_seen_here() {
  return &diffmamba::arena<diffmamba::cpu>();
}
}  // namespace two
