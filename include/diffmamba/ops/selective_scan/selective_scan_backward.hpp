// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/selective_scan/selective_scan.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_tile.hpp"

// The derivation. One channel; L is the loss, a_t[n] = exp(dt_t A[n]), x_t = dt_t u_t:
//
//   h_t[n] = a_t[n] h_{t-1}[n] + x_t B_t[n],     y_t = sum_n C_t[n] h_t[n] + D u_t,     out_t = y_t silu(z_t)
//
// The gate: dy_t = dout_t silu(z_t) and dz_t = dout_t y_t silu'(z_t), which needs y_t again.
//
// Let g_t[n] = dL/dh_t[n], through y_t and through every later token. h_t feeds y_t and h_{t+1}, so from the end
//
//   g_t[n] = dy_t C_t[n] + a_{t+1}[n] g_{t+1}[n],     and at the end  a_{T+1} g_{T+1} = dL/dh_T = dfinal_state,
//
// which is the forward scan run backwards. With g known, each line above gives its gradients:
//
//   dC_t[n] = sum_d dy_t h_t[n]                       (the sums over d: the channels of the group)
//   dB_t[n] = sum_d g_t[n] x_t
//   dx_t    = sum_n g_t[n] B_t[n]
//   d(dt_t A[n]) = g_t[n] a_t[n] h_{t-1}[n]           (d exp = exp), and so
//   dA[n]   = sum_t dt_t  g_t[n] a_t[n] h_{t-1}[n]    (and over the batch)
//   ddt_t   = sum_n A[n]  g_t[n] a_t[n] h_{t-1}[n]  +  u_t dx_t
//   du_t    = dt_t dx_t + D dy_t,     dD = sum_t dy_t u_t
//   ddelta_t = ddt_t softplus'(delta_t + bias),     ddelta_bias = sum_t ddelta_t
//   dinitial_state[n] = a_1[n] g_1[n]
//
// The product a_t g_t, needed for dA, is also what token t - 1 receives. h_t and a_t come from running forward again
// over a block of 32 tokens from its saved state, one exponential per element as in the forward pass; dividing h back
// out of h_t would fail where the decay underflows.
//
// The sums over channels are the only ones that cross lanes and tiles: a tile adds its channels lane by lane, then the
// lanes, and leaves the sum in the workspace; a second pass adds the tiles of a group in their order. dA, dD and
// ddelta_bias likewise add the sequences of the batch in their order. So the bits do not depend on the threads.
namespace diffmamba::selective_scan {
namespace detail {

/// What backward keeps in its workspace besides the scratch of the threads.
template <class S>
struct Partials {
  Index columns, d_state, length, block;
  bool B_per_token, C_per_token;
  S *tokens_B = nullptr, *tokens_C = nullptr;  // (column, batch, length, d_state)
  S* parameters = nullptr;  // (batch, column, parameter_size): dA, dB_constant, dC_constant, dD, dbias

  template <class T>
  Partials(const Inputs<T>& in, const Tiling& tiling)
      : columns(tiling.columns()),
        d_state(tiling.d_state),
        length(tiling.length),
        block(tiling.d_state * tile_channels),
        B_per_token(in.B),
        C_per_token(in.C) {}
  Index token_size(const Tiling& tiling) const { return columns * tiling.batch * length * d_state; }
  Index parameter_size() const { return (1 + !B_per_token + !C_per_token) * block + 2 * tile_channels; }
  std::size_t bytes(const Tiling& tiling) const {
    return (B_per_token ? Workspace<>::bytes_of<S>(token_size(tiling)) : 0) +
           (C_per_token ? Workspace<>::bytes_of<S>(token_size(tiling)) : 0) +
           Workspace<>::bytes_of<S>(tiling.tiles() * parameter_size());
  }
  void take(Workspace<>& workspace, const Tiling& tiling) {
    if (B_per_token) tokens_B = workspace.take<S>(token_size(tiling));
    if (C_per_token) tokens_C = workspace.take<S>(token_size(tiling));
    parameters = workspace.take<S>(tiling.tiles() * parameter_size());
  }
  S* dA(Index tile) const { return parameters + tile * parameter_size(); }
  S* dB_constant(Index tile) const { return dA(tile) + block; }
  S* dC_constant(Index tile) const { return dA(tile) + (1 + !B_per_token) * block; }
  S* dD(Index tile) const { return dA(tile) + (1 + !B_per_token + !C_per_token) * block; }
  S* ddelta_bias(Index tile) const { return dD(tile) + tile_channels; }
};

/// A tile's temporary memory. Blocks are (d_state, 64), rows 64.
template <class S>
struct BackwardScratch {
  S *A, *A_log2e, *B_lanes, *C_lanes, *dh, *states, *decays, *dB_lanes, *dC_lanes, *B_row, *C_row;
  S *u, *raw, *dt, *dt_u, *y;  // of every token of the block of time

