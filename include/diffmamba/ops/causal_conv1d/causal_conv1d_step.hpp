// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::copy

#include "diffmamba/ops/causal_conv1d/causal_conv1d.hpp"
#include "diffmamba/ops/row_kernels.hpp"  // for_blocks

namespace diffmamba::causal_conv1d {

/// Advances `conv_state` in place by the tokens of `in` and writes their outputs; see StepInputs. Allocates nothing.
template <class T>
void step(const StepInputs<T>& in, const std::type_identity_t<View<accumulate_t<T>, 3>>& conv_state,
          const Options& options, const std::type_identity_t<View<T, 3>>& out) {
  using A = accumulate_t<T>;
  using diffmamba::detail::ChannelLanes;
  check(in, conv_state, out);
  const Index batch = in.x.extent(0), tokens = in.x.extent(1), channels = in.x.extent(2);
  const Index width = in.weight.extent(1), size = conv_state.extent(2), slots = conv_state.extent(0);
  for (Index b = 0; b < batch; ++b) {
    require(!in.cache_seqlens || in.cache_seqlens(b) >= 0, "causal_conv1d::step: cache_seqlens[", b, "] is ",
            in.cache_seqlens ? in.cache_seqlens(b) : 0, ", expected 0 or more");
    require(!in.conv_state_indices || (in.conv_state_indices(b) >= -1 && in.conv_state_indices(b) < slots),
            "causal_conv1d::step: conv_state_indices[", b, "] is ",
            in.conv_state_indices ? in.conv_state_indices(b) : 0, ", expected -1 (padding) or a slot below ", slots);
  }
  require(!in.cache_seqlens || size > 0, "causal_conv1d::step: a ring of no columns holds no input");

  constexpr Index strip_channels = 512;
  const Index strips = tiles_of(channels, strip_channels);
  parallel_for(batch * strips, [&](Index tile) {
    const Index c0 = tile % strips * strip_channels, b = tile / strips;
    const Index slot = in.conv_state_indices ? in.conv_state_indices(b) : b;
    diffmamba::detail::for_blocks<A>(std::min(channels - c0, strip_channels), [&](Index i, auto block) {
      const Index c = c0 + i;
      const A* const weight = in.weight.pointer(c);
      A* const state = slot >= 0 ? conv_state.pointer(slot, c) : nullptr;
      const Index next = conv_state.stride(1);  // from channel to channel
      for (Index t = 0; t < tokens; ++t) {
        T* const y = out.pointer(b, t, c);
        if (!state) {
          block.store(y, ChannelLanes<A>(ChannelLanes<A>::Zero()));
          continue;
        }
        const ChannelLanes<A> now = block.load(in.x.pointer(b, t, c));
        const Index count = in.cache_seqlens ? in.cache_seqlens(b) + t : 0;  // inputs before this one
        ChannelLanes<A> sum = block.gather(weight + width - 1, in.weight.stride(0)) * now;
        if (in.bias) sum += block.load(in.bias.data() + c);
        for (Index w = 0; w + 1 < width; ++w) {
          // The input width - 1 - w tokens ago. A ring that is not yet full has not seen the columns before 0.
          const Index column = in.cache_seqlens ? (count + size - (width - 1) + w) % size : size - (width - 1) + w;
          sum +=
              block.gather(weight + w, in.weight.stride(0)) * block.gather(static_cast<const A*>(state + column), next);
        }
        if (in.cache_seqlens) {
          block.scatter(state + count % size, next, now);
        } else if (size > 0) {
          const Index lanes = std::min(diffmamba::detail::lane_count<A>, channels - c);
          for (Index lane = 0; lane < lanes; ++lane) {
            A* const columns = state + lane * next;
            std::copy(columns + 1, columns + size, columns);
          }
          block.scatter(state + size - 1, next, now);
        }
        if (options.activation == Activation::silu) sum *= diffmamba::detail::sigmoid(sum);
        block.store(y, sum);
      }
    });
  });
}

/// The outputs in new memory, (batch, tokens, channels), on either device.
template <class T, Device D = cpu>
Tensor<T, 3, D> step(const StepInputs<T, D>& in, const std::type_identity_t<View<accumulate_t<T>, 3, D>>& conv_state,
                     const Options& options = {}) {
  auto out = Tensor<T, 3, D>::uninitialized(in.x.extents());
  step<T>(in, conv_state, options, out);
  return out;
}

}  // namespace diffmamba::causal_conv1d
