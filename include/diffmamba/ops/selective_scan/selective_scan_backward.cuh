// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/selective_scan/selective_scan_device.cuh"

/// The backward scan on an NVIDIA GPU; selective_scan_backward.hpp has the derivation, selective_scan_device.cuh says
/// how it is cut. A block walks over its tiles from the last to the first. A tile runs forward again from the state
/// saved before it, with the states after each of its 16 tokens in registers, and then back, each decay computed anew:
/// two exponentials and about 13 operations per token, channel and state.
///
/// dB and dC are sums over channels. Four neighbouring channels' are added by the tensor cores (for bfloat16 the
/// factors are cut to tf32, 2^-11, below the rounding of the result; for float each is cut in two, 2^-21), those of a
/// block in shared memory, those of all columns by a second launch, everything in a fixed order. A third launch adds
/// the parameters' gradients over batch and segments.
namespace diffmamba::selective_scan {
namespace detail {

/// Where gradients come from and where they go; what is absent is null.
template <class T>
struct DeviceGradients {
  using S = accumulate_t<T>;
  RowsView<const T> dout;
  StatesView<const S> dfinal_state;
  const S* checkpoints;  // (batch, checkpoints, d_state, channels)
  Index checkpoint_count;
  RowsView<T> du, ddelta, dz;
  StatesView<S> dinitial_state;
};

/// What the blocks leave for the launches that add. A slot is a segment of a sequence.
template <class S>
struct DevicePartials {
  S* tokens = nullptr;  // (columns, batch, length, [dB | dC], 4 Lanes)
  S* dA = nullptr;      // (slots, d_state, channels)
  S *dB_constant = nullptr, *dC_constant = nullptr;
  S *dD = nullptr, *ddelta_bias = nullptr;  // (slots, channels)

  template <class T>
  static Index token_size(const DeviceInputs<T>& in) {
    return in.columns * in.batch * in.length * 2 * in.lanes() * thread_states;
  }
  template <class T>
  static std::size_t bytes(const DeviceInputs<T>& in) {
    using W = Workspace<cuda>;
    return W::bytes_of<S>(token_size(in)) + (in.constants() ? 3 : 1) * W::bytes_of<S>(in.segment_states()) +
           2 * W::bytes_of<S>(in.batch * in.segments * in.channels);
  }
  template <class T>
  void take(const DeviceInputs<T>& in, Workspace<cuda>& workspace) {
    tokens = workspace.take<S>(token_size(in));
    dA = workspace.take<S>(in.segment_states());
    if (in.constants()) {
      dB_constant = workspace.take<S>(in.segment_states());
      dC_constant = workspace.take<S>(in.segment_states());
    }
    dD = workspace.take<S>(in.batch * in.segments * in.channels);
    ddelta_bias = workspace.take<S>(in.batch * in.segments * in.channels);
  }
};

// CUDA kernels

/// dB and dC of one token, four states each, summed over four neighbouring channels by the tensor cores: lane 4 r + q
/// gets two of the eight numbers over the channels of its row r, dB of states 2 q and 2 q + 1 for q < 2, dC for others.
///
/// A lane's four dh (or h) are rows r and r + 8 and columns q and q + 4 of a 16 x 8 matrix. Its product with a matrix
/// which has dt u (or dy) of channels 0 to 3 of the warp in one column and of channels 4 to 7 in the next holds the
/// sums of even rows in the one and of odd rows in the other (with four channels to a warp, in both).
template <class T>
struct ChannelSums {
  using S = accumulate_t<T>;
  int lane;
  unsigned of_eight[4];  // all ones in lanes 8 i to 8 i + 7
  unsigned of_odd_row;

