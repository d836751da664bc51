// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::min, std::max
#include <cstddef>      // std::size_t
#include <type_traits>  // std::is_same_v

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/eigen_core.hpp"
#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/parallel.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/tensor/view.hpp"

// What the operators that walk over rows of channels (convolution, norms, gates) are made of: a register's worth of
// channels at a time, rows in fixed tiles, and sums over rows in a fixed order.
namespace diffmamba::detail {

/// Channels that are computed together: 64 bytes of the type of sums, whatever the machine's registers are. Not Lanes
/// (math/lanes.hpp), which are one register: these operators walk down the rows with a block of channels at a time, so
/// that a block narrower than a line of memory would fetch every line again, and an array of Eigen's is as many
/// registers as a line takes.
template <class A>
inline constexpr Index lane_count = static_cast<Index>(64 / sizeof(A));
template <class A>
using ChannelLanes = Eigen::Array<A, static_cast<int>(lane_count<A>), 1>;

/// All lanes of a block are channels. Unlike a dynamic Eigen map, a fixed one is never peeled to an aligned address, so
/// the bits of a result do not depend on where a caller's memory happens to lie.
struct FullBlock {
  template <class T, class A = accumulate_t<T>>
  static ChannelLanes<A> load(const T* from) {
    if constexpr (std::is_same_v<T, A>) {
      return Eigen::Map<const ChannelLanes<A>>(from);
    } else {
      ChannelLanes<A> result;
      for (Index i = 0; i < lane_count<A>; ++i) result.data()[i] = static_cast<A>(from[i]);
      return result;
    }
  }
  template <class T, class A>
  static void store(T* to, const ChannelLanes<A>& values) {
    if constexpr (std::is_same_v<T, A>)
      Eigen::Map<ChannelLanes<A>>{to} = values;
    else
      for (Index i = 0; i < lane_count<A>; ++i) to[i] = T(values.data()[i]);
  }
  /// Elements that lie `stride` apart, as the channels of a (channels, width) state do.
  template <class A>
  static ChannelLanes<A> gather(const A* from, Index stride) {
    ChannelLanes<A> result;
    for (Index i = 0; i < lane_count<A>; ++i) result.data()[i] = from[i * stride];
    return result;
  }
  template <class A>
  static void scatter(A* to, Index stride, const ChannelLanes<A>& values) {
    for (Index i = 0; i < lane_count<A>; ++i) to[i * stride] = values.data()[i];
  }
  /// The values with 0 in lanes that are no channels.
  template <class A>
  static const ChannelLanes<A>& keep(const ChannelLanes<A>& values) {
    return values;
  }
};

/// The last channels of a row, fewer than the lanes. The other lanes load as 0 and are not stored.
struct TailBlock {
  Index count;

  template <class T, class A = accumulate_t<T>>
  ChannelLanes<A> load(const T* from) const {
    return gather_as<A>(from, 1);
  }
  template <class T, class A>
  void store(T* to, const ChannelLanes<A>& values) const {
    for (Index i = 0; i < count; ++i) to[i] = T(values.data()[i]);
  }
  template <class A>
  ChannelLanes<A> gather(const A* from, Index stride) const {
    return gather_as<A>(from, stride);
  }
  template <class A>
  void scatter(A* to, Index stride, const ChannelLanes<A>& values) const {
    for (Index i = 0; i < count; ++i) to[i * stride] = values.data()[i];
  }
  template <class A>
  ChannelLanes<A> keep(const ChannelLanes<A>& values) const {
    return gather_as<A>(values.data(), 1);
  }

