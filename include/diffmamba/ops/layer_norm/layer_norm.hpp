// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::type_identity_t

#include "diffmamba/ops/rms_norm/rms_norm.hpp"  // the same inputs, outputs and options

/// Layer normalisation (arXiv 1607.06450), fused with the addition of the residual stream like rms_norm, whose inputs,
/// outputs, options and gradients it shares:
///
///   r    = rowscale * x + x1 + residual
///   out  = scale * ((r - mean(r)) / sqrt(var(r) + eps) * weight + bias)         (biased variance, over the channels)
///   out1 = the same normalised row with weight1 and bias1
namespace diffmamba::layer_norm {

using rms_norm::Gradients;
using rms_norm::GradientViews;
using rms_norm::Inputs;
using rms_norm::Options;
using rms_norm::OutputGradients;
using rms_norm::OutputViews;

/// Mean and 1 / sqrt(var + eps) of each row: 8 bytes per token (16 in double).
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options = {};
  Tensor<accumulate_t<T>, 2, DeviceType> mean = {};  // (batch, length)
  Tensor<accumulate_t<T>, 2, DeviceType> rstd = {};  // (batch, length)
};

template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 3, DeviceType> out;
  Tensor<accumulate_t<T>, 3, DeviceType> residual_out;
  Tensor<T, 3, DeviceType> out1;
  Saved<T, DeviceType> saved;
};

// layer_norm_forward.hpp
//   Outputs forward(in, options = {});
//   void forward(in, options, outputs, Saved* saved);                       saved null: inference
// layer_norm_backward.hpp
//   Gradients backward(in, saved, {.dout = ..., .dresidual_out = ...});
//   void backward(in, saved, upstream, gradients, workspace, mode = GradientMode::assign);
//   std::size_t workspace_bytes(in);                                        of backward; forward needs none

// On a GPU, defined in layer_norm_forward.cuh and layer_norm_backward.cuh.
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved);
using rms_norm::workspace_bytes;
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode = GradientMode::assign);

}  // namespace diffmamba::layer_norm
