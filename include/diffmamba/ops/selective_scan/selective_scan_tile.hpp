// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::min, std::fill
#include <numeric>      // std::lcm
#include <type_traits>  // std::is_same_v

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"
#include "diffmamba/ops/selective_scan/selective_scan.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_element.hpp"

// How the CPU cuts a scan. A tile is one sequence of the batch and up to 64 neighbouring channels, and walks through
// time alone. Channels lie in the lanes of the SIMD registers: the state of a tile is (d_state, 64), so that B_t[n] and
// C_t[n] are the same in all lanes and no sum over states crosses lanes. Rows of activations are copied into a tile's
// own memory as they come, which converts bfloat16, fills the last register up with zeros and costs little beside
// d_state exponentials per element.
namespace diffmamba::selective_scan::detail {

inline constexpr Index tile_channels = 64;
inline constexpr Index prefetch_distance = 8;

struct Tile {
  Index batch, first, width;  // sequence; channels [first, first + width)
  Index lanes;                // width rounded up to whole registers
  Index column;               // which of the columns of tiles this is, counted over all channels
};

/// Tiles never straddle a group of B or C. They follow from the shapes alone.
struct Tiling {
  Index batch, length, channels, d_state, segment;

  template <class T>
  explicit Tiling(const Inputs<T>& in)
      : batch(in.u.extent(0)), length(in.u.extent(1)), channels(in.u.extent(2)), d_state(in.A.extent(1)) {
    segment = channels / std::lcm(groups_of_B(in), groups_of_C(in));
  }
  Index columns_per_segment() const { return tiles_of(segment, tile_channels); }
  Index columns() const { return segment == 0 ? 0 : channels / segment * columns_per_segment(); }
  Index tiles() const { return batch * columns(); }
  template <class S>
  Tile tile(Index index) const {
    constexpr Index lanes = Lanes<S>::size;
    Tile result;
    result.column = index % columns();
    result.batch = index / columns();
    const Index offset = result.column % columns_per_segment() * tile_channels;
    result.first = result.column / columns_per_segment() * segment + offset;
    result.width = std::min(tile_channels, segment - offset);
    result.lanes = tiles_of(result.width, lanes) * lanes;
    return result;
  }
};

/// The rows of a tile in one operand: row t begins at data + t * stride.
template <class T>
struct Rows {
  T* data = nullptr;
  Index stride = 0;

