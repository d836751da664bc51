// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/layer_norm/layer_norm.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.cuh"  // the rows of both norms

namespace diffmamba::layer_norm {

template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options, const OutputViews<T, cuda>& outputs,
             std::type_identity_t<Saved<T, cuda>>* saved) {
  rms_norm::check(in, options, outputs, "layer_norm");
  View<accumulate_t<T>, 2, cuda> mean, rstd;
  if (saved) {
    const Extents<2> rows{in.x.extent(0), in.x.extent(1)};
    saved->options = options;
    reuse_or_allocate(saved->mean, rows);
    reuse_or_allocate(saved->rstd, rows);
    mean = saved->mean;
    rstd = saved->rstd;
  }
  rms_norm::detail::launch_forward<true>(in, options, outputs, mean, rstd);
}

}  // namespace diffmamba::layer_norm
