// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::uintptr_t
#include <numeric>  // std::lcm
#include <utility>  // std::index_sequence

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/mma.cuh"   // copy_async, multiply_add_tf32
#include "diffmamba/device/pack.cuh"  // load_pack, narrow, store_pack
#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"
#include "diffmamba/ops/selective_scan/selective_scan.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_element.hpp"

// How a GPU cuts a scan. A block of 256 threads owns 256 / Lanes neighbouring channels of a sequence (a column), or a
// segment of its tokens, and walks through time in tiles of 16 tokens. A thread holds 4 states of one channel; Lanes
// threads of the same warp share a channel, so d_state up to 4 Lanes fits; a larger one is cut into slabs of 32 states,
// one launch each, whose sums over states meet in float (or double) in the workspace. Channels lie in neighbouring
// threads, so that the channel-last activations are read and written in whole sectors.
//
// What concerns a token and a channel (softplus, gate, the sums over states) is done by one of the Lanes threads: of
// every Lanes tokens each takes one. What concerns a token and a state (B, C) lies in shared memory. So do the
// activations of a tile, which are copied there while the tile before is computed.
//
// Segments: where batch and channels alone cannot fill the GPU, the length is cut; a first launch computes what each
// segment does to the state from zero, a second adds that up in order, the third computes the outputs.
namespace diffmamba::selective_scan::detail {

inline constexpr int block_threads = 256;
inline constexpr int thread_states = 4;
inline constexpr int tile_tokens = static_cast<int>(checkpoint_interval<cuda>);
inline constexpr int slab_states = 32;

template <class T>
struct RowsView {
  T* data;
  Index batch, token;
  explicit RowsView(const View<T, 3, cuda>& view) : data(view.data()), batch(view.stride(0)), token(view.stride(1)) {}
};
template <class T>
struct TokensView {
  T* data;
  Index batch, token, group;
  explicit TokensView(const View<T, 4, cuda>& view)
      : data(view.data()), batch(view.stride(0)), token(view.stride(1)), group(view.stride(2)) {}
};
template <class S>
struct MatrixView {
  S* data;
  Index row, column;
  explicit MatrixView(const View<S, 2, cuda>& view) : data(view.data()), row(view.stride(0)), column(view.stride(1)) {}
  __device__ S& operator()(Index i, Index j) const { return data[i * row + j * column]; }
};
template <class S>
struct VectorView {
  S* data;
  Index step;
  explicit VectorView(const View<S, 1, cuda>& view) : data(view.data()), step(view.stride(0)) {}
  __device__ S& operator()(Index i) const { return data[i * step]; }
};
template <class S>
struct StatesView {
  S* data;
  Index batch, channel, state;
  explicit StatesView(const View<S, 3, cuda>& view)
      : data(view.data()), batch(view.stride(0)), channel(view.stride(1)), state(view.stride(2)) {}
  __device__ S& operator()(Index b, Index c, Index n) const { return data[b * batch + c * channel + n * state]; }
};

/// What every kernel needs of the inputs, and how they are cut. Columns never straddle a group of B or C.
template <class T>
struct DeviceInputs {
  using S = accumulate_t<T>;
  RowsView<const T> u, delta, z;
  TokensView<const T> B, C;
  MatrixView<const S> A, B_constant, C_constant;
  VectorView<const S> D, delta_bias;
  StatesView<const S> initial_state;
  Index batch, length;
  int channels, d_state, channels_per_B, channels_per_C;
  int stripe, columns_per_stripe, columns;  // channels between two borders of groups
  int segments = 1, first_segment = 0, launched_segments = 1;
  Index segment_tokens;
  int first_state = 0;  // of the slab
  bool softplus;
  bool words;  // B and C can be read in pairs of 16 bits