  __device__ explicit ChannelSums(int of_lane) : lane(of_lane), of_odd_row(lane / 4 % 2 != 0 ? ~0u : 0u) {
#pragma unroll
    for (int i = 0; i < 4; ++i) of_eight[i] = lane / 8 == i ? ~0u : 0u;
  }
  __device__ void operator()(const S (&dh)[thread_states], const S (&h)[thread_states], S dt_u, S dy, S* to) const {
    static_assert(thread_states == 4);
    if constexpr (std::is_same_v<S, float>) {
      float sums[4] = {};
      multiply(sums, dh, dt_u, of_eight[0], of_eight[1]);
      multiply(sums, h, dy, of_eight[2], of_eight[3]);
      *reinterpret_cast<float2*>(to) = make_float2(choose(sums[0], sums[1]), choose(sums[2], sums[3]));
    } else {
#pragma unroll
      for (int i = 0; i < 2 * thread_states; ++i) {
        S sum = i < thread_states ? dh[i] * dt_u : h[i % thread_states] * dy;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == i / 2) to[i % 2] = sum;
      }
    }
  }

 private:
  __device__ float choose(float even, float odd) const {
    return __uint_as_float((__float_as_uint(even) & ~of_odd_row) | (__float_as_uint(odd) & of_odd_row));
  }
  /// For bfloat16 the first factor is cut to tf32 and the second rounded; for float both are cut in two.
  __device__ static void multiply(float (&sums)[4], const float (&left)[4], float right, unsigned even, unsigned odd) {
    unsigned high[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) high[i] = __float_as_uint(left[i]);
    if constexpr (std::is_same_v<T, float>) {
      unsigned low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        high[i] &= 0xffffe000u;
        low[i] = __float_as_uint(left[i] - __uint_as_float(high[i]));
      }
      const unsigned right_high = __float_as_uint(right) & 0xffffe000u;
      const unsigned right_low = __float_as_uint(right - __uint_as_float(right_high));
      mma::multiply_add_tf32(sums, low, right_high & even, right_high & odd);
      mma::multiply_add_tf32(sums, high, right_low & even, right_low & odd);
      mma::multiply_add_tf32(sums, high, right_high & even, right_high & odd);
    } else {
      const unsigned rounded = __float_as_uint(right) + 0x1000u;  // what remains is cut by the product
      mma::multiply_add_tf32(sums, high, rounded & even, rounded & odd);
    }
  }
};

/// Where the staged activations lie.
enum Staged : int { staged_delta, staged_z, staged_dout, staged_u };

template <class T, int Lanes>
struct BackwardShared {
  using S = accumulate_t<T>;
  using Place = detail::Place<Lanes>;
  static constexpr int width = Place::width, warps = block_threads / 32,
                       buffers = sizeof(S) == 4 ? 2 : 1;  // the memory of an sm_80 is too small for two in double
  Stage<T, Place, 4> staged[buffers];
  typename Projections<T, Place>::Shared projections;
  alignas(16) S tokens[tile_tokens * 2 * Lanes * thread_states];  // B and C
  Pair<S> steps[tile_tokens][width];                              // dt, dt u
  Pair<S> gradients[tile_tokens][width];                          // dy, derivative of dt by delta
  S states[buffers][thread_states][block_threads];                // before the tile
  alignas(16) S sums[tile_tokens][warps][32][2];                  // dB and dC over four channels
};

