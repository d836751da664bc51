// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::int64_t

// Version, and the few macros that every header reads. No macro here changes a layout or a function body between
// translation units, except DIFFMAMBA_BLAS, which chooses who multiplies matrices and must be the same everywhere.

#define DIFFMAMBA_VERSION_MAJOR 0
#define DIFFMAMBA_VERSION_MINOR 1
#define DIFFMAMBA_VERSION_PATCH 0

// The formula of one element is one function for both devices (host and device).
#if defined(__CUDACC__)
#define DIFFMAMBA_HOST_DEVICE __host__ __device__
#else
#define DIFFMAMBA_HOST_DEVICE
#endif

// Under nvcc Eigen turns its SIMD off, host code included, unless EIGEN_NO_CUDA is defined before its first include.
#if defined(__CUDACC__) && !defined(EIGEN_NO_CUDA)
#if defined(EIGEN_CORE_H) || defined(EIGEN_CORE_MODULE_H)
#error "diffmamba: Eigen was included before diffmamba without EIGEN_NO_CUDA; define it for all CUDA sources"
#endif
#define EIGEN_NO_CUDA
#endif

namespace diffmamba {

/// Sizes, strides and offsets: 64-bit everywhere, so that a tensor of more than 2^32 elements is an ordinary tensor.
using Index = std::int64_t;

}  // namespace diffmamba