  DeviceInputs(const Inputs<T, cuda>& in, const Options& options)
      : u(in.u),
        delta(in.delta),
        z(in.z),
        B(in.B),
        C(in.C),
        A(in.A),
        B_constant(in.B_constant),
        C_constant(in.C_constant),
        D(in.D),
        delta_bias(in.delta_bias),
        initial_state(in.initial_state),
        batch(in.u.extent(0)),
        length(in.u.extent(1)),
        channels(static_cast<int>(in.u.extent(2))),
        d_state(static_cast<int>(in.A.extent(1))),
        channels_per_B(channels / static_cast<int>(groups_of_B(in))),
        channels_per_C(channels / static_cast<int>(groups_of_C(in))),
        stripe(channels / static_cast<int>(std::lcm(groups_of_B(in), groups_of_C(in)))),
        segment_tokens(length),
        softplus(options.delta_softplus),
        words(sizeof(T) != 2 || (in_words(B) && in_words(C) && d_state % 2 == 0)) {
    check_token_stride(u.token);
    check_token_stride(delta.token);
    check_token_stride(z.token);
    check_token_stride(B.token);
    check_token_stride(C.token);
    const int width = block_threads / lanes();
    columns_per_stripe = (stripe + width - 1) / width;
    columns = stripe == 0 ? 0 : channels / stripe * columns_per_stripe;
  }
  /// Offsets within a tile of tokens are 32-bit.
  static void check_token_stride(Index stride) {
    require(0 <= stride && stride < (Index{1} << 28) / tile_tokens, "selective_scan: tokens lie ", stride,
            " elements apart, expected 0 to ", (Index{1} << 28) / tile_tokens - 1);
  }
  bool constants() const { return B_constant.data != nullptr || C_constant.data != nullptr; }
  static bool in_words(const TokensView<const T>& of) {
    return reinterpret_cast<std::uintptr_t>(of.data) % 4 == 0 && of.batch % 2 == 0 && of.token % 2 == 0 &&
           of.group % 2 == 0;
  }
  /// Threads that share a channel; for constants there is one kernel only.
  int lanes() const { return d_state <= 16 && !constants() ? 4 : 8; }
  int slabs() const { return d_state <= slab_states ? 1 : (d_state + slab_states - 1) / slab_states; }
  /// Cuts the length into as many segments, of 64 tokens or more, as promise the least time: what the busiest
  /// multiprocessor does, which holds two blocks and is slower with one, and the part `again` of the work that the
  /// first launch does, over all segments but one.
  void cut(int processors, double again) {
    const Index whole = batch * columns, tiles = (length + tile_tokens - 1) / tile_tokens;
    if (whole == 0 || tiles < 8) return;
    const auto busiest = [&](Index launched) {
      const Index blocks = (whole * launched + processors - 1) / processors;
      constexpr double speed_of_one = 0.6;
      return blocks == 1 ? 1 / speed_of_one : static_cast<double>(blocks);
    };
    const auto time = [&](Index count) {
      return (busiest(count) + again * busiest(count - 1)) / static_cast<double>(count);
    };
    Index best = 1;
    for (Index count = 2; count <= 128 && 4 * count <= tiles; ++count)
      if (time(count) < 0.96 * time(best)) best = count;
    segment_tokens = (tiles + best - 1) / best * tile_tokens;
    segments = static_cast<int>((length + segment_tokens - 1) / segment_tokens);
    launched_segments = segments;
  }
  unsigned blocks() const {
    const Index count = batch * launched_segments * columns;
    require(count < (Index{1} << 31), "selective_scan: ", batch, " sequences of ", channels, " channels are too many");
    return static_cast<unsigned>(count);
  }
  /// The same for a launch over all segments but the last or the first: they add to no other.
  DeviceInputs without_segment(int segment) const {
    DeviceInputs result = *this;
    result.launched_segments = segments - 1;
    result.first_segment = segment == 0 ? 1 : 0;
    return result;
  }
  /// Elements of the states in which segments meet: (batch, segments, d_state, channels).
  Index segment_states() const { return batch * segments * d_state * channels; }
};

/// Which part of it a thread has. The Lanes threads of a channel are 32 / Lanes apart in their warp, which suits sums
/// over channels, or, as a Quad, neighbours, which suits sums over states by the tensor cores.
template <int Threads, bool Quad = false>
struct Place {
  static_assert(!Quad || Threads == 4);
  static constexpr int Lanes = Threads, channels_per_warp = 32 / Lanes, width = block_threads / Lanes,
                       own = tile_tokens / Lanes;
  Index batch;
  int segment, column, channel;  // the channel of the last thread that has one, if this has none
  int local;                     // thread of a part within the block
  int first_channel, shift;      // of the block; from there to `channel`
  int part;                      // states [4 part, 4 part + 4) of the channel, and tokens token(0 ... own - 1)
  bool valid;
  Index begin;            // token
  int tiles, last_count;  // tokens of the last tile

