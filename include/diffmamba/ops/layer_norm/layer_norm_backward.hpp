// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/layer_norm/layer_norm.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"  // the derivation and the rows of both norms

namespace diffmamba::layer_norm {

using rms_norm::workspace_bytes;

/// Writes into the caller's memory and allocates nothing.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  rms_norm::check(in, saved.options, upstream, gradients, "layer_norm");
  const Extents<2> rows{in.x.extent(0), in.x.extent(1)};
  require_shape("layer_norm", "saved.mean", saved.mean.view(), rows);
  require_shape("layer_norm", "saved.rstd", saved.rstd.view(), rows);
  rms_norm::detail::add_norm_backward<true, T>(in, saved.options, saved.mean, saved.rstd, upstream, gradients,
                                               workspace, mode);
}

template <class T, Device DeviceType = cpu>
Gradients<T, DeviceType> backward(const Inputs<T, DeviceType>& in, const Saved<T, DeviceType>& saved,
                                  const std::type_identity_t<OutputGradients<T, DeviceType>>& upstream) {
  rms_norm::check(in, saved.options, upstream, GradientViews<T, DeviceType>{}, "layer_norm");
  auto result = rms_norm::detail::allocate_gradients(in);
  Workspace<DeviceType> workspace(workspace_bytes(in));
  layer_norm::backward<T>(in, saved, upstream, rms_norm::detail::views_of(result), workspace);
  return result;
}

}  // namespace diffmamba::layer_norm
