// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "everything.hpp"

namespace two {
const void* arena_seen_here();
}

// Inline variables and function-local statics are one object in the whole program.
int main() {
  return two::arena_seen_here() == &diffmamba::arena<diffmamba::cpu>() ? 0 : 1;
}