  template <class T>
  __device__ explicit Place(const DeviceInputs<T>& in) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const unsigned outer = blockIdx.x / static_cast<unsigned>(in.columns);
    column = static_cast<int>(blockIdx.x % static_cast<unsigned>(in.columns));
    segment = in.first_segment + static_cast<int>(outer % static_cast<unsigned>(in.launched_segments));
    batch = outer / static_cast<unsigned>(in.launched_segments);
    local = warp * channels_per_warp + (Quad ? lane / Lanes : lane % channels_per_warp);
    part = Quad ? lane % Lanes : lane / channels_per_warp;
    const int offset = column % in.columns_per_stripe * width + local;
    valid = offset < in.stripe;
    first_channel = column / in.columns_per_stripe * in.stripe + column % in.columns_per_stripe * width;
    shift = valid ? local : in.stripe - 1 - column % in.columns_per_stripe * width;
    channel = first_channel + shift;
    begin = segment * in.segment_tokens;
    const Index tokens = ::min(in.segment_tokens, in.length - begin);
    tiles = static_cast<int>((tokens + tile_tokens - 1) / tile_tokens);
    last_count = static_cast<int>(tokens - Index{tiles - 1} * tile_tokens);
  }
  __device__ Index first(int tile) const { return begin + Index{tile} * tile_tokens; }
  __device__ int count(int tile) const { return tile + 1 < tiles ? tile_tokens : last_count; }
  /// The thread's tokens of a tile: every Lanes-th, or of every eight two neighbours.
  static __device__ constexpr int token_base(int j) { return Quad ? j / 2 * 8 + j % 2 : j * Lanes; }
  __device__ int token_offset() const { return Quad ? 2 * part : part; }
  __device__ int token(int j) const { return token_base(j) + token_offset(); }
  /// Over the threads of a channel.
  template <class S>
  static __device__ S sum_of_parts(S value) {
    constexpr int nearest = Quad ? 1 : channels_per_warp;
#pragma unroll
    for (int distance = nearest; distance < nearest * Lanes; distance *= 2)
      value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
  }
  template <class T>
  __device__ Index slot(const DeviceInputs<T>& in) const {
    return batch * in.segments + segment;
  }
  __device__ int state(int first_state, int e) const {
    return first_state + part * thread_states + e;
  }
  /// Where the thread's first state lies among (d_state, channels).
  template <class T>
  __device__ Index state_offset(const DeviceInputs<T>& in) const {
    return Index{state(in.first_state, 0)} * in.channels + channel;
  }
};

// --- Formulas --------------------------------------------------------------------------------------------------------

template <class S>
struct Step {
  S dt, derivative;  // softplus and its derivative
};

