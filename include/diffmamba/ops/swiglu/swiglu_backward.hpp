// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/swiglu/swiglu_forward.hpp"  // detail::tile_rows

namespace diffmamba::swiglu {

/// dx = dout silu(z), dz = dout x silu'(z)
template <class T>
void backward(const Inputs<T>& in, const std::type_identity_t<View<const T, 3>>& dout,
              const std::type_identity_t<GradientViews<T>>& gradients) {
  using A = accumulate_t<T>;
  using Lanes = detail::ChannelLanes<A>;
  check(in, dout, gradients);
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  const Index tile_rows = detail::tile_rows(channels);
  parallel_for(tiles_of(rows, tile_rows), [&](Index tile) {
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row) {
      const T* const x = detail::row_pointer<const T>(in.x, row);
      const T* const z = detail::row_pointer<const T>(in.z, row);
      const T* const d = detail::row_pointer<const T>(dout, row);
      T* const dx = gradients.dx ? detail::row_pointer<T>(gradients.dx, row) : nullptr;
      T* const dz = gradients.dz ? detail::row_pointer<T>(gradients.dz, row) : nullptr;
      detail::for_blocks<A>(channels, [&](Index c, auto block) {
        const Lanes gate = block.load(z + c), s = detail::sigmoid(gate), up = block.load(d + c), xs = block.load(x + c);
        if (dx) block.store(dx + c, Lanes(up * gate * s));
        if (dz) block.store(dz + c, Lanes(up * xs * detail::silu_derivative(gate, s)));
      });
    }
  });
}

template <class T, Device DeviceType = cpu>
Gradients<T, DeviceType> backward(const Inputs<T, DeviceType>& in,
                                  const std::type_identity_t<View<const T, 3, DeviceType>>& dout) {
  Gradients<T, DeviceType> result;
  result.dx = Tensor<T, 3, DeviceType>::uninitialized(in.x.extents());
  result.dz = Tensor<T, 3, DeviceType>::uninitialized(in.x.extents());
  backward(in, dout, GradientViews<T, DeviceType>{.dx = result.dx, .dz = result.dz});
  return result;
}

}  // namespace diffmamba::swiglu