  static Index size(Index d_state) {
    constexpr Index K = checkpoint_interval<cpu>;
    return (8 + 2 * K) * d_state * tile_channels + 2 * d_state + 5 * K * tile_channels;
  }
  BackwardScratch(S* memory, Index d_state) {
    constexpr Index K = checkpoint_interval<cpu>;
    const auto take = [&](Index count) {
      S* result = memory;
      memory += count;
      return result;
    };
    const Index block = d_state * tile_channels, row = K * tile_channels;
    A = take(block), A_log2e = take(block), B_lanes = take(block), C_lanes = take(block), dh = take(block);
    states = take((K + 1) * block), decays = take(K * block);
    u = take(row), raw = take(row), dt = take(row), dt_u = take(row), y = take(row);
    dB_lanes = take(block), dC_lanes = take(block);
    B_row = take(d_state), C_row = take(d_state);
  }
};

/// One token back for `Count` registers of channels. With PerToken dB and dC are (d_state, one register), collecting
/// over the registers of the tile; else (d_state, 64). d_dt_u and ddt are rows.
template <int Count, bool PerToken, class S>
inline void retreat_lanes(Index lane, Index d_state, const S* A, const S* B, const S* C, const S* dt, const S* dt_u,
                          const S* dy, const S* decays, const S* before, const S* after, S* dh, S* dA, S* dB, S* dC,
                          S* d_dt_u, S* ddt) {
  using L = Lanes<S>;
  L dt_i[Count], dt_u_i[Count], dy_i[Count];
  element::TokenSums<L> sums[Count];
  for (int k = 0; k < Count; ++k) {
    dt_i[k] = L::load(dt + lane + k * L::size);
    dt_u_i[k] = L::load(dt_u + lane + k * L::size);
    dy_i[k] = L::load(dy + lane + k * L::size);
    sums[k] = {L::all(S(0)), L::all(S(0))};
  }
  for (Index n = 0; n < d_state; ++n) {
    L dB_n = L::load(dB + (PerToken ? n * L::size : n * tile_channels + lane));
    L dC_n = L::load(dC + (PerToken ? n * L::size : n * tile_channels + lane));
    for (int k = 0; k < Count; ++k) {
      const Index i = lane + k * L::size, at = n * tile_channels + i;
      if (!PerToken && k > 0) {
        dB_n = L::load(dB + at);
        dC_n = L::load(dC + at);
      }
      L dh_n = L::load(dh + at), dA_n = L::load(dA + at);
      element::retreat(dh_n, dy_i[k], L::load(decays + at), L::load(before + at), L::load(after + at), dt_i[k],
                       dt_u_i[k], L::load(A + at), projection<PerToken>(B, n, i), projection<PerToken>(C, n, i),
                       sums[k], dA_n, dB_n, dC_n);
      dh_n.store(dh + at);
      dA_n.store(dA + at);
      if (!PerToken) {
        dB_n.store(dB + at);
        dC_n.store(dC + at);
      }
    }
    if (PerToken) {
      dB_n.store(dB + n * L::size);
      dC_n.store(dC + n * L::size);
    }
  }
  for (int k = 0; k < Count; ++k) {
    sums[k].d_dt_u.store(d_dt_u + lane + k * L::size);
    sums[k].ddt.store(ddt + lane + k * L::size);
  }
}

template <bool PerToken, class T>
void backward_tile(const Inputs<T>& in, const Saved<T>& saved, const OutputGradients<T>& upstream,
                   const GradientViews<T>& to, const Tiling& tiling, Index index,
                   const Partials<accumulate_t<T>>& partials, accumulate_t<T>* memory) {
  using S = accumulate_t<T>;
  using L = Lanes<S>;
  const Tile tile = tiling.tile<S>(index);
  const BackwardScratch<S> s(memory, tiling.d_state);
  const Index length = tiling.length, d_state = tiling.d_state, lanes = tile.lanes, block = d_state * tile_channels;
  constexpr Index row = tile_channels;
  load_transposed<S>(in.A, tile, S(1), s.A);
  load_transposed<S>(in.A, tile, S(element::log2e), s.A_log2e);
  if (in.B_constant) load_transposed<S>(in.B_constant, tile, S(1), s.B_lanes);
  if (in.C_constant) load_transposed<S>(in.C_constant, tile, S(1), s.C_lanes);
  load_state<S>(upstream.dfinal_state, tile, d_state, s.dh);
  alignas(64) S bias[row], D[row], dD[row] = {}, ddelta_bias[row] = {};
  load_parameter<S>(in.delta_bias, tile, bias);
  load_parameter<S>(in.D, tile, D);
  S* const dA = partials.dA(index);
  std::fill(dA, dA + partials.parameter_size(), S(0));

  const Rows<const T> u_rows(in.u, tile), delta_rows(in.delta, tile), z_rows(in.z, tile),
      dout_rows(upstream.dout, tile);
  const Rows<const T> B_rows(in.B, tile, tiling.channels), C_rows(in.C, tile, tiling.channels);
  const Rows<T> du_rows(to.du, tile), ddelta_rows(to.ddelta, tile), dz_rows(to.dz, tile);
  // B_t, C_t as the kernels want them, and where their gradients at one token are collected.
  const auto projection_of = [&](const Rows<const T>& rows, Index t, S* row_buffer, S* block_buffer) -> const S* {
    if constexpr (PerToken) return token_row(rows(t), d_state, row_buffer);
    if (rows) broadcast_row(rows(t), d_state, block_buffer);
    return block_buffer;
  };
  constexpr Index lanes_per_state = PerToken ? L::size : tile_channels;
  S* const dB = in.B ? s.dB_lanes : partials.dB_constant(index);
  S* const dC = in.C ? s.dC_lanes : partials.dC_constant(index);
  const auto sum_lanes = [&](const S* from, S* sums) {
    for (Index n = 0; n < d_state; ++n) {
      L sum = L::load(from + n * lanes_per_state);
      if constexpr (!PerToken)
        for (Index i = L::size; i < lanes; i += L::size) sum = sum + L::load(from + n * lanes_per_state + i);
      sums[n] = sum.sum();
    }
  };
  const bool with_softplus = saved.options.delta_softplus;

  for (Index checkpoint = checkpoints_of<cpu>(length); length > 0 && checkpoint >= 0; --checkpoint) {
    const Index begin = checkpoint * checkpoint_interval<cpu>,
                count = std::min(checkpoint_interval<cpu>, length - begin);
    // Forward again over the block: states, decays, y.
    if (checkpoint == 0)
      load_state<S>(in.initial_state, tile, d_state, s.states);
    else
      for (Index n = 0; n < d_state; ++n)
        load_row(saved.states.view().pointer(tile.batch, checkpoint - 1, n, tile.first), tile.width,
                 s.states + n * tile_channels, tile_channels);
    for (Index k = 0; k < count; ++k) {
      const Index t = begin + k;
      S *u = s.u + k * row, *raw = s.raw + k * row, *dt = s.dt + k * row, *dt_u = s.dt_u + k * row, *y = s.y + k * row;
      for (const Rows<const T>& rows : {u_rows, delta_rows, z_rows, dout_rows})
        prefetch_row(rows, t + prefetch_distance, begin + count, tile.width);
      load_row(u_rows(t), tile.width, u, lanes);
      load_row(delta_rows(t), tile.width, raw, lanes);
      for (Index i = 0; i < lanes; i += L::size) {
        const L raw_i = L::load(raw + i) + L::load(bias + i), u_i = L::load(u + i);
        const L dt_i = with_softplus ? softplus(raw_i) : raw_i;
        raw_i.store(raw + i);
        dt_i.store(dt + i);
        (dt_i * u_i).store(dt_u + i);
        (L::load(D + i) * u_i).store(y + i);
      }
      const S *B = projection_of(B_rows, t, s.B_row, s.B_lanes), *C = projection_of(C_rows, t, s.C_row, s.C_lanes);
      advance_token<PerToken, true>(lanes, d_state, s.A_log2e, B, C, dt, dt_u, s.states + k * block,
                                    s.states + (k + 1) * block, s.decays + k * block, y);
    }
    // And back.
    for (Index k = count; k-- > 0;) {
      const Index t = begin + k;
      for (const Rows<T>& rows : {du_rows, ddelta_rows, dz_rows})
        prefetch_row(rows, t - prefetch_distance, length, tile.width);
      const S *u = s.u + k * row, *raw = s.raw + k * row, *dt = s.dt + k * row, *dt_u = s.dt_u + k * row;
      alignas(64) S dy[row] = {}, z[row], dz[row], d_dt_u[row], ddt[row], du[row], ddelta[row];
      if (dout_rows) load_row(dout_rows(t), tile.width, dy, lanes);
      if (z_rows) {
        load_row(z_rows(t), tile.width, z, lanes);
        for (Index i = 0; i < lanes; i += L::size) {
          const L z_i = L::load(z + i), gradient = L::load(dy + i), gate = sigmoid(z_i), one = L::all(S(1));
          (gradient * L::load(s.y + k * row + i) * gate * multiply_add(z_i, one - gate, one)).store(dz + i);
          (gradient * z_i * gate).store(dy + i);
        }
        if (dz_rows) store_row(dz, tile.width, dz_rows(t));
      }
      if (in.B) std::fill_n(dB, d_state * lanes_per_state, S(0));
      if (in.C) std::fill_n(dC, d_state * lanes_per_state, S(0));
      const S *B = projection_of(B_rows, t, s.B_row, s.B_lanes), *C = projection_of(C_rows, t, s.C_row, s.C_lanes);
      const S *decays = s.decays + k * block, *before = s.states + k * block;
      Index lane = 0;
      for (; lane + 2 * L::size <= lanes; lane += 2 * L::size)
        retreat_lanes<2, PerToken>(lane, d_state, s.A, B, C, dt, dt_u, dy, decays, before, before + block, s.dh, dA, dB,
                                   dC, d_dt_u, ddt);
      if (lane < lanes)
        retreat_lanes<1, PerToken>(lane, d_state, s.A, B, C, dt, dt_u, dy, decays, before, before + block, s.dh, dA, dB,
                                   dC, d_dt_u, ddt);
      const Index token = ((tile.column * tiling.batch + tile.batch) * length + t) * d_state;
      if (in.B) sum_lanes(dB, partials.tokens_B + token);
      if (in.C) sum_lanes(dC, partials.tokens_C + token);
      for (Index i = 0; i < lanes; i += L::size) {
        const L u_i = L::load(u + i), dy_i = L::load(dy + i), d_dt_u_i = L::load(d_dt_u + i);
        multiply_add(L::load(dt + i), d_dt_u_i, L::load(D + i) * dy_i).store(du + i);
        L ddelta_i = multiply_add(u_i, d_dt_u_i, L::load(ddt + i));
        if (with_softplus) ddelta_i = ddelta_i * softplus_derivative(L::load(raw + i));
        ddelta_i.store(ddelta + i);
        (L::load(ddelta_bias + i) + ddelta_i).store(ddelta_bias + i);
        multiply_add(dy_i, u_i, L::load(dD + i)).store(dD + i);
      }
      if (du_rows) store_row(du, tile.width, du_rows(t));
      if (ddelta_rows) store_row(ddelta, tile.width, ddelta_rows(t));
    }
  }
  std::copy_n(dD, row, partials.dD(index));
  std::copy_n(ddelta_bias, row, partials.ddelta_bias(index));
  if (to.dinitial_state) store_transposed<S>(s.dh, tile, to.dinitial_state.template select<0>(tile.batch));
}

/// Adds the tiles of each group: (column, batch, length, d_state) to (batch, length, ngroups, d_state).
template <class T, class S>
void reduce_tokens(const Tiling& tiling, const S* partials, const View<T, 4>& to) {
  if (!to) return;
  constexpr Index tokens_per_tile = 64;
  const Index groups = to.extent(2), per_group = tiling.columns() / groups, d_state = tiling.d_state;
  const Index tokens = tiling.batch * tiling.length, column = tokens * d_state;
  parallel_for(tiles_of(tokens, tokens_per_tile), [&](Index index) {
    const Index end = std::min((index + 1) * tokens_per_tile, tokens);
    for (Index token = index * tokens_per_tile; token < end; ++token)
      for (Index group = 0; group < groups; ++group) {
        const S* from = partials + group * per_group * column + token * d_state;
        T* target = to.pointer(token / tiling.length, token % tiling.length, group);
        for (Index n = 0; n < d_state; ++n) {
          S sum = 0;
          for (Index k = 0; k < per_group; ++k) sum += from[k * column + n];
          target[n] = static_cast<T>(sum);
        }
      }
  });
}

/// Adds the sequences of the batch. `part(tile)` is (rows, 64) of a tile; target(channel, row) the element it belongs
/// to.
template <class S, class Part, class Target>
void reduce_parameter(const Tiling& tiling, Index column, Index rows, GradientMode mode, Part&& part, Target&& target) {
  for (Index row = 0; row < rows; ++row) {
    const Tile tile = tiling.tile<S>(column);
    for (Index i = 0; i < tile.width; ++i) {
      S sum = 0;
      for (Index b = 0; b < tiling.batch; ++b) sum += part(b * tiling.columns() + column)[row * tile_channels + i];
      S& element = target(tile.first + i, row);
      element = mode == GradientMode::add ? element + sum : sum;
    }
  }
}

}  // namespace detail

/// Bytes of workspace that backward takes: per thread that may run, 72 states of a tile (330 KiB with d_state 16 in
/// float); and 2 d_state numbers per token for every 64 channels.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in, const Saved<T>&) {
  using S = accumulate_t<T>;
  const detail::Tiling tiling(in);
  return detail::Scratch<S>::bytes(detail::BackwardScratch<S>::size(tiling.d_state)) +
         detail::Partials<S>(in, tiling).bytes(tiling);
}

