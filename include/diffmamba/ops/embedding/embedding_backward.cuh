// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>                               // std::bit_width
#include <cub/device/device_radix_sort.cuh>  // cub::DeviceRadixSort

#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/embedding/embedding_forward.cuh"
#include "diffmamba/tensor/takes_packs.hpp"

/// Positions are sorted by their tokens, stably, so that those of one token follow one another in the order of the
/// text, a run. Chunks of 32 sorted positions are then summed by a block each, whatever the runs: a run inside one
/// chunk goes to dweight at once; of a run that crosses chunks each leaves its part in memory, and where the run begins
/// the parts are added up in their order. So a token that stands everywhere is as fast as one that stands once, no two
/// threads meet, and the bits depend on the tokens alone.
namespace diffmamba::embedding {
namespace detail {

inline constexpr int chunk = 32;

/// What of a chunk's sums does not go to dweight at once: of the run that came in from the left, and of the one that
/// begins inside and goes on to the right.
template <class S>
struct Parts {
  S* head;
  S* tail;  // (chunks, d_model) each
};

// CUDA kernels

/// Tokens out of the vocabulary become vocab_size, the last.
template <class = void>
__global__ void positions_kernel(Tokens tokens, Index count, Index vocab_size, std::uint32_t* keys,
                                 std::int32_t* positions) {
  const Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Index token = tokens.at(i / tokens.length, i % tokens.length);
  keys[i] = static_cast<std::uint32_t>(token < 0 || token > vocab_size ? vocab_size : token);
  positions[i] = static_cast<std::int32_t>(i);
}

template <class S>
__global__ void clear_rows_kernel(S* data, Index row, Index columns, Index size) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += Index{gridDim.x} * blockDim.x)
    data[i / columns * row + i % columns] = S(0);
}

/// A block: one chunk, 128 * Vector columns.
template <class G, int Vector>
__global__ __launch_bounds__(128) void runs_kernel(const std::uint32_t* keys, const std::int32_t* positions,
                                                   Index count, Index vocab_size, const G* dout, Index length,
                                                   Index dout_batch, Index dout_row, Index d_model, Index column_tiles,
                                                   accumulate_t<G>* dweight, Index dweight_row,
                                                   Parts<accumulate_t<G>> parts) {
  using S = accumulate_t<G>;
  using diffmamba::detail::load_pack;
  using diffmamba::detail::Pack;
  constexpr int at_once = 8;
  __shared__ Index offsets[chunk];
  __shared__ std::uint32_t tokens[chunk + 2];  // with those on either side
  const Index which = blockIdx.x / column_tiles, first = which * chunk;
  const int members = static_cast<int>(count - first < chunk ? count - first : chunk);
  constexpr std::uint32_t none = ~std::uint32_t{0};
  if (threadIdx.x < chunk + 2) {
    const Index i = first + threadIdx.x - 1;
    tokens[threadIdx.x] = 0 <= i && i < count ? keys[i] : none;
  }
  if (threadIdx.x < members) {
    const Index position = positions[first + threadIdx.x];
    offsets[threadIdx.x] = position / length * dout_batch + position % length * dout_row;
  }
  __syncthreads();
  const Index column = (blockIdx.x % column_tiles * 128 + threadIdx.x) * Vector;
  cuda_runtime::let_next_kernel_begin();
  if (column >= d_model) return;
  S sum[Vector] = {};
  bool from_left = tokens[0] == tokens[1];
  for (int base = 0; base < members; base += at_once) {
    Pack<G, Vector> packs[at_once];
#pragma unroll
    for (int q = 0; q < at_once; ++q)
      if (base + q < members) packs[q] = load_pack<Vector>(dout + offsets[base + q] + column);
#pragma unroll
    for (int q = 0; q < at_once; ++q) {
      const int i = base + q;
      if (i >= members) break;
      S x[Vector];
      packs[q].widen(x);
#pragma unroll
      for (int e = 0; e < Vector; ++e) sum[e] += x[e];
      const std::uint32_t token = tokens[i + 1];
      const bool ends = tokens[i + 2] != token, last = i + 1 == members;
      if (!ends && !last) continue;
      S* to = from_left            ? parts.head + which * d_model
              : !ends              ? parts.tail + which * d_model
              : token < vocab_size ? dweight + token * dweight_row
                                   : nullptr;
      if (to != nullptr) {
        const bool add = !from_left && ends;
#pragma unroll
        for (int e = 0; e < Vector; ++e) to[column + e] = add ? to[column + e] + sum[e] : sum[e];
      }
#pragma unroll
      for (int e = 0; e < Vector; ++e) sum[e] = 0;
      from_left = false;
    }
  }
}

