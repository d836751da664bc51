// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything from tensors to language models in memory; needs nothing but Eigen. Files and checkpoints come with
/// io.hpp, the trainer with train.hpp. The library itself never includes this header.

// Tensors and lazy arithmetic
#include "diffmamba/expr/expr.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/tensor.hpp"

// Operators, forward and backward
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_backward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"
#include "diffmamba/ops/dropout/dropout_backward.hpp"
#include "diffmamba/ops/dropout/dropout_forward.hpp"
#include "diffmamba/ops/embedding/embedding_backward.hpp"
#include "diffmamba/ops/embedding/embedding_forward.hpp"
#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_backward.hpp"
#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_forward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_backward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_forward.hpp"
#include "diffmamba/ops/linear/linear_backward.hpp"
#include "diffmamba/ops/linear/linear_forward.hpp"
#include "diffmamba/ops/matmul/matmul_forward.hpp"
#include "diffmamba/ops/normed_linear/normed_linear.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_step.hpp"
#include "diffmamba/ops/ssd/segsum.hpp"
#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/ops/ssd/ssd_minimal.hpp"
#include "diffmamba/ops/ssd/ssd_step.hpp"

// Mixers, differential mixers, blocks
#include "diffmamba/nn/block.hpp"
#include "diffmamba/nn/diff_mamba2e.hpp"
#include "diffmamba/nn/diff_s6.hpp"
#include "diffmamba/nn/diff_s6_mamba2.hpp"
#include "diffmamba/nn/differential.hpp"
#include "diffmamba/nn/mamba.hpp"
#include "diffmamba/nn/mamba2.hpp"

// Language models
#include "diffmamba/model/conversion.hpp"
#include "diffmamba/model/language_model.hpp"
