// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/row_kernels.hpp"  // for_blocks, row_pointer
#include "diffmamba/ops/swiglu/swiglu.hpp"

namespace diffmamba::swiglu {
namespace detail {

using namespace diffmamba::detail;

/// Rows of one tile: enough work for a thread.
inline Index tile_rows(Index channels) {
  return std::max<Index>(1, (Index{1} << 14) / std::max<Index>(1, channels));
}

}  // namespace detail

template <class T>
void forward(const Inputs<T>& in, const std::type_identity_t<View<T, 3>>& out) {
  using A = accumulate_t<T>;
  check(in, out);
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  const Index tile_rows = detail::tile_rows(channels);
  parallel_for(tiles_of(rows, tile_rows), [&](Index tile) {
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row) {
      const T* const x = detail::row_pointer<const T>(in.x, row);
      const T* const z = detail::row_pointer<const T>(in.z, row);
      T* const to = detail::row_pointer<T>(out, row);
      detail::for_blocks<A>(channels, [&](Index c, auto block) {
        const detail::ChannelLanes<A> gate = block.load(z + c);
        block.store(to + c, detail::ChannelLanes<A>(block.load(x + c) * gate * detail::sigmoid(gate)));
      });
    }
  });
}

template <class T, Device DeviceType = cpu>
Tensor<T, 3, DeviceType> forward(const Inputs<T, DeviceType>& in) {
  auto out = Tensor<T, 3, DeviceType>::uninitialized(in.x.extents());
  forward(in, out.view());
  return out;
}

}  // namespace diffmamba::swiglu
