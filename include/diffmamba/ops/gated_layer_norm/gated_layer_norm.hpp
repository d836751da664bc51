// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::type_identity_t

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm.hpp"  // the same inputs, outputs and options

/// Layer normalisation of groups of consecutive channels, with a gate: gated_rms_norm, whose inputs, outputs, options
/// and gradients it shares, with
///
///   norm(u) = (u - mean(u)) / sqrt(var(u) + eps)                              (over u's group, biased variance)
namespace diffmamba::gated_layer_norm {

using gated_rms_norm::Gradients;
using gated_rms_norm::GradientViews;
using gated_rms_norm::Inputs;
using gated_rms_norm::Options;
using gated_rms_norm::OutputGradients;
using gated_rms_norm::OutputViews;

/// Mean and 1 / sqrt(var + eps) of each group: 8 bytes per token and group (16 in double).
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options = {};
  Tensor<accumulate_t<T>, 3, DeviceType> mean = {};  // (batch, length, groups)
  Tensor<accumulate_t<T>, 3, DeviceType> rstd = {};  // (batch, length, groups)
};

template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 3, DeviceType> out;
  Saved<T, DeviceType> saved;
};

// gated_layer_norm_forward.hpp
//   Outputs forward(in, options = {});
//   void forward(in, options, outputs, Saved* saved);                       saved null: inference
// gated_layer_norm_backward.hpp
//   Gradients backward(in, saved, {.dout = ...});
//   void backward(in, saved, upstream, gradients, workspace, mode = GradientMode::assign);
//   std::size_t workspace_bytes(in);                                        of backward; forward needs none

// On a GPU, defined in gated_layer_norm_forward.cuh and gated_layer_norm_backward.cuh.
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved);
using gated_rms_norm::workspace_bytes;
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode = GradientMode::assign);

}  // namespace diffmamba::gated_layer_norm
