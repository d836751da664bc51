// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/layer_norm/layer_norm.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.cuh"  // the rows of both norms

namespace diffmamba::layer_norm {

template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  rms_norm::check(in, saved.options, upstream, gradients, "layer_norm");
  const Extents<2> rows{in.x.extent(0), in.x.extent(1)};
  require_shape("layer_norm", "saved.mean", saved.mean.view(), rows);
  require_shape("layer_norm", "saved.rstd", saved.rstd.view(), rows);
  rms_norm::detail::launch_backward<true, T>(in, saved.options, saved.mean, saved.rstd, upstream, gradients, workspace,
                                             mode);
}

}  // namespace diffmamba::layer_norm
