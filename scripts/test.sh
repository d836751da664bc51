#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds everything and runs all tests. Arguments go to CMake:
#   scripts/test.sh -DDIFFMAMBA_BLAS=ON
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

setup build test
say "configuring"
configure test "$@"
say "building"
build test
say "testing"
ctest --test-dir "$root/build/test" --output-on-failure -j "$(jobs)"
