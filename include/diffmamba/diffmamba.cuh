// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

/// diffmamba.hpp and what it needs on an NVIDIA GPU, header-only: for sources that nvcc compiles. A program whose
/// sources are .cpp files includes diffmamba.hpp alone and links diffmamba::cuda_instantiated. The library itself never
/// includes this header.
#include "diffmamba/diffmamba.hpp"

// Streams, graphs, memory, tensors
#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/event.cuh"
#include "diffmamba/device/graph.cuh"
#include "diffmamba/device/pinned.cuh"
#include "diffmamba/tensor/copy.cuh"

// Expressions
#include "diffmamba/expr/evaluate.cuh"

// Operators, forward and backward
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.cuh"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.cuh"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.cuh"
#include "diffmamba/ops/cross_entropy/cross_entropy_backward.cuh"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.cuh"
#include "diffmamba/ops/differential_combine/differential_combine_backward.cuh"
#include "diffmamba/ops/differential_combine/differential_combine_forward.cuh"
#include "diffmamba/ops/differential_combine/lambda.cuh"
#include "diffmamba/ops/dropout/dropout_forward.cuh"
#include "diffmamba/ops/embedding/embedding_backward.cuh"
#include "diffmamba/ops/embedding/embedding_forward.cuh"
#include "diffmamba/ops/fold_difference/fold_difference_backward.cuh"
#include "diffmamba/ops/fold_difference/fold_difference_forward.cuh"
#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_backward.cuh"
#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_forward.cuh"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.cuh"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.cuh"
#include "diffmamba/ops/layer_norm/layer_norm_backward.cuh"
#include "diffmamba/ops/layer_norm/layer_norm_forward.cuh"
#include "diffmamba/ops/linear/linear_backward.cuh"
#include "diffmamba/ops/matmul/matmul_forward.cuh"
#include "diffmamba/ops/normed_linear/normed_linear_forward.cuh"
#include "diffmamba/ops/rms_norm/rms_norm_backward.cuh"
#include "diffmamba/ops/rms_norm/rms_norm_forward.cuh"
#include "diffmamba/ops/selective_scan/selective_scan_backward.cuh"
#include "diffmamba/ops/selective_scan/selective_scan_forward.cuh"
#include "diffmamba/ops/selective_scan/selective_scan_step.cuh"
#include "diffmamba/ops/ssd/segsum.cuh"
#include "diffmamba/ops/ssd/ssd_backward.cuh"
#include "diffmamba/ops/ssd/ssd_forward.cuh"
#include "diffmamba/ops/ssd/ssd_minimal.cuh"
#include "diffmamba/ops/ssd/ssd_step.cuh"
#include "diffmamba/ops/swiglu/swiglu_backward.cuh"
#include "diffmamba/ops/swiglu/swiglu_forward.cuh"

// Mixers
#include "diffmamba/nn/parameter.cuh"
#include "diffmamba/nn/scan_parts.cuh"