/// 1 / x by the one instruction there is (1 ulp).
__device__ inline float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// For float the exponential, logarithm and division of math/softplus.hpp by the approximate instructions, with the
/// exponential's argument in two parts and log(1 + e) as 2 atanh(e / (2 + e)): about 3e-7 relative.
__device__ inline Step<float> softplus_step(float x) {
  constexpr float log2e = 1.44269504f, log2e_rest = 1.92596299e-8f, ln2 = 0.693147181f;
  const float t = -fabsf(x), high = t * log2e, low = fmaf(t, log2e_rest, fmaf(t, log2e, -high));
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(high));
  e = fmaf(e, low * ln2, e);
  const float s = e * reciprocal(2.0f + e), q = s * s, r = reciprocal(1.0f + e);
  float series = 0.14087329f;
  series = fmaf(series, q, 0.13980709f);
  series = fmaf(series, q, 0.20012427f);
  series = fmaf(series, q, 0.33333158f);
  series = fmaf(series, q, 1.0f);
  return {fmaf(2.0f * s, series, fmaxf(x, 0.0f)), x < 0.0f ? e * r : r};
}
__device__ inline Step<double> softplus_step(double x) {
  return {softplus(x), softplus_derivative(x)};
}

/// sigmoid(x) by the approximate exponential and division: |x| 1e-7 relative.
__device__ inline float gate_sigmoid(float x) {
  return reciprocal(1.0f + element::decay(x, -static_cast<float>(element::log2e)));
}
__device__ inline double gate_sigmoid(double x) {
  return sigmoid(x);
}

// --- Pieces of kernels -----------------------------------------------------------------------------------------------

/// Of the Lanes tokens whose parts every thread of a channel holds, thread `part` gets the whole of token `part`.
template <int Lanes, class S>
__device__ inline S share_sums(S (&parts)[Lanes], int part) {
#pragma unroll
  for (int w = Lanes / 2; w > 0; w /= 2) {
    const bool upper = (part & w) != 0;
#pragma unroll
    for (int i = 0; i < w; ++i) {
      const S give = upper ? parts[i] : parts[i + w], keep = upper ? parts[i + w] : parts[i];
      parts[i] = keep + __shfl_xor_sync(0xffffffffu, give, w * (32 / Lanes));
    }
  }
  return parts[0];
}

/// A number as its accumulation type, 16 bits by one load and one instruction.
template <class T>
__device__ inline accumulate_t<T> load_wide(const T* from) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return __uint_as_float(static_cast<unsigned>(from->bits) << 16);
  else if constexpr (std::is_same_v<T, half>)
    return __half2float(__ushort_as_half(from->bits));
  else
    return *from;
}

/// One result of the channel in memory: this thread's tokens of a tile. Offsets within a tile are 32-bit.
template <class T, class Place>
struct ResultRows {
  static constexpr int own = Place::own;
  T* data = nullptr;  // of the block's first channel and the tile's first token: the same for all threads
  int step;           // from token to token
  unsigned offset;    // of the thread, in bytes

  __device__ ResultRows(const RowsView<T>& rows, const Place& place, Index first)
      : step(static_cast<int>(rows.token)),
        offset(static_cast<unsigned>(place.token_offset() * step + place.shift) * static_cast<unsigned>(sizeof(T))) {
    if (rows.data != nullptr) data = rows.data + place.batch * rows.batch + first * rows.token + place.first_channel;
  }
  __device__ explicit operator bool() const { return data != nullptr; }
  __device__ void advance(int tiles) { data += Index{step} * (tiles * tile_tokens); }
  __device__ T* at(int j) const { return shifted(data + step * Place::token_base(j)); }

 private:
  __device__ T* shifted(T* from) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(from) + offset);
  }
};

/// The activations that a kernel stages in shared memory; what is absent is null.
template <class T, int Count>
struct StagedRows {
  static constexpr int piece = 16 / static_cast<int>(sizeof(T));  // elements of an asynchronous copy
  RowsView<const T> rows[Count];
  bool pieces;  // all rows of all blocks consist of whole pieces at their borders