 private:
  template <class A, class T>
  ChannelLanes<A> gather_as(const T* from, Index stride) const {
    ChannelLanes<A> result = ChannelLanes<A>::Zero();
    for (Index i = 0; i < count; ++i) result.data()[i] = static_cast<A>(from[i * stride]);
    return result;
  }
};

/// work(first channel, block) over all channels of a row.
template <class A, class Work>
inline void for_blocks(Index channels, Work&& work) {
  Index c = 0;
  for (; c + lane_count<A> <= channels; c += lane_count<A>) work(c, FullBlock{});
  if (c < channels) work(c, TailBlock{channels - c});
}

/// The lanes' form of math/sigmoid.hpp, with Eigen's vectorised exponential (a few units in the last place).
template <class A, int N>
inline Eigen::Array<A, N, 1> sigmoid(const Eigen::Array<A, N, 1>& x) {
  return A(1) / (A(1) + (-x).exp());
}

/// d silu / dx from x and s = sigmoid(x), as in math/silu.hpp.
template <class A, int N>
inline Eigen::Array<A, N, 1> silu_derivative(const Eigen::Array<A, N, 1>& x, const Eigen::Array<A, N, 1>& s) {
  return s * (A(1) + x * (A(1) - s));
}

/// Rows of one tile where gradients of parameters are summed: a tile has sums of its own, which bounds how many there
/// may be. Follows from the shape alone.
inline Index rows_per_tile(Index rows) {
  return std::max<Index>(16, tiles_of(rows, 128));
}

/// Sums over rows, one per channel, for gradients of parameters: each tile of rows adds to a line of its own, and the
/// lines are added in their order. So the result has the same bits for any number of threads.
template <class A>
class ColumnSums {
 public:
  /// Nothing is summed.
  ColumnSums() = default;
  ColumnSums(Workspace<cpu>& workspace, Index tiles, Index channels)
      : lines_(workspace.take<A>(tiles * padded(channels))), tiles_(tiles), channels_(channels) {}
  static std::size_t bytes(Index tiles, Index channels) {
    return Workspace<cpu>::bytes_of<A>(tiles * padded(channels));
  }

  explicit operator bool() const { return tiles_ >= 0; }
  /// A tile's line, set to zero.
  A* start(Index tile) const {
    A* line = lines_ + tile * padded(channels_);
    std::fill_n(line, padded(channels_), A(0));
    return line;
  }
  /// The sum over tiles, from channel c on.
  template <class Block>
  ChannelLanes<A> total(Index c, Block block) const {
    ChannelLanes<A> sum = ChannelLanes<A>::Zero();
    for (Index tile = 0; tile < tiles_; ++tile) sum += block.load(lines_ + tile * padded(channels_) + c);
    return sum;
  }
  /// The sum over tiles and channels.
  A total() const {
    A sum = 0;
    for_blocks<A>(channels_, [&](Index c, auto block) { sum += total(c, block).sum(); });
    return sum;
  }
  /// Assigns or adds the sums; an absent gradient is skipped.
  void write(const View<A, 1>& gradient, GradientMode mode) const {
    if (!gradient) return;
    for_blocks<A>(channels_, [&](Index c, auto block) {
      ChannelLanes<A> sum = total(c, block);
      if (mode == GradientMode::add) sum += block.load(gradient.data() + c);
      block.store(gradient.data() + c, sum);
    });
  }

 private:
  static Index padded(Index channels) { return tiles_of(channels, lane_count<A>) * lane_count<A>; }

  A* lines_ = nullptr;
  Index tiles_ = -1, channels_ = 0;
};

/// Adds to a tile's line of sums; lines are padded, so that a tail may be written whole.
template <class A>
inline void add_to(A* line, Index c, const ChannelLanes<A>& values) {
  Eigen::Map<ChannelLanes<A>, Eigen::Aligned64> target(line + c);
  target += values;
}

/// Address of a row, of batch * length rows.
template <class T>
inline T* row_pointer(const View<T, 3>& view, Index row) {
  const Index length = view.extent(1);
  return view.data() + (row / length) * view.stride(0) + (row % length) * view.stride(1);
}
template <class T>
inline T* row_pointer(const View<T, 2>& view, Index row) {
  const Index length = view.extent(1);
  return view.data() + (row / length) * view.stride(0) + (row % length) * view.stride(1);
}

}  // namespace diffmamba::detail
