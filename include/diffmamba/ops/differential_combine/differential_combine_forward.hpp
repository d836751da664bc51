// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>        // std::sqrt
#include <type_traits>  // std::true_type

#include "diffmamba/ops/differential_combine/differential_combine.hpp"
#include "diffmamba/ops/row_kernels.hpp"  // for_blocks, row_pointer

namespace diffmamba::differential_combine {
namespace detail {

using namespace diffmamba::detail;

/// One row of the two paths and what is made of it, a block of channels at a time. rstd1 and rstd2 are those of the
/// paths, 1 without a norm before, which the type knows: what is 1 costs nothing.
template <bool Before, class T>
struct DifferenceRow {
  using A = accumulate_t<T>;
  const T *y1, *y2;
  const A *norm_weight, *lambdas;  // lambdas: one for each channel, or null
  A lambda;
  A rstd1 = 1, rstd2 = 1;

  DifferenceRow(const Inputs<T>& in, Index row)
      : y1(row_pointer<const T>(in.y1, row)),
        y2(row_pointer<const T>(in.y2, row)),
        norm_weight(in.norm_weight.data()),
        lambdas(in.lambda && in.lambda.extent(0) != 1 ? in.lambda.data() : nullptr),
        lambda(in.lambda && !lambdas ? *in.lambda.data() : A(1)) {}

  /// lambda of these channels.
  template <class Block>
  ChannelLanes<A> lambda_at(Index c, Block block) const {
    if (lambdas) return block.load(lambdas + c);
    return ChannelLanes<A>::Constant(lambda);
  }
  template <class Block>
  ChannelLanes<A> weight_at(Index c, Block block) const {
    if constexpr (Before) return block.load(norm_weight + c);
    return ChannelLanes<A>::Ones();
  }
  /// Normalised y_1 and y_2, before the weight.
  template <class Block>
  ChannelLanes<A> normalised1(Index c, Block block) const {
    if constexpr (Before) return block.load(y1 + c) * rstd1;
    return block.load(y1 + c);
  }
  template <class Block>
  ChannelLanes<A> normalised2(Index c, Block block) const {
    if constexpr (Before) return block.load(y2 + c) * rstd2;
    return block.load(y2 + c);
  }
  /// n_1 - lambda n_2
  template <class Block>
  ChannelLanes<A> difference(Index c, Block block) const {
    ChannelLanes<A> u = normalised1(c, block) - lambda_at(c, block) * normalised2(c, block);
    if constexpr (Before) u *= weight_at(c, block);
    return u;
  }
};

/// work(before, after) with both as types.
template <class Work>
void with_norms(const Options& options, Work&& work) {
  switch (options.norm) {
    case Norm::after:
      return work(std::false_type{}, std::true_type{});
    case Norm::before:
      return work(std::true_type{}, std::false_type{});
    case Norm::before_and_after:
      return work(std::true_type{}, std::true_type{});
    case Norm::none:
      return work(std::false_type{}, std::false_type{});
  }
}

template <bool Before, bool After, class T>
void combine_rows(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
                  accumulate_t<T>* saved_rstd) {
  using A = accumulate_t<T>;
  const Index channels = in.y1.extent(2), rows = in.y1.extent(0) * in.y1.extent(1);
  const A per_channel = channels > 0 ? A(1) / static_cast<A>(channels) : A(0);
  const A eps = static_cast<A>(options.eps), scale = static_cast<A>(options.scale);
  const Index tile_rows = std::max<Index>(1, (Index{1} << 14) / std::max<Index>(1, channels));

  parallel_for(tiles_of(rows, tile_rows), [&](Index tile) {
    for (Index row = tile * tile_rows; row < std::min(rows, (tile + 1) * tile_rows); ++row) {
      DifferenceRow<Before, T> paths(in, row);
      A rstd = 1;
      if constexpr (Before) {
        ChannelLanes<A> sums1 = ChannelLanes<A>::Zero(), sums2 = ChannelLanes<A>::Zero();
        for_blocks<A>(channels, [&](Index c, auto block) {
          sums1 += block.load(paths.y1 + c).square();
          sums2 += block.load(paths.y2 + c).square();
        });
        paths.rstd1 = A(1) / std::sqrt(sums1.sum() * per_channel + eps);
        paths.rstd2 = A(1) / std::sqrt(sums2.sum() * per_channel + eps);
      }
      if constexpr (After) {
        ChannelLanes<A> sums = ChannelLanes<A>::Zero();
        for_blocks<A>(channels, [&](Index c, auto block) { sums += block.keep(paths.difference(c, block)).square(); });
        rstd = A(1) / std::sqrt(sums.sum() * per_channel + eps);
      }
      T* const out = row_pointer<T>(outputs.out, row);
      for_blocks<A>(channels, [&](Index c, auto block) {
        ChannelLanes<A> y = paths.difference(c, block) * (rstd * scale);
        if constexpr (After) y *= block.load(in.subln_weight.data() + c);
        block.store(out + c, y);
      });
      if (saved_rstd) {
        A* const kept = saved_rstd + 3 * row;
        kept[0] = paths.rstd1;
        kept[1] = paths.rstd2;
        kept[2] = rstd;
      }
    }
  });
}

}  // namespace detail

/// Writes into the caller's memory; with `saved` null (inference) it allocates nothing, otherwise only when saved has
/// another shape than before.
template <class T>
void forward(const Inputs<T>& in, const Options& options, const OutputViews<T>& outputs,
             std::type_identity_t<Saved<T>>* saved) {
  using A = accumulate_t<T>;
  check(in, options, outputs);
  if (saved) {
    saved->options = options;
    reuse_or_allocate(saved->rstd, Extents{in.y1.extent(0), in.y1.extent(1), Index{3}});
  }
  A* const rstd = saved ? saved->rstd.data() : nullptr;
  detail::with_norms(options, [&](auto before, auto after) {
    detail::combine_rows<before.value, after.value, T>(in, options, outputs, rstd);
  });
}

template <class T, Device DeviceType = cpu>
Outputs<T, DeviceType> forward(const Inputs<T, DeviceType>& in, const Options& options = {}) {
  Outputs<T, DeviceType> result;
  result.out = Tensor<T, 3, DeviceType>::uninitialized(in.y1.extents());
  forward<T>(in, options, OutputViews<T, DeviceType>{.out = result.out}, &result.saved);
  return result;
}

}  // namespace diffmamba::differential_combine
