// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_layer_norm/gated_layer_norm.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"  // the groups of both norms

namespace diffmamba::gated_layer_norm {

/// Writes into the caller's memory; with `saved` null (inference) it allocates nothing, otherwise only when saved has
/// another shape than before.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
             std::type_identity_t<Saved<T>>* saved) {
  gated_rms_norm::check(in, options, outputs, "gated_layer_norm");
  View<accumulate_t<T>, 3> mean, rstd;
  if (saved) {
    const Extents<3> groups{in.x.extent(0), in.x.extent(1), gated_rms_norm::group_count(in.x.extent(2), options)};
    saved->options = options;
    reuse_or_allocate(saved->mean, groups);
    reuse_or_allocate(saved->rstd, groups);
    mean = saved->mean;
    rstd = saved->rstd;
  }
  gated_rms_norm::detail::gated_norm_forward<true, T>(in, options, outputs, mean, rstd);
}

template <class T, Device DeviceType = cpu>
Outputs<T, DeviceType> forward(const Inputs<T, DeviceType>& in, const Options& options = {}) {
  Outputs<T, DeviceType> result;
  result.out = Tensor<T, 3, DeviceType>::uninitialized(in.x.extents());
  gated_layer_norm::forward<T>(in, options, OutputViews<T, DeviceType>{.out = result.out}, &result.saved);
  return result;
}

}  // namespace diffmamba::gated_layer_norm
