// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_layer_norm/gated_layer_norm.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.cuh"  // the groups of both norms

namespace diffmamba::gated_layer_norm {

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved) {
  gated_rms_norm::check(in, options, outputs, "gated_layer_norm");
  View<accumulate_t<T>, 3, cuda> mean, rstd;
  if (saved) {
    const Extents<3> groups{in.x.extent(0), in.x.extent(1), gated_rms_norm::group_count(in.x.extent(2), options)};
    saved->options = options;
    reuse_or_allocate(saved->mean, groups);
    reuse_or_allocate(saved->rstd, groups);
    mean = saved->mean;
    rstd = saved->rstd;
  }
  gated_rms_norm::detail::launch_forward<true>(in, options, outputs, mean, rstd);
}

}  // namespace diffmamba::gated_layer_norm
