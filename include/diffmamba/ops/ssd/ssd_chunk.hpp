// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/ssd/ssd.hpp"
#include "diffmamba/ops/ssd/ssd_tile.hpp"

// What the forward and the backward pass of one chunk share, on the CPU. In the terms of this file a chunk is
//
//   y_t = e^{c_t} C_t S + sum_{s <= t} e^{c_t - c_s} (C_t . B_s) u_s          S: the state before the chunk
//   S' = e^{c_Q} S + sum_s e^{c_Q - c_s} B_s^T u_s                            S': the state after it
//
// with c_t the sum of the log decays up to and including step t of the chunk. `ssd` makes u = dt x and log decay = dt
// A; `ssd::minimal` gives both as they are. States are kept transposed here, (d_state, headdim), so that every product
// has its second factor in rows.
namespace diffmamba::ssd::detail {

/// The operands of `ssd` (dt, A, ... given, log_decay absent) or of `ssd::minimal` (log_decay given).
template <class T>
struct Problem {
  using Real = accumulate_t<T>;
  View<const T, 4> x, B, C, z = {};
  View<const T, 3> dt = {};
  View<const Real, 3> log_decay = {};
  View<const Real, 1> A = {}, D = {}, dt_bias = {};
  View<const Real, 2> D_per_channel = {};
  View<const Real, 4> initial_state = {};
  Options options = {};
};

template <class T>
Problem<T> problem(const Inputs<T>& in, const Options& options) {
  static_assert(!std::is_same_v<T, half>, "ssd: half is a storage type here; use float, double or bfloat16");
  return {.x = in.x,
          .B = in.B,
          .C = in.C,
          .z = in.z,
          .dt = in.dt,
          .log_decay = {},
          .A = in.A,
          .D = in.D,
          .dt_bias = in.dt_bias,
          .D_per_channel = in.D_per_channel,
          .initial_state = in.initial_state,
          .options = options};
}

/// How the work is cut: a tile is one sequence, one group and some or all of its heads, and walks through the chunks.
/// The heads of a tile share the scores C B^T. A group is split only where batch and groups alone make fewer than 8
/// tiles. Padded sizes are those of tiles.
template <class A>
struct Plan {
  Index batch, length, nheads, headdim, ngroups, d_state;
  Index chunk, chunks;
  Index heads, splits;                      // heads of a tile, tiles of a group
  Index row_chunk, row_headdim, row_state;  // padded
  Index tiles() const { return batch * ngroups * splits; }

  Plan(const Sizes& s, const Options& options)
      : batch(s.batch), length(s.length), nheads(s.nheads), headdim(s.headdim), ngroups(s.ngroups), d_state(s.d_state) {
    constexpr Index enough = 8;
    const Index per_group = s.heads_per_group(), sequences = batch * ngroups;
    const Index wanted = sequences == 0 ? 1 : (enough + sequences - 1) / sequences;
    heads = per_group == 0 ? 0 : (per_group + wanted - 1) / wanted;
    splits = per_group == 0 ? 0 : (per_group + heads - 1) / heads;
    chunk = ssd::chunk(options);
    if (chunk > length) chunk = length > 0 ? length : 1;
    chunks = chunk_count(length, options);
    row_chunk = padded<A>(chunk);
    row_headdim = padded<A>(headdim);
    row_state = padded<A>(d_state);
  }

  struct Tile {
    Index batch, group, split, first_head, last_head;
  };
  Tile tile(Index index) const {
    const Index split = index % splits, group = index / splits % ngroups, per_group = nheads / ngroups;
    const Index first = split * heads, last = first + heads < per_group ? first + heads : per_group;
    return {index / splits / ngroups, group, split, group * per_group + first, group * per_group + last};
  }
};

/// Decays of one head in one chunk. The sums c_t are made in double and kept as high + low, so that the difference of
/// two large ones is as exact as that of two small ones.
template <class A>
struct Decays {
  A *dt, *slope;     // (chunk): dt as the recurrence uses it, and its derivative by dt as it came in
  A *high, *low;     // (chunk): c_t
  A* from_start;     // (chunk): e^{c_t}
  A* to_end;         // (chunk): e^{c_Q - c_t}
  A through = A(1);  // e^{c_Q}

  template <class Carve>
  Decays(Carve&& carve, Index row)
      : dt(carve(row)),
        slope(carve(row)),
        high(carve(row)),
        low(carve(row)),
        from_start(carve(row)),
        to_end(carve(row)) {}