template <class T, int Lanes, bool Constants>
__global__ void __launch_bounds__(block_threads, sizeof(accumulate_t<T>) == 4 ? 2 : 1)
    selective_scan_backward_kernel(DeviceInputs<T> in, StagedRows<T, 4> rows, DeviceGradients<T> d,
                                   SegmentMemory<accumulate_t<T>> segments, DevicePartials<accumulate_t<T>> partials,
                                   SlabSums<accumulate_t<T>, 3> slabs) {
  using S = accumulate_t<T>;
  using Shared = BackwardShared<T, Lanes>;
  using Place = typename Shared::Place;
  constexpr int own = Place::own, N = Lanes * thread_states;
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Place place(in);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;

  S A[thread_states], dh[thread_states], dA[thread_states] = {};
  [[maybe_unused]] S dB_constant[Constants ? thread_states : 1] = {}, dC_constant[Constants ? thread_states : 1] = {};
  load_decay(in, place, A);
  if (segments.states != nullptr)
    load_channels(segments.states + place.slot(in) * in.d_state * in.channels, in, place, dh);
  else
    load_state(d.dfinal_state, in, place, dh);
  const S bias = in.delta_bias.data != nullptr ? in.delta_bias(place.channel) : S(0);
  const S D = in.D.data != nullptr ? in.D(place.channel) : S(0);
  S dD = 0, ddelta_bias = 0;
  const ProjectionReader<S, Place, Constants> read(in, place, shared.tokens);
  const ChannelSums<T> add_channels(lane);

  const Index last_tile = place.first(place.tiles > 0 ? place.tiles - 1 : 0);
  ResultRows<T, Place> du_rows(d.du, place, last_tile), ddelta_rows(d.ddelta, place, last_tile),
      dz_rows(d.dz, place, last_tile);
  Projections<T, Place> projections(in, place, last_tile, shared.projections);
  const int own_states = in.d_state - place.state(in.first_state, 0);
  const auto fetch = [&](int tile) {
    S(&states)[thread_states][block_threads] = shared.states[tile % Shared::buffers];
    if (tile > 0 || place.segment > 0) {
      const S* const from =
          d.checkpoints +
          (place.batch * d.checkpoint_count + place.first(tile) / tile_tokens - 1) * in.d_state * in.channels +
          place.state_offset(in);
#pragma unroll
      for (int e = 0; e < thread_states; ++e)
        if (e < own_states) copy_async(&states[e][threadIdx.x], from + e * in.channels, true);
    } else {
      S initial[thread_states];
      load_state(in.initial_state, in, place, initial);
#pragma unroll
      for (int e = 0; e < thread_states; ++e) states[e][threadIdx.x] = initial[e];
    }
    start_stage<4>(shared.staged[tile % Shared::buffers], rows, in, place, tile);
    projections.start(in, shared.projections, place.count(tile), -1);
    mma::commit_copies();
  };
#pragma unroll
  for (int e = 0; e < thread_states; ++e)
    if (e >= own_states)
#pragma unroll
      for (auto& states : shared.states) states[e][threadIdx.x] = S(0);
  if (place.tiles > 0) {
    fetch(place.tiles - 1);
    mma::wait_for_copies<0>();
    __syncthreads();
  }
  for (int tile = place.tiles - 1; tile >= 0; --tile) {
    const int count = place.count(tile);
    const Index first = place.first(tile);
    const auto& staged = shared.staged[tile % Shared::buffers];
    // What concerns tokens and channels; dz = gate * y.
    projections.publish(shared.projections, shared.tokens);
    S gate[own];
    {
      Step<S> step[own];
      S dy[own];
#pragma unroll
      for (int j = 0; j < own; ++j) {
        step[j] = {staged(staged_delta, place, j) + bias, S(1)};
        dy[j] = d.dout.data != nullptr ? staged(staged_dout, place, j) : S(0);
        gate[j] = S(0);
      }
      if (in.softplus)
#pragma unroll
        for (auto& of_token : step) of_token = softplus_step(of_token.dt);
      if (in.z.data != nullptr)
#pragma unroll
        for (int j = 0; j < own; ++j) {
          const S z = staged(staged_z, place, j), sigmoid_z = gate_sigmoid(z);
          gate[j] = dy[j] * sigmoid_z * element::multiply_add(z, S(1) - sigmoid_z, S(1));
          dy[j] *= z * sigmoid_z;
        }
#pragma unroll
      for (int j = 0; j < own; ++j) {
        const int k = place.token(j);
        // A token that is not there changes no state, and nothing flows through it.
        const bool there = place.valid && k < count;
        const S dt = there ? step[j].dt : S(0);
        shared.steps[k][place.local] = {dt, dt * staged(staged_u, place, j)};
        shared.gradients[k][place.local] = {there ? dy[j] : S(0), there ? step[j].derivative : S(0)};
      }
    }
    S h[tile_tokens + 1][thread_states];  // the first is read again where it is needed
    const auto begin = [&] {
#pragma unroll
      for (int e = 0; e < thread_states; ++e) h[0][e] = shared.states[tile % Shared::buffers][e][threadIdx.x];
    };
    begin();
    __syncthreads();  // B and C are there, and everybody has added the tile before
    if (Shared::buffers > 1 && tile > 0) fetch(tile - 1);

#pragma unroll
    for (int j = 0; j < own; ++j) {
      S y[Lanes];
#pragma unroll
      for (int q = 0; q < Lanes; ++q) {
        const int k = j * Lanes + q;
        const auto [dt, dt_u] = shared.steps[k][place.local];
        S B[thread_states], C[thread_states];
        read.B(read.tile, k, B);
        read.C(read.tile, k, C);
        y[q] = S(0);
#pragma unroll
        for (int e = 0; e < thread_states; ++e) {
          h[k + 1][e] = element::advance(h[k][e], element::decay(dt, A[e]), dt_u, B[e]);
          y[q] = element::multiply_add(h[k + 1][e], C[e], y[q]);
        }
      }
      if (dz_rows) {
        S sum = share_sums<Lanes>(y, place.part);
        const int k = place.token(j);
        bool write = place.valid && k < count;
        if (Lanes == 8 && write && slabs.sums[0] != nullptr)
          write = slabs.complete(0, sum, (place.batch * in.length + first + k) * in.channels + place.channel);
        sum = element::multiply_add(D, staged(staged_u, place, j), sum);
        if (write) *dz_rows.at(j) = diffmamba::detail::narrow<T>(gate[j] * sum);
      }
    }
#pragma unroll
    for (int j = own - 1; j >= 0; --j) {
      S d_dt_u[Lanes], ddt[Lanes];
#pragma unroll
      for (int q = Lanes - 1; q >= 0; --q) {
        const int k = j * Lanes + q;
        const auto [dt, dt_u] = shared.steps[k][place.local];
        const S dy = shared.gradients[k][place.local].first;
        S B[thread_states], C[thread_states];
        read.B(read.tile, k, B);
        read.C(read.tile, k, C);
        element::TokenSums<S> sums{S(0), S(0)};
        if (k == 0) begin();
#pragma unroll
        for (int e = 0; e < thread_states; ++e) {
          element::receive(dh[e], dy, C[e]);
          if constexpr (Constants) {
            dB_constant[e] = element::multiply_add(dh[e], dt_u, dB_constant[e]);
            dC_constant[e] = element::multiply_add(dy, h[k + 1][e], dC_constant[e]);
          }
        }
        add_channels(dh, h[k + 1], dt_u, dy, shared.sums[k][warp][lane]);
#pragma unroll
        for (int e = 0; e < thread_states; ++e)
          element::pass(dh[e], element::decay(dt, A[e]), h[k][e], dt, A[e], B[e], sums, dA[e]);
        d_dt_u[q] = sums.d_dt_u;
        ddt[q] = sums.ddt;
      }
      S d_dt_u_j = share_sums<Lanes>(d_dt_u, place.part), ddt_j = share_sums<Lanes>(ddt, place.part);
      const int k = place.token(j);
      bool write = place.valid && k < count;
      if (Lanes == 8 && write && slabs.sums[0] != nullptr) {
        const Index at = (place.batch * in.length + first + k) * in.channels + place.channel;
        slabs.complete(1, d_dt_u_j, at);
        write = slabs.complete(2, ddt_j, at);
      }
      const S dt = shared.steps[k][place.local].first, u = staged(staged_u, place, j);
      const auto [dy, derivative] = shared.gradients[k][place.local];
      const S du = element::multiply_add(dt, d_dt_u_j, D * dy);
      const S ddelta = element::multiply_add(u, d_dt_u_j, S(1 / element::log2e) * ddt_j) * derivative;
      dD = element::multiply_add(dy, u, dD);
      ddelta_bias += ddelta;
      if (write && du_rows) *du_rows.at(j) = diffmamba::detail::narrow<T>(du);
      if (write && ddelta_rows) *ddelta_rows.at(j) = diffmamba::detail::narrow<T>(ddelta);
    }
    mma::wait_for_copies<0>();
    __syncthreads();  // the sums are there, and the next tile if it has a buffer of its own
                      // Two states of a token at a time; parts begin at different rows, which lie in different banks.
#pragma unroll
    for (int i = 0; i < 64 * Lanes; i += block_threads) {
      constexpr int rows = 8 / Lanes;
      const int unit = i + static_cast<int>(threadIdx.x);
      const int token = unit / (4 * Lanes), part = unit / 4 % Lanes, quarter = unit % 4;
      Pair<S> sum{S(0), S(0)};
#pragma unroll
      for (int from = 0; from < Shared::warps; ++from)
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          const int row = part * rows + (r + part / 2) % rows;
          const auto term = *reinterpret_cast<const Pair<S>*>(shared.sums[token][from][4 * row + quarter]);
          sum.first += term.first;
          sum.second += term.second;
        }
      if (token < count)
        *reinterpret_cast<Pair<S>*>(
            partials.tokens +
            (((place.column * in.batch + place.batch) * in.length + first + token) * 2 + quarter / 2) * N +
            part * thread_states + quarter % 2 * 2) = sum;
    }
    du_rows.advance(-1);
    ddelta_rows.advance(-1);
    dz_rows.advance(-1);
    if (Shared::buffers == 1 && tile > 0) {
      fetch(tile - 1);
      mma::wait_for_copies<0>();
      __syncthreads();
    }
  }
  if (place.segment == 0) store_state(dh, in, place, d.dinitial_state);
  const Index states = place.slot(in) * in.d_state * in.channels;
  store_channels(dA, in, place, partials.dA + states);
  if constexpr (Constants) {
    store_channels(dB_constant, in, place, partials.dB_constant + states);
    store_channels(dC_constant, in, place, partials.dC_constant + states);
  }
  dD = Place::sum_of_parts(dD);
  ddelta_bias = Place::sum_of_parts(ddelta_bias);
  if (place.valid && place.part == 0) {
    partials.dD[place.slot(in) * in.channels + place.channel] = dD;
    partials.ddelta_bias[place.slot(in) * in.channels + place.channel] = ddelta_bias;
  }
}

