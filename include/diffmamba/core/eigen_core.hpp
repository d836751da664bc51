// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/core/config.hpp"  // EIGEN_NO_CUDA under nvcc, which must come before Eigen

// The library includes Eigen here and nowhere else. g++ 12 takes the deliberately undefined operands inside its own
// AVX-512 intrinsics for mistakes (GCC bug 105593) and, though these are system headers, says so to whoever compiles a
// function that they were inlined into. What silences it is the setting at the lines of the intrinsics, so it has to be
// made where they are included, which is here unless a program includes them before us.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <Eigen/Core>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
