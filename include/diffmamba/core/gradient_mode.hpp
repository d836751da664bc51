// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace diffmamba {

/// What a backward pass does with the gradients of parameters (weights, biases, A, D, dt_bias): write them over what is
/// there, or add to it, as a training step does that accumulates. Gradients of activations are always assigned.
enum class GradientMode { assign, add };

}  // namespace diffmamba