template <class T, int Lanes>
struct AdjointShared {
  using S = accumulate_t<T>;
  using Place = detail::Place<Lanes>;
  static constexpr int tile = tile_tokens * 2 * Lanes * thread_states;
  Stage<T, Place, 4> staged[2];
  typename Projections<T, Place>::Shared projections;
  alignas(16) S tokens[2][tile];             // B and C
  Pair<S> steps[tile_tokens][Place::width];  // dt, dy
};

/// What each segment adds, from nothing at its end, to the gradient of the state before it, and its sum of dt.
template <class T, int Lanes, bool Constants>
__global__ void __launch_bounds__(block_threads, sizeof(accumulate_t<T>) == 4 ? 2 : 1)
    selective_scan_adjoint_kernel(DeviceInputs<T> in, StagedRows<T, 4> rows, DeviceGradients<T> d,
                                  SegmentMemory<accumulate_t<T>> segments) {
  using S = accumulate_t<T>;
  using Shared = AdjointShared<T, Lanes>;
  using Place = typename Shared::Place;
  constexpr int own = Place::own;
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Place place(in);
  S A[thread_states], dh[thread_states] = {};
  load_decay(in, place, A);
  const S bias = in.delta_bias.data != nullptr ? in.delta_bias(place.channel) : S(0);
  const ProjectionReader<S, Place, Constants> read(in, place, shared.tokens[0]);
  S dt_sum = 0;
  const Index last_tile = place.first(place.tiles - 1);
  Projections<T, Place> projections(in, place, last_tile, shared.projections);
  const auto fetch = [&](int tile) {
    start_stage<staged_u>(shared.staged[tile % 2], rows, in, place, tile);
    projections.start(in, shared.projections, place.count(tile), -1);
    mma::commit_copies();
  };
  fetch(place.tiles - 1);
  for (int tile = place.tiles - 1; tile >= 0; --tile) {
    const int count = place.count(tile), buffer = tile % 2;
    mma::wait_for_copies<0>();
    projections.publish(shared.projections, shared.tokens[buffer]);
    __syncthreads();  // this tile is there; everybody is done with the tile before
    if (tile > 0) fetch(tile - 1);
    const auto& staged = shared.staged[buffer];
    S dt[own], dy[own];
#pragma unroll
    for (int j = 0; j < own; ++j) {
      dt[j] = staged(staged_delta, place, j) + bias;
      dy[j] = d.dout.data != nullptr ? staged(staged_dout, place, j) : S(0);
    }
    if (in.softplus)
#pragma unroll
      for (S& step : dt) step = softplus_step(step).dt;
    if (in.z.data != nullptr)
#pragma unroll
      for (int j = 0; j < own; ++j) {
        const S z = staged(staged_z, place, j);
        dy[j] *= z * gate_sigmoid(z);
      }
#pragma unroll
    for (int j = 0; j < own; ++j) {
      const int k = place.token(j);
      if (k >= count) dt[j] = dy[j] = S(0);
      shared.steps[k][place.local] = {dt[j], dy[j]};
      dt_sum += dt[j];
    }
    __syncwarp();
#pragma unroll
    for (int k = tile_tokens - 1; k >= 0; --k) {
      const auto [dt_k, dy_k] = shared.steps[k][place.local];
      S C[thread_states];
      read.C(read.tile + buffer * Shared::tile, k, C);
#pragma unroll
      for (int e = 0; e < thread_states; ++e)
        dh[e] = element::multiply_add(dy_k, C[e], dh[e]) * element::decay(dt_k, A[e]);
    }
  }
  store_channels(dh, in, place, segments.states + place.slot(in) * in.d_state * in.channels);
  dt_sum = Place::sum_of_parts(dt_sum);
  if (place.valid && place.part == 0) segments.dt[place.slot(in) * in.channels + place.channel] = dt_sum;
}