  StagedRows(const DeviceInputs<T>& in, const RowsView<const T> (&of)[Count])
      : StagedRows(in, of, std::make_index_sequence<Count>{}) {}

 private:
  template <std::size_t... I>
  StagedRows(const DeviceInputs<T>& in, const RowsView<const T> (&of)[Count], std::index_sequence<I...>)
      : rows{of[I]...}, pieces(in.stripe % piece == 0 && (fits(of[I]) && ...)) {}
  static bool fits(const RowsView<const T>& of) {
    return reinterpret_cast<std::uintptr_t>(of.data) % 16 == 0 && of.batch % piece == 0 && of.token % piece == 0;
  }
};

/// A tile of them in shared memory: (Count, tokens, row). The padding puts the rows that a warp reads at once into
/// different banks.
template <class T, class Place, int Count>
struct Stage {
  static constexpr int piece = StagedRows<T, Count>::piece,
                       row = Place::width + (piece > Place::channels_per_warp ? piece : Place::channels_per_warp);
  alignas(16) T elements[Count][tile_tokens][row];

  /// Of the token j of this thread.
  __device__ accumulate_t<T> operator()(int operand, const Place& place, int j) const {
    return load_wide(&elements[operand][place.token(j)][place.shift]);
  }
};

/// Starts to copy the first `Used` of Count activations of a tile. A thread must wait for its copies
/// (mma::commit_copies, mma::wait_for_copies) before the barrier after which all may read. Past the last token there
/// are zeros.
template <int Used, class T, class Place, int Count>
__device__ inline void start_stage(Stage<T, Place, Count>& to, const StagedRows<T, Count>& rows,
                                   const DeviceInputs<T>& in, const Place& place, int tile) {
  using To = Stage<T, Place, Count>;
  constexpr int pieces = Place::width / To::piece, at_once = block_threads / pieces;
  const int tokens = place.count(tile), thread = static_cast<int>(threadIdx.x);
  const int channels = ::min(in.stripe - place.column % in.columns_per_stripe * Place::width, Place::width);
#pragma unroll
  for (int operand = 0; operand < Used; ++operand) {
    const RowsView<const T>& source = rows.rows[operand];
    if (source.data == nullptr) continue;
    const T* const begin =
        source.data + place.batch * source.batch + place.first(tile) * source.token + place.first_channel;
    const int step = static_cast<int>(source.token);
    if (rows.pieces) {
      // Where a part of the block is enough, the parts take turns.
      constexpr int parts = at_once > tile_tokens ? at_once / tile_tokens : 1, part_threads = block_threads / parts;
      const int part = thread / part_threads, channel = thread % pieces * To::piece;
      if (part != operand % parts || channel >= channels) continue;
#pragma unroll
      for (int k = 0; k < tile_tokens; k += at_once) {
        const int token = k + thread % part_threads / pieces;
        mma::copy_async(&to.elements[operand][token][channel], begin + (token * step + channel), token < tokens);
      }
    } else {
#pragma unroll 1
      for (int i = thread; i < tile_tokens * Place::width; i += block_threads) {
        const int token = i / Place::width, channel = i % Place::width;
        if (channel < channels)
          to.elements[operand][token][channel] = token < tokens ? begin[token * step + channel] : T{};
      }
    }
  }
}

/// Starts to copy 4 or 8 bytes, zeros if not `valid`.
template <class S>
__device__ inline void copy_async(S* shared, const void* global, bool valid) {
  static_assert(sizeof(S) == 4 || sizeof(S) == 8);
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(sizeof(S)),
               "r"(valid ? static_cast<int>(sizeof(S)) : 0)
               : "memory");
}