inline constexpr int long_run_threads = 32, long_run_lines = 8;

/// A block: the run, if any, that begins in a chunk and goes on, 32 * Vector columns. Line l of the block adds the
/// parts l, l + 8, ... of the run, then the lines are added in their order.
template <class S, int Vector>
__global__ __launch_bounds__(long_run_threads* long_run_lines) void long_runs_kernel(const std::uint32_t* keys,
                                                                                     Index count, Index vocab_size,
                                                                                     Index d_model, Index column_tiles,
                                                                                     S* dweight, Index dweight_row,
                                                                                     Parts<S> parts) {
  using diffmamba::detail::load_pack;
  using diffmamba::detail::store_pack;
  __shared__ __align__(16) S sums[long_run_lines][long_run_threads * Vector];
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  const Index which = blockIdx.x / column_tiles, first = which * chunk, next = first + chunk;
  if (next >= count) return;
  const std::uint32_t token = keys[next - 1];
  if (keys[next] != token || token >= vocab_size) return;                     // ends with the chunk
  if (first > 0 && keys[first] == token && keys[first - 1] == token) return;  // began further left
  // The last chunk that begins with the token; the keys are sorted.
  Index last = which + 1, beyond = (count + chunk - 1) / chunk;
  while (beyond - last > 1) {
    const Index middle = (last + beyond) / 2;
    (keys[middle * chunk] == token ? last : beyond) = middle;
  }
  const int line = threadIdx.x / long_run_threads, place = threadIdx.x % long_run_threads * Vector;
  const Index column = blockIdx.x % column_tiles * long_run_threads * Vector + place;
  const bool inside = column < d_model;
  S sum[Vector] = {};
  const auto add = [&](const S* from) {
    S part[Vector];
    load_pack<Vector>(from).widen(part);
#pragma unroll
    for (int e = 0; e < Vector; ++e) sum[e] += part[e];
  };
  if (inside) {
    const S* head = parts.head + column;
#pragma unroll 8
    for (Index c = which + 1 + line; c <= last; c += long_run_lines) add(head + c * d_model);
  }
  store_pack(sums[line] + place, sum);
  __syncthreads();
  if (line > 0 || !inside) return;
  load_pack<Vector>(parts.tail + which * d_model + column).widen(sum);
#pragma unroll
  for (int i = 0; i < long_run_lines; ++i) add(sums[i] + place);
  S* const to = dweight + token * dweight_row + column;
  add(to);
  store_pack(to, sum);
}

// Launchers