/// Writes the gradients that `to` names and skips the others; never allocates. Throws Error if a shape does not fit, if
/// `saved` is not of these inputs' shape, or if the workspace is too small.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const OutputGradients<T>& upstream,
              const GradientViews<T>& to, Workspace<>& workspace, GradientMode mode = GradientMode::assign) {
  using S = accumulate_t<T>;
  check(in, saved, upstream, to);
  const detail::Tiling tiling(in);
  const std::size_t mark = workspace.mark();
  detail::Partials<S> partials(in, tiling);
  partials.take(workspace, tiling);
  {
    const detail::Scratch<S> scratch(workspace, detail::BackwardScratch<S>::size(tiling.d_state));
    parallel_for(tiling.tiles(), [&](Index index) {
      S* const memory = scratch.of_this_thread();
      if (in.B && in.C)
        detail::backward_tile<true>(in, saved, upstream, to, tiling, index, partials, memory);
      else
        detail::backward_tile<false>(in, saved, upstream, to, tiling, index, partials, memory);
    });
  }
  detail::reduce_tokens(tiling, partials.tokens_B, to.dB);
  detail::reduce_tokens(tiling, partials.tokens_C, to.dC);
  const auto matrix = [](const View<S, 2>& view) {
    return [&view](Index channel, Index n) -> S& { return view(channel, n); };
  };
  const auto vector = [](const View<S, 1>& view) {
    return [&view](Index channel, Index) -> S& { return view(channel); };
  };
  parallel_for(tiling.columns(), [&](Index column) {
    const auto reduce = [&](Index rows, auto part, auto target) {
      detail::reduce_parameter<S>(tiling, column, rows, mode, part, target);
    };
    const Index d_state = tiling.d_state;
    if (to.dA)
      reduce(
          d_state, [&](Index tile) { return partials.dA(tile); }, matrix(to.dA));
    if (to.dB_constant)
      reduce(
          d_state, [&](Index tile) { return partials.dB_constant(tile); }, matrix(to.dB_constant));
    if (to.dC_constant)
      reduce(
          d_state, [&](Index tile) { return partials.dC_constant(tile); }, matrix(to.dC_constant));
    if (to.dD)
      reduce(
          1, [&](Index tile) { return partials.dD(tile); }, vector(to.dD));
    if (to.ddelta_bias)
      reduce(
          1, [&](Index tile) { return partials.ddelta_bias(tile); }, vector(to.ddelta_bias));
  });
  workspace.reset(mark);
}