/// B and C of a tile of tokens, (tokens, 2, 4 Lanes), on their way to shared memory; what is absent or a constant is
/// zero, and what is past the last token. Every thread has a few words of them, which no other thread touches before
/// they are published: a number, or two of 16 bits.
template <class T, class Place>
struct Projections {
  static constexpr int N = Place::Lanes * thread_states, numbers = sizeof(T) == 2 ? 2 : 1, columns = 2 * N / numbers,
                       tokens_at_once = block_threads / columns, count = tile_tokens / tokens_at_once;
  using Word = diffmamba::detail::Pack<T, numbers>;
  struct Shared {
    alignas(16) Word words[count][block_threads];
  };
  const T* data = nullptr;  // of the next tile
  int step;                 // from token to token

  __device__ Projections(const DeviceInputs<T>& in, const Place& place, Index first, Shared& shared) {
    const int column = static_cast<int>(threadIdx.x) % columns * numbers, n = in.first_state + column % N;
    const TokensView<const T>& from = column < N ? in.B : in.C;
    const int group = place.first_channel / (column < N ? in.channels_per_B : in.channels_per_C);
    step = static_cast<int>(from.token);
    if (from.data != nullptr && n < in.d_state)
      data = from.data + place.batch * from.batch + (first + token()) * from.token + group * from.group + n;
    else
#pragma unroll
      for (int r = 0; r < count; ++r) shared.words[r][threadIdx.x] = diffmamba::detail::zero_pack<numbers, T>();
  }
  /// Starts with a tile of so many tokens, and goes on to another one.
  __device__ void start(const DeviceInputs<T>& in, Shared& shared, int tokens, int on) {
    if (data == nullptr) return;
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const int k = r * tokens_at_once;
      Word* const to = &shared.words[r][threadIdx.x];
      if (in.words) {
        copy_async(reinterpret_cast<std::conditional_t<sizeof(Word) == 8, double, float>*>(to), data + k * step,
                   k + token() < tokens);
      } else {
        const int n = in.first_state + static_cast<int>(threadIdx.x) % columns * numbers % N;
        Word word = diffmamba::detail::zero_pack<numbers, T>();
#pragma unroll
        for (int i = 0; i < numbers; ++i)
          if (n + i < in.d_state && k + token() < tokens) word.elements[i] = data[k * step + i];
        *to = word;
      }
    }
    data += Index{step} * (on * tile_tokens);
  }
  __device__ void publish(const Shared& shared, accumulate_t<T>* to) const {
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const Word word = shared.words[r][threadIdx.x];
      accumulate_t<T> wide[numbers];
#pragma unroll
      for (int i = 0; i < numbers; ++i) wide[i] = word.elements[i];
      diffmamba::detail::store_pack(to + (r * block_threads + static_cast<int>(threadIdx.x)) * numbers, wide);
    }
  }

 private:
  static __device__ int token() {
    return static_cast<int>(threadIdx.x) / columns;
  }
};

/// This thread's states of a row in shared memory.
template <class S>
__device__ inline void load_states(const S* from, S (&to)[thread_states]) {
  constexpr int pack = 16 / static_cast<int>(sizeof(S));
#pragma unroll
  for (int i = 0; i < thread_states; i += pack) {
    const auto values = diffmamba::detail::load_pack<pack>(from + i);
#pragma unroll
    for (int k = 0; k < pack; ++k) to[i + k] = values.elements[k];
  }
}

/// B_t and C_t as a thread reads them: from the tile in shared memory, or from registers where they are constants of
/// its channel.
template <class S, class Place, bool Constants>
struct ProjectionReader {
  static constexpr int Lanes = Place::Lanes;
  const S* tile;  // this thread's states
  S B_constant[Constants ? thread_states : 1], C_constant[Constants ? thread_states : 1];
  bool B_is_constant = false, C_is_constant = false;