/// dB or dC of the slab's states.
template <class T>
struct TokensTarget {
  TokensView<T> to;
  int groups, offset;  // of the partial sums within a token's
};

/// Adds the columns of each group, in their order, a thread for four states; a row of blocks for each target.
template <class T>
__global__ void selective_scan_tokens_kernel(DeviceInputs<T> in, const accumulate_t<T>* partials, int lanes, int states,
                                             TokensTarget<T> first, TokensTarget<T> second) {
  using S = accumulate_t<T>;
  const TokensTarget<T>& target = blockIdx.y == 0 ? first : second;
  const int quads = (states + thread_states - 1) / thread_states;
  const Index index = Index{blockIdx.x} * blockDim.x + threadIdx.x, tokens = in.batch * in.length;
  const int n = static_cast<int>(index % quads) * thread_states;
  const Index rest = index / quads;
  const int group = static_cast<int>(rest % target.groups);
  const Index token = rest / target.groups;
  if (token >= tokens) return;
  const int columns = in.columns / target.groups, row = 2 * lanes * thread_states;
  const Index step = tokens * row;
  const S* from = partials + Index{group} * columns * step + token * row + target.offset + n;
  S sums[thread_states] = {};
#pragma unroll 8
  for (int column = 0; column < columns; ++column) {
    S terms[thread_states];
    load_states(from + column * step, terms);
#pragma unroll
    for (int e = 0; e < thread_states; ++e) sums[e] += terms[e];
  }
  T* const to = target.to.data + token / in.length * target.to.batch + token % in.length * target.to.token +
                group * target.to.group + in.first_state + n;
#pragma unroll
  for (int e = 0; e < thread_states; ++e)
    if (n + e < states) to[e] = diffmamba::detail::narrow<T>(sums[e]);
}

