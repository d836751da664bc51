// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_layer_norm/gated_layer_norm.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.cuh"  // the groups of both norms

namespace diffmamba::gated_layer_norm {

template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  gated_rms_norm::check(in, saved.options, upstream, gradients, "gated_layer_norm");
  const Extents<3> groups{in.x.extent(0), in.x.extent(1), gated_rms_norm::group_count(in.x.extent(2), saved.options)};
  require_shape("gated_layer_norm", "saved.mean", saved.mean.view(), groups);
  require_shape("gated_layer_norm", "saved.rstd", saved.rstd.view(), groups);
  gated_rms_norm::detail::launch_backward<true, T>(in, saved.options, saved.mean, saved.rstd, upstream, gradients,
                                                   workspace, mode);
}

}  // namespace diffmamba::gated_layer_norm