  template <class T>
  __device__ ProjectionReader(const DeviceInputs<T>& in, const Place& place, const S* shared)
      : tile(shared + place.part * thread_states) {
    if constexpr (Constants) {
      B_is_constant = in.B_constant.data != nullptr;
      C_is_constant = in.C_constant.data != nullptr;
#pragma unroll
      for (int e = 0; e < thread_states; ++e) {
        const int n = place.state(in.first_state, e);
        B_constant[e] = B_is_constant && n < in.d_state ? in.B_constant(place.channel, n) : S(0);
        C_constant[e] = C_is_constant && n < in.d_state ? in.C_constant(place.channel, n) : S(0);
      }
    }
  }
  __device__ void B(const S* tokens, int k, S (&to)[thread_states]) const {
    load_states(tokens + k * 2 * Lanes * thread_states, to);
    if constexpr (Constants)
#pragma unroll
      for (int e = 0; e < thread_states; ++e) to[e] = B_is_constant ? B_constant[e] : to[e];
  }
  __device__ void C(const S* tokens, int k, S (&to)[thread_states]) const {
    load_states(tokens + (k * 2 + 1) * Lanes * thread_states, to);
    if constexpr (Constants)
#pragma unroll
      for (int e = 0; e < thread_states; ++e) to[e] = C_is_constant ? C_constant[e] : to[e];
  }
};

template <class S>
struct alignas(2 * sizeof(S)) Pair {
  S first, second;
};

/// A of the thread's states in units of 1 / ln 2; zero past the last.
template <class T, class Place>
__device__ inline void load_decay(const DeviceInputs<T>& in, const Place& place, accumulate_t<T> (&A)[thread_states]) {
  using S = accumulate_t<T>;
#pragma unroll
  for (int e = 0; e < thread_states; ++e) {
    const int n = place.state(in.first_state, e);
    A[e] = n < in.d_state ? in.A(place.channel, n) * S(element::log2e) : S(0);
  }
}
template <class S, class T, class Place>
__device__ inline void load_state(const StatesView<const S>& from, const DeviceInputs<T>& in, const Place& place,
                                  S (&to)[thread_states]) {
#pragma unroll
  for (int e = 0; e < thread_states; ++e) {
    const int n = place.state(in.first_state, e);
    to[e] = from.data != nullptr && n < in.d_state ? from(place.batch, place.channel, n) : S(0);
  }
}
template <class S, class T, class Place>
__device__ inline void store_state(const S (&from)[thread_states], const DeviceInputs<T>& in, const Place& place,
                                   const StatesView<S>& to) {
  if (to.data == nullptr || !place.valid) return;
#pragma unroll
  for (int e = 0; e < thread_states; ++e) {
    const int n = place.state(in.first_state, e);
    if (n < in.d_state) to(place.batch, place.channel, n) = from[e];
  }
}
/// The same with states (d_state, channels), channels dense; `own` is where this thread's first state lies.
template <class S, class T, class Place>
__device__ inline void store_own(const S (&from)[thread_states], const DeviceInputs<T>& in, const Place& place,
                                 S* own) {
  const int there = place.valid ? in.d_state - place.state(in.first_state, 0) : 0;
#pragma unroll
  for (int e = 0; e < thread_states; ++e)
    if (e < there) own[e * in.channels] = from[e];
}
template <class S, class T, class Place>
__device__ inline void load_channels(const S* from, const DeviceInputs<T>& in, const Place& place,
                                     S (&to)[thread_states]) {
#pragma unroll
  for (int e = 0; e < thread_states; ++e)
    to[e] = place.state(in.first_state, e) < in.d_state ? from[place.state_offset(in) + e * in.channels] : S(0);
}
template <class S, class T, class Place>
__device__ inline void store_channels(const S (&from)[thread_states], const DeviceInputs<T>& in, const Place& place,
                                      S* to) {
  store_own(from, in, place, to + place.state_offset(in));
}

/// Where segments meet: (batch, segments, d_state, channels) states, and the sum of dt of each segment, (batch,
/// segments, channels).
template <class S>
struct SegmentMemory {
  S* states = nullptr;
  S* dt = nullptr;