/// The same with memory from the arena: auto d = backward(in, saved, {.dout = dout}).
template <class T, Device D = cpu>
Gradients<T, D> backward(const Inputs<T, D>& in, const Saved<T, D>& saved,
                         const std::type_identity_t<OutputGradients<T, D>>& upstream) {
  check(in, saved, upstream, GradientViews<T, D>{});
  using S = accumulate_t<T>;
  const Extents<3> u = in.u.extents();
  const Extents<2> A = in.A.extents();
  Gradients<T, D> d;
  d.du = Tensor<T, 3, D>::uninitialized(u);
  d.ddelta = Tensor<T, 3, D>::uninitialized(u);
  d.dA = Tensor<S, 2, D>::uninitialized(A);
  if (in.B) d.dB = Tensor<T, 4, D>::uninitialized(in.B.extents());
  if (in.B_constant) d.dB_constant = Tensor<S, 2, D>::uninitialized(A);
  if (in.C) d.dC = Tensor<T, 4, D>::uninitialized(in.C.extents());
  if (in.C_constant) d.dC_constant = Tensor<S, 2, D>::uninitialized(A);
  if (in.D) d.dD = Tensor<S, 1, D>::uninitialized({u[2]});
  if (in.z) d.dz = Tensor<T, 3, D>::uninitialized(u);
  if (in.delta_bias) d.ddelta_bias = Tensor<S, 1, D>::uninitialized({u[2]});
  d.dinitial_state = Tensor<S, 3, D>::uninitialized({u[0], u[2], A[1]});
  Workspace<D> workspace(workspace_bytes(in, saved));
  backward(in, saved, upstream,
           GradientViews<T, D>{.du = d.du,
                               .ddelta = d.ddelta,
                               .dA = d.dA,
                               .dB = d.dB,
                               .dB_constant = d.dB_constant,
                               .dC = d.dC,
                               .dC_constant = d.dC_constant,
                               .dD = d.dD,
                               .dz = d.dz,
                               .ddelta_bias = d.ddelta_bias,
                               .dinitial_state = d.dinitial_state},
           workspace, GradientMode::assign);
  return d;
}

}  // namespace diffmamba::selective_scan
