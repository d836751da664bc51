// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/core/error.hpp"

#include <doctest/doctest.h>

#include "diffmamba/tensor/extents.hpp"

using namespace diffmamba;

TEST_CASE("a failed check says everything in one sentence") {
  CHECK_THROWS_WITH_AS(fail("ssd: B has d_state ", 32, " but C has ", 64, " (B: ", Extents{2, 1, 32}, ")"),
                       "ssd: B has d_state 32 but C has 64 (B: (2, 1, 32))", Error);
  CHECK_THROWS_WITH_AS(require(false, "x is ", 1.5), "x is 1.5", Error);
  CHECK_NOTHROW(require(true, "not formatted"));
  try {
    fail("caught as the standard's");
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()) == "caught as the standard's");
  }
}
