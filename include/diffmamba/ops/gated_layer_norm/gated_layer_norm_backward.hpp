// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_layer_norm/gated_layer_norm.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"  // the derivation and the groups of both norms

namespace diffmamba::gated_layer_norm {

using gated_rms_norm::workspace_bytes;

/// Writes into the caller's memory and allocates nothing.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  gated_rms_norm::check(in, saved.options, upstream, gradients, "gated_layer_norm");
  const Extents<3> groups{in.x.extent(0), in.x.extent(1), gated_rms_norm::group_count(in.x.extent(2), saved.options)};
  require_shape("gated_layer_norm", "saved.mean", saved.mean.view(), groups);
  require_shape("gated_layer_norm", "saved.rstd", saved.rstd.view(), groups);
  gated_rms_norm::detail::gated_norm_backward<true, T>(in, saved.options, saved.mean, saved.rstd, upstream, gradients,
                                                       workspace, mode);
}

template <class T, Device DeviceType = cpu>
Gradients<T, DeviceType> backward(const Inputs<T, DeviceType>& in, const Saved<T, DeviceType>& saved,
                                  const std::type_identity_t<OutputGradients<T, DeviceType>>& upstream) {
  auto result = gated_rms_norm::detail::allocate_gradients(in);
  Workspace<DeviceType> workspace(workspace_bytes(in));
  gated_layer_norm::backward<T>(in, saved, upstream, gated_rms_norm::detail::views_of(result), workspace);
  return result;
}

}  // namespace diffmamba::gated_layer_norm