template <class G>
void backward(const Tokens& tokens, Index count, const View<const G, 3, cuda>& dout,
              const View<accumulate_t<G>, 2, cuda>& dweight, GradientMode mode) {
  using S = accumulate_t<G>;
  const Index vocab_size = dweight.extent(0), d_model = dweight.extent(1);
  require(count < Index{1} << 31 && vocab_size < Index{1} << 31, "embedding: ", count, " tokens of ", vocab_size,
          " are more than a GPU sorts");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  if (mode == GradientMode::assign && dweight.size() > 0) {
    clear_rows_kernel<<<cuda_runtime::blocks_for(dweight.size(), 256), 256, 0, stream.handle>>>(
        dweight.data(), dweight.stride(0), d_model, dweight.size());
    cuda_runtime::check_launch("clear_rows_kernel");
  }
  if (count == 0 || d_model == 0) return;
  const int bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(vocab_size)));
  const auto numbers = static_cast<int>(count);
  std::size_t sort_bytes = 0;
  const auto sort = [&](void* memory, std::uint32_t* keys, std::uint32_t* sorted, std::int32_t* positions,
                        std::int32_t* order) {
    cuda_runtime::check(cub::DeviceRadixSort::SortPairs(memory, sort_bytes, keys, sorted, positions, order, numbers, 0,
                                                        bits, stream.handle),
                        "cub::DeviceRadixSort::SortPairs");
  };
  sort(nullptr, nullptr, nullptr, nullptr, nullptr);
  const Index chunks = (count + chunk - 1) / chunk;
  using Memory = Workspace<cuda>;
  Memory memory(4 * Memory::bytes_of<std::uint32_t>(count) +
                Memory::bytes_of<std::byte>(static_cast<Index>(sort_bytes)) +
                2 * Memory::bytes_of<S>(chunks * d_model));
  auto* keys = memory.take<std::uint32_t>(count);
  auto* sorted = memory.take<std::uint32_t>(count);
  auto* positions = memory.take<std::int32_t>(count);
  auto* order = memory.take<std::int32_t>(count);
  auto* temporary = memory.take<std::byte>(static_cast<Index>(sort_bytes));
  const Parts<S> parts{memory.take<S>(chunks * d_model), memory.take<S>(chunks * d_model)};
  positions_kernel<><<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream.handle>>>(tokens, count, vocab_size,
                                                                                            keys, positions);
  cuda_runtime::check_launch("positions_kernel");
  sort(temporary, keys, sorted, positions, order);

  constexpr int vector = 16 / sizeof(S);  // of the sums
  const bool vectors = diffmamba::detail::takes_packs<vector>(dout) && diffmamba::detail::takes_packs<vector>(dweight);
  const Index wide = 128 * (vectors ? vector : 1), tiles = (d_model + wide - 1) / wide;
  require(chunks * ((d_model + 31) / 32) < Index{1} << 31, "embedding: too many tokens for one launch");
  (vectors ? runs_kernel<G, vector>
           : runs_kernel<G, 1>)<<<static_cast<unsigned>(chunks * tiles), 128, 0, stream.handle>>>(
      sorted, order, count, vocab_size, dout.data(), tokens.length, dout.stride(0), dout.stride(1), d_model, tiles,
      dweight.data(), dweight.stride(0), parts);
  cuda_runtime::check_launch("runs_kernel");
  const Index narrow = long_run_threads * (vectors ? vector : 1), narrow_tiles = (d_model + narrow - 1) / narrow;
  cuda_runtime::launch_overlapped("long_runs_kernel", vectors ? long_runs_kernel<S, vector> : long_runs_kernel<S, 1>,
                                  static_cast<unsigned>(chunks * narrow_tiles), long_run_threads * long_run_lines, 0,
                                  stream.handle, sorted, count, vocab_size, d_model, narrow_tiles, dweight.data(),
                                  dweight.stride(0), parts);
}

template <class T, class Token, class G>
void checked_backward(const Inputs<T, Token, cuda>& in, const View<const G, 3, cuda>& dout,
                      const View<accumulate_t<T>, 2, cuda>& dweight, GradientMode mode) {
  check_shapes(in);
  const Index batch = in.tokens.extent(0), length = in.tokens.extent(1), d_model = in.weight.extent(1);
  require_shape("embedding", "dout", dout, Extents<3>{batch, length, d_model});
  require_shape("embedding", "dweight", dweight, in.weight.extents());
  require((dout.stride(2) == 1 && dweight.stride(1) == 1) || d_model <= 1,
          "embedding: the rows of dout and dweight must be contiguous");
  backward<G>(Tokens(in.tokens), batch * length, dout, dweight, mode);
}

}  // namespace detail

template <class T, class Token>
void backward(const Inputs<T, Token, cuda>& in, const std::type_identity_t<View<const T, 3, cuda>>& dout,
              const std::type_identity_t<View<accumulate_t<T>, 2, cuda>>& dweight, GradientMode mode) {
  detail::checked_backward<T, Token, T>(in, dout, dweight, mode);
}
template <class T, class Token>
requires(!std::is_same_v<T, accumulate_t<T>>)  //
    void backward(const Inputs<T, Token, cuda>& in,
                  const std::type_identity_t<View<const accumulate_t<T>, 3, cuda>>& dout,
                  const std::type_identity_t<View<accumulate_t<T>, 2, cuda>>& dweight, GradientMode mode) {
  detail::checked_backward<T, Token, accumulate_t<T>>(in, dout, dweight, mode);
}

}  // namespace diffmamba::embedding
