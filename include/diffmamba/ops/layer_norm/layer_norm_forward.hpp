// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/layer_norm/layer_norm.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"  // the rows of both norms

namespace diffmamba::layer_norm {

/// Writes into the caller's memory; with `saved` null (inference) it allocates nothing, otherwise only when saved has
/// another shape than before.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
             std::type_identity_t<Saved<T>>* saved) {
  rms_norm::check(in, options, outputs, "layer_norm");
  View<accumulate_t<T>, 2> mean, rstd;
  if (saved) {
    const Extents<2> rows{in.x.extent(0), in.x.extent(1)};
    saved->options = options;
    reuse_or_allocate(saved->mean, rows);
    reuse_or_allocate(saved->rstd, rows);
    mean = saved->mean;
    rstd = saved->rstd;
  }
  rms_norm::detail::add_norm_forward<true, T>(in, options, outputs, mean, rstd);
}

template <class T, Device DeviceType = cpu>
Outputs<T, DeviceType> forward(const Inputs<T, DeviceType>& in, const Options& options = {}) {
  rms_norm::check(in, options, "layer_norm");
  Outputs<T, DeviceType> result;
  rms_norm::detail::allocate_outputs(in, options, result);
  layer_norm::forward<T>(in, options, rms_norm::detail::views_of<T, DeviceType>(result), &result.saved);
  return result;
}

}  // namespace diffmamba::layer_norm
