// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Training and generation with their GPU definitions, for a source that nvcc compiles and that links no
// diffmamba::cuda_instantiated.

#include "diffmamba/diffmamba.cuh"
#include "diffmamba/generate/device_sampler.cuh"
#include "diffmamba/train.hpp"
#include "diffmamba/train/device_update.cuh"