  template <class T>
  static std::size_t bytes(const DeviceInputs<T>& in) {
    if (in.segments == 1) return 0;
    return Workspace<cuda>::bytes_of<S>(in.segment_states()) +
           Workspace<cuda>::bytes_of<S>(in.batch * in.segments * in.channels);
  }
  template <class T>
  void take(const DeviceInputs<T>& in, Workspace<cuda>& workspace) {
    if (in.segments == 1) return;
    states = workspace.take<S>(in.segment_states());
    dt = workspace.take<S>(in.batch * in.segments * in.channels);
  }
};

/// Turns what each segment adds into what each begins with, in order, or, with Reverse, into what each begins with on
/// its way from the end: state <- exp(A sum dt) state + added. A thread for every sequence, state and channel.
template <bool Reverse, class T>
__global__ void selective_scan_segments_kernel(DeviceInputs<T> in, StatesView<const accumulate_t<T>> start,
                                               SegmentMemory<accumulate_t<T>> memory) {
  using S = accumulate_t<T>;
  const Index index = Index{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= in.batch * in.d_state * in.channels) return;
  const int channel = static_cast<int>(index % in.channels);
  const Index rest = index / in.channels;
  const int n = static_cast<int>(rest % in.d_state);
  const Index b = rest / in.d_state;
  S state = start.data != nullptr ? start(b, channel, n) : S(0);
  const S A = in.A(channel, n) * S(element::log2e);
  constexpr int at_once = 8;  // loads under way together
  for (int first = 0; first < in.segments; first += at_once) {
    S added[at_once], dt[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int i = first + k;
      if (i + 1 >= in.segments) continue;
      const Index slot = b * in.segments + (Reverse ? in.segments - 1 - i : i);
      added[k] = memory.states[(slot * in.d_state + n) * in.channels + channel];
      dt[k] = memory.dt[slot * in.channels + channel];
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int i = first + k;
      if (i >= in.segments) continue;
      const Index slot = b * in.segments + (Reverse ? in.segments - 1 - i : i);
      memory.states[(slot * in.d_state + n) * in.channels + channel] = state;
      if (i + 1 < in.segments) state = element::advance(state, element::decay(dt[k], A), S(1), added[k]);
    }
  }
}

/// Sums over states of slabs that have gone before: (batch, length, channels) each; null with one slab.
template <class S, int Count>
struct SlabSums {
  S* sums[Count] = {};
  bool first = true, last = true;

  template <class T>
  static std::size_t bytes(const DeviceInputs<T>& in) {
    return in.slabs() == 1 ? 0 : Count * Workspace<cuda>::bytes_of<S>(in.batch * in.length * in.channels);
  }
  template <class T>
  void take(const DeviceInputs<T>& in, Workspace<cuda>& workspace) {
    if (in.slabs() == 1) return;
    for (S*& sum : sums) sum = workspace.take<S>(in.batch * in.length * in.channels);
  }
  /// Adds what was there; true if the sum is complete, else it is left for the next slab.
  __device__ bool complete(int which, S& sum, Index at) const {
    if (!first) sum += sums[which][at];
    if (!last) sums[which][at] = sum;
    return last;
  }
};

/// Calls launch(std::integral_constant<int, Lanes>, std::bool_constant<Constants>).
template <class T, class Launch>
void with_cut(const DeviceInputs<T>& in, Launch&& launch) {
  constexpr std::bool_constant<false> per_token;
  if (in.constants()) return launch(std::integral_constant<int, 8>{}, std::bool_constant<true>{});
  if (in.lanes() == 4) return launch(std::integral_constant<int, 4>{}, per_token);
  launch(std::integral_constant<int, 8>{}, per_token);
}

inline int multiprocessors() {
  int count = 0;
  cuda_runtime::check(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, cuda_runtime::current_stream().device),
      "cudaDeviceGetAttribute");
  return count;
}

}  // namespace diffmamba::selective_scan::detail