  Rows() = default;
  Rows(const View<T, 3>& view, const Tile& tile) {
    if (!view) return;
    data = view.pointer(tile.batch, 0, tile.first);
    stride = view.stride(1);
  }
  /// B or C: the group of the tile's channels.
  Rows(const View<T, 4>& view, const Tile& tile, Index channels) {
    if (!view) return;
    data = view.pointer(tile.batch, 0, tile.first / (channels / view.extent(2)));
    stride = view.stride(1);
  }
  explicit operator bool() const { return data != nullptr; }
  T* operator()(Index t) const { return data + t * stride; }
};

/// Asks for a row ahead of its time: rows of one tile lie a whole token apart, which no hardware prefetcher follows.
template <class T>
void prefetch_row(const Rows<T>& rows, Index t, Index length, Index width) {
  if (!rows || t < 0 || t >= length) return;
  const char* row = reinterpret_cast<const char*>(rows(t));
  const Index bytes = width * static_cast<Index>(sizeof(T));
  for (Index offset = 0; offset < bytes; offset += 64) Eigen::internal::prefetch(row + offset);
}

template <class T, class S>
void load_row(const T* from, Index width, S* to, Index lanes) {
  for (Index i = 0; i < width; ++i) to[i] = static_cast<S>(from[i]);
  std::fill(to + width, to + lanes, S(0));
}
template <class S, class T>
void store_row(const S* from, Index width, T* to) {
  for (Index i = 0; i < width; ++i) to[i] = static_cast<T>(from[i]);
}

/// A parameter of the tile's channels, zero where it is absent.
template <class S>
void load_parameter(const View<const S, 1>& view, const Tile& tile, S* to) {
  std::fill(to, to + tile_channels, S(0));
  if (view)
    for (Index i = 0; i < tile.width; ++i) to[i] = view(tile.first + i);
}
/// (channels, d_state) as (d_state, 64)
template <class S>
void load_transposed(const View<const S, 2>& view, const Tile& tile, S scale, S* to) {
  const Index d_state = view.extent(1);
  for (Index n = 0; n < d_state; ++n) {
    for (Index i = 0; i < tile.width; ++i) to[n * tile_channels + i] = scale * view(tile.first + i, n);
    std::fill(to + n * tile_channels + tile.width, to + (n + 1) * tile_channels, S(0));
  }
}
template <class S>
void store_transposed(const S* from, const Tile& tile, const View<S, 2>& view) {
  for (Index i = 0; i < tile.width; ++i)
    for (Index n = 0; n < view.extent(1); ++n) view(tile.first + i, n) = from[n * tile_channels + i];
}
template <class S>
void load_state(const View<const S, 3>& view, const Tile& tile, Index d_state, S* to) {
  if (view)
    load_transposed(view.template select<0>(tile.batch), tile, S(1), to);
  else
    std::fill(to, to + d_state * tile_channels, S(0));
}

/// The row of B or C at one token, in S.
template <class T, class S>
const S* token_row(const T* from, Index d_state, S* buffer) {
  if constexpr (std::is_same_v<T, S>) {
    return from;
  } else {
    load_row(from, d_state, buffer, d_state);
    return buffer;
  }
}

/// The same in the lanes of a whole tile, (d_state, 64).
template <class T, class S>
void broadcast_row(const T* from, Index d_state, S* to) {
  for (Index n = 0; n < d_state; ++n) std::fill_n(to + n * tile_channels, tile_channels, static_cast<S>(from[n]));
}

/// B_t[n] or C_t[n] in the lanes of one register. With PerToken both are rows of d_state numbers, as nearly always;
/// else both are (d_state, 64), because one of them is a constant of the channels.
template <bool PerToken, class S>
Lanes<S> projection(const S* row, Index n, Index lane) {
  if constexpr (PerToken)
    return Lanes<S>::all(row[n]);
  else
    return Lanes<S>::load(row + n * tile_channels + lane);
}

/// One token of `Count` registers of channels from `lane` on: every state moves from `before` to `after`, which may be
/// the same, and y, which comes in as D u, collects sum_n C[n] h[n]. Backward also keeps the decays.
template <int Count, bool PerToken, bool KeepDecay, class S>
inline void advance_lanes(Index lane, Index d_state, const S* A_log2e, const S* B, const S* C, const S* dt,
                          const S* dt_u, const S* before, S* after, std::type_identity_t<S>* decays, S* y) {
  using L = Lanes<S>;
  L dt_i[Count], dt_u_i[Count], y_i[Count];
  for (int k = 0; k < Count; ++k) {
    dt_i[k] = L::load(dt + lane + k * L::size);
    dt_u_i[k] = L::load(dt_u + lane + k * L::size);
    y_i[k] = L::load(y + lane + k * L::size);
  }
  for (Index n = 0; n < d_state; ++n) {
    for (int k = 0; k < Count; ++k) {
      const Index i = lane + k * L::size, at = n * tile_channels + i;
      const L a = element::decay(dt_i[k], L::load(A_log2e + at));
      const L h = element::advance(L::load(before + at), a, dt_u_i[k], projection<PerToken>(B, n, i));
      if constexpr (KeepDecay) a.store(decays + at);
      h.store(after + at);
      y_i[k] = multiply_add(h, projection<PerToken>(C, n, i), y_i[k]);
    }
  }
  for (int k = 0; k < Count; ++k) y_i[k].store(y + lane + k * L::size);
}

template <bool PerToken, bool KeepDecay, class S>
void advance_token(Index lanes, Index d_state, const S* A_log2e, const S* B, const S* C, const S* dt, const S* dt_u,
                   const S* before, S* after, std::type_identity_t<S>* decays, S* y) {
  constexpr Index width = Lanes<S>::size;
  Index lane = 0;
  for (; lane + 2 * width <= lanes; lane += 2 * width)
    advance_lanes<2, PerToken, KeepDecay>(lane, d_state, A_log2e, B, C, dt, dt_u, before, after, decays, y);
  if (lane < lanes)
    advance_lanes<1, PerToken, KeepDecay>(lane, d_state, A_log2e, B, C, dt, dt_u, before, after, decays, y);
}

/// Temporary memory of the tiles: one part for each thread that may run, cut from a workspace.
template <class S>
class Scratch {
 public:
  Scratch(Workspace<>& workspace, Index per_thread)
      : per_thread_(rounded(per_thread)), threads_(max_threads()), memory_(workspace.take<S>(threads_ * per_thread_)) {}
  static std::size_t bytes(Index per_thread) { return Workspace<>::bytes_of<S>(max_threads() * rounded(per_thread)); }
  /// The part of the calling thread, inside a parallel_for that runs right after this was made.
  S* of_this_thread() const { return memory_ + (threads_ > 1 ? thread_index() : 0) * per_thread_; }

 private:
  static Index rounded(Index count) { return (count + 63) / 64 * 64; }
  static Index thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
  }
  Index per_thread_, threads_;
  S* memory_;
};

}  // namespace diffmamba::selective_scan::detail