/// A gradient of parameters, of (slots, rows, channels) partial sums.
template <class S>
struct ParameterTarget {
  const S* partials;
  int rows;
  MatrixView<S> to;
};

template <class S, int Count>
struct ParameterTargets {
  ParameterTarget<S> targets[Count];
};

/// Adds the slots, in their order, into the transposed (channels, rows); a row of blocks for each target.
template <class S>
__global__ void selective_scan_parameters_kernel(ParameterTargets<S, 5> all, Index slots, int channels, bool add) {
  ParameterTarget<S> target = all.targets[0];
#pragma unroll
  for (int i = 1; i < 5; ++i)
    if (blockIdx.y == static_cast<unsigned>(i)) target = all.targets[i];
  const Index index = Index{blockIdx.x} * blockDim.x + threadIdx.x, size = Index{target.rows} * channels;
  if (target.to.data == nullptr || index >= size) return;
  S sum = 0;
#pragma unroll 8
  for (Index slot = 0; slot < slots; ++slot) sum += target.partials[slot * size + index];
  S& result = target.to(index % channels, index / channels);
  result = add ? result + sum : sum;
}

// Launchers

template <class T>
void cut_backward(DeviceInputs<T>& in) {
  in.cut(multiprocessors(), 0.35);
}

template <class S>
View<S, 2, cuda> as_column(const View<S, 1, cuda>& view) {
  return view ? View<S, 2, cuda>(view.data(), {view.extent(0), Index{1}}, {view.stride(0), Index{1}})
              : View<S, 2, cuda>();
}

}  // namespace detail