  /// Steps [begin, begin + steps) of a sequence; `row` is the padded chunk.
  template <class T>
  void prepare(const Problem<T>& p, Index b, Index begin, Index steps, Index h, Index row) {
    double sum = 0;
    if (p.log_decay) {
      for (Index t = 0; t < steps; ++t) add(t, sum += static_cast<double>(p.log_decay(b, begin + t, h)));
    } else {
      const A bias = p.dt_bias ? p.dt_bias(h) : A(0);
      for (Index t = 0; t < steps; ++t) dt[t] = static_cast<A>(p.dt(b, begin + t, h)) + bias;
      discretize_row(steps, p.options);
      const double a = static_cast<double>(p.A(h));
      for (Index t = 0; t < steps; ++t) add(t, sum += static_cast<double>(dt[t]) * a);
    }
    for (Index t = steps; t < row; ++t) high[t] = low[t] = A(0);
    const Lanes<A> end_high = Lanes<A>::all(high[steps - 1]), end_low = Lanes<A>::all(low[steps - 1]);
    for (Index t = 0; t < row; t += packet_size<A>) {
      const Lanes<A> c_high = Lanes<A>::load(high + t), c_low = Lanes<A>::load(low + t);
      exp(c_high + c_low).store(from_start + t);
      exp(end_high - c_high + (end_low - c_low)).store(to_end + t);
    }
    through = from_start[steps - 1];
  }

 private:
  void add(Index t, double sum) {
    high[t] = static_cast<A>(sum);
    low[t] = static_cast<A>(sum - static_cast<double>(high[t]));
  }
  /// `discretize` of ssd.hpp and its derivative, a row at a time so that exp and log run in packets. dt holds what
  /// came, bias included, and then the result.
  void discretize_row(Index steps, const Options& options) {
    using Row = Eigen::Map<Eigen::Array<A, Eigen::Dynamic, 1>>;
    const A low_limit = static_cast<A>(options.dt_min), high_limit = static_cast<A>(options.dt_max);
    Row used(dt, steps), raw(high, steps), derivative(slope, steps);  // `high` is free until the sums are made
    if (options.dt_softplus) {
      raw = used;
      derivative = (A(1) + (-raw).exp()).inverse();
      used = raw.exp().log1p();
      for (Index t = 0; t < steps; ++t)
        if (raw[t] > A(20)) used[t] = raw[t], derivative[t] = A(1);
    } else {
      derivative.setOnes();
    }
    for (Index t = 0; t < steps; ++t) {
      if (used[t] < low_limit || used[t] > high_limit) derivative[t] = A(0);
      used[t] = used[t] < low_limit ? low_limit : used[t] > high_limit ? high_limit : used[t];
    }
  }
};

/// e^{c_t - c_s} for the packet s = j, j + 1, ...; zero for s > t. Never the exponential of something larger than a
/// difference c_t - c_s with s <= t, which is at most 0 while A is negative.
template <class A>
inline Lanes<A> decay_packet(const Decays<A>& d, Index t, Index j) {
  const Lanes<A> difference =
      Lanes<A>::all(d.high[t]) - Lanes<A>::load(d.high + j) + (Lanes<A>::all(d.low[t]) - Lanes<A>::load(d.low + j));
  if (j + packet_size<A> <= t + 1) return exp(difference);
  const Lanes<A> largest = Lanes<A>::all(std::is_same_v<A, float> ? A(88) : A(709));  // e to it is finite
  return exp(min(difference, largest)) * first_lanes<A>(t + 1 - j);
}

/// D as a row of the tile: per channel, or one number in every place; zero without D.
template <class T, class A>
void load_D(const Problem<T>& p, Index h, Index headdim, Index row, A* D) {
  for (Index j = 0; j < row; ++j)
    D[j] = j >= headdim ? A(0) : p.D_per_channel ? p.D_per_channel(h, j) : p.D ? p.D(h) : A(0);
}

/// The state (headdim, d_state) of a caller as a tile (d_state, headdim) and back.
template <class A>
void load_state(const View<const A, 4>& state, Index b, Index h, A* to, Index stride) {
  transpose(state.pointer(b, h), state.stride(2), state.extent(2), state.extent(3), to, stride);
}
template <class A>
void store_state(const A* from, Index stride, const View<A, 4>& state, Index b, Index h) {
  for (Index p = 0; p < state.extent(2); ++p)
    for (Index n = 0; n < state.extent(3); ++n) state(b, h, p, n) = from[n * stride + p];
}

}  // namespace diffmamba::ssd::detail
