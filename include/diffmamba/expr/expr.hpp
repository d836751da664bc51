// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Lazy arithmetic of tensors: everything of this floor.

#include "diffmamba/expr/arithmetic.hpp"
#include "diffmamba/expr/evaluate.hpp"
#include "diffmamba/expr/reduce.hpp"