/// Bytes of workspace that backward takes: 32 numbers per token for every 64 channels (64 for every 32 with d_state
/// over 16), so with d_state 16 in float 2 bytes per token and channel; and the parameters' gradients of every sequence
/// and segment.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved) {
  using S = accumulate_t<T>;
  check(in);
  detail::DeviceInputs<T> inputs(in, saved.options);
  detail::cut_backward(inputs);
  return detail::SegmentMemory<S>::bytes(inputs) + detail::DevicePartials<S>::bytes(inputs) +
         detail::SlabSums<S, 3>::bytes(inputs);
}

template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved, const OutputGradients<T, cuda>& upstream,
              const GradientViews<T, cuda>& to, Workspace<cuda>& workspace, GradientMode mode) {
  using S = accumulate_t<T>;
  check(in, saved, upstream, to);
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  detail::DeviceInputs<T> inputs(in, saved.options);
  detail::cut_backward(inputs);
  const unsigned blocks = inputs.blocks();
  const std::size_t mark = workspace.mark();
  detail::SegmentMemory<S> segments;
  segments.take(inputs, workspace);
  detail::DevicePartials<S> partials;
  partials.take(inputs, workspace);
  detail::SlabSums<S, 3> slabs;
  slabs.take(inputs, workspace);
  const detail::DeviceGradients<T> gradients{.dout = detail::RowsView<const T>(upstream.dout),
                                             .dfinal_state = detail::StatesView<const S>(upstream.dfinal_state),
                                             .checkpoints = saved.states.data(),
                                             .checkpoint_count = checkpoints_of<cuda>(inputs.length),
                                             .du = detail::RowsView<T>(to.du),
                                             .ddelta = detail::RowsView<T>(to.ddelta),
                                             .dz = detail::RowsView<T>(to.dz),
                                             .dinitial_state = detail::StatesView<S>(to.dinitial_state)};
  const Index strides[] = {gradients.dout.token, gradients.du.token, gradients.ddelta.token, gradients.dz.token};
  for (const Index stride : strides) detail::DeviceInputs<T>::check_token_stride(stride);
  const detail::StagedRows<T, 4> rows(inputs, {inputs.delta, inputs.z, gradients.dout, inputs.u});
  detail::with_cut(inputs, [&](auto lanes, auto constants) {
    constexpr int Lanes = decltype(lanes)::value;
    constexpr bool Constants = decltype(constants)::value;
    if (inputs.segments > 1) {
      auto without_first = inputs.without_segment(0);
      const auto kernel = detail::selective_scan_adjoint_kernel<T, Lanes, Constants>;
      constexpr int bytes = sizeof(detail::AdjointShared<T, Lanes>);
      cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                          "cudaFuncSetAttribute");
      for (int slab = 0; slab < inputs.slabs(); ++slab) {
        without_first.first_state = slab * detail::slab_states;
        kernel<<<without_first.blocks(), detail::block_threads, bytes, stream.handle>>>(without_first, rows, gradients,
                                                                                        segments);
        cuda_runtime::check_launch("selective_scan_adjoint_kernel");
      }
      const Index states = inputs.batch * inputs.d_state * inputs.channels;
      if (states > 0) {
        detail::selective_scan_segments_kernel<true>
            <<<static_cast<unsigned>((states + 255) / 256), 256, 0, stream.handle>>>(inputs, gradients.dfinal_state,
                                                                                     segments);
        cuda_runtime::check_launch("selective_scan_segments_kernel");
      }
    }
    const auto kernel = detail::selective_scan_backward_kernel<T, Lanes, Constants>;
    constexpr int bytes = sizeof(detail::BackwardShared<T, Lanes>);
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute");
    for (int slab = 0; slab < inputs.slabs(); ++slab) {
      inputs.first_state = slab * detail::slab_states;
      slabs.first = slab == 0;
      slabs.last = slab + 1 == inputs.slabs();
      if (blocks > 0) {
        kernel<<<blocks, detail::block_threads, bytes, stream.handle>>>(inputs, rows, gradients, segments, partials,
                                                                        slabs);
        cuda_runtime::check_launch("selective_scan_backward_kernel");
      }
      const int rest = inputs.d_state - inputs.first_state;
      const int states = rest < detail::slab_states ? rest : detail::slab_states;
      detail::TokensTarget<T> targets[2] = {{detail::TokensView<T>(to.dB), 0, 0}, {detail::TokensView<T>(to.dC), 0, 0}};
      int count = 0;
      Index threads = 0;
      const auto add_tokens = [&](const View<T, 4, cuda>& target, int offset) {
        if (!target || target.size() == 0) return;
        const int groups = static_cast<int>(target.extent(2));
        targets[count++] = {detail::TokensView<T>(target), groups, offset};
        const Index needed =
            inputs.batch * inputs.length * groups * ((states + detail::thread_states - 1) / detail::thread_states);
        if (needed > threads) threads = needed;
      };
      add_tokens(to.dB, 0);
      add_tokens(to.dC, Lanes * detail::thread_states);
      if (count > 0) {
        const dim3 grid(static_cast<unsigned>((threads + 127) / 128), static_cast<unsigned>(count));
        detail::selective_scan_tokens_kernel<<<grid, 128, 0, stream.handle>>>(inputs, partials.tokens, Lanes, states,
                                                                              targets[0], targets[1]);
        cuda_runtime::check_launch("selective_scan_tokens_kernel");
      }
    }
  });
  const Index slots = blocks > 0 ? inputs.batch * inputs.segments : 0;  // none: the gradients are zero
  const auto target = [](const S* from, int rows, const View<S, 2, cuda>& of) {
    return detail::ParameterTarget<S>{from, rows, detail::MatrixView<S>(of)};
  };
  const detail::ParameterTargets<S, 5> parameters{{target(partials.dA, inputs.d_state, to.dA),
                                                   target(partials.dD, 1, detail::as_column(to.dD)),
                                                   target(partials.ddelta_bias, 1, detail::as_column(to.ddelta_bias)),
                                                   target(partials.dB_constant, inputs.d_state, to.dB_constant),
                                                   target(partials.dC_constant, inputs.d_state, to.dC_constant)}};
  const Index size = Index{inputs.d_state > 1 ? inputs.d_state : 1} * inputs.channels;
  if (size > 0) {
    const dim3 grid(static_cast<unsigned>((size + 127) / 128), inputs.constants() ? 5 : 3);
    detail::selective_scan_parameters_kernel<<<grid, 128, 0, stream.handle>>>(parameters, slots, inputs.channels,
                                                                              mode == GradientMode::add);
    cuda_runtime::check_launch("selective_scan_parameters_kernel");
  }
  workspace.reset(mark);
}

}  // namespace diffmamba::selective_scan
