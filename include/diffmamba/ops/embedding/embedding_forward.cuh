// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>  // std::numeric_limits

#include "diffmamba/device/overlap.cuh"
#include "diffmamba/device/pack.cuh"
#include "diffmamba/ops/embedding/embedding.hpp"
#include "diffmamba/tensor/takes_packs.hpp"

/// A warp copies a row.
namespace diffmamba::embedding {
namespace detail {

inline constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// Tokens of either width; position i counts along (batch, length).
struct Tokens {
  const void* data;
  Index length, batch_stride, length_stride;
  bool wide;
  template <class Token>
  explicit Tokens(const View<const Token, 2, cuda>& view)
      : data(view.data()),
        length(view.extent(1)),
        batch_stride(view.stride(0)),
        length_stride(view.stride(1)),
        wide(sizeof(Token) == 8) {}
  __device__ Index at(Index batch, Index position) const {
    const Index offset = batch * batch_stride + position * length_stride;
    return wide ? static_cast<const std::int64_t*>(data)[offset] : static_cast<const std::int32_t*>(data)[offset];
  }
};

// CUDA kernels

template <class T, int Vector>
__global__ __launch_bounds__(256) void gather_kernel(Tokens tokens, Index count, const T* weight, Index weight_row,
                                                     Index vocab_size, Index d_model, T* out, Index out_batch,
                                                     Index out_row) {
  using diffmamba::detail::load_pack;
  using diffmamba::detail::Pack;
  constexpr int at_once = 4;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32;
  const Index i = Index{blockIdx.x} * 8 + threadIdx.x / 32;
  if (i >= count) return;
  const Index b = i / tokens.length, t = i % tokens.length, token = tokens.at(b, t);
  T* to = out + b * out_batch + t * out_row;
  if (token < 0 || token >= vocab_size) {
    for (Index j = lane; j < d_model; j += 32) to[j] = static_cast<T>(not_a_number);
    return;
  }
  const T* from = weight + token * weight_row;
  for (Index first = lane * Vector; first < d_model; first += at_once * 32 * Vector) {
    Pack<T, Vector> packs[at_once];
#pragma unroll
    for (int q = 0; q < at_once; ++q)
      if (const Index j = first + q * 32 * Vector; j < d_model) packs[q] = load_pack<Vector>(from + j);
#pragma unroll
    for (int q = 0; q < at_once; ++q)
      if (const Index j = first + q * 32 * Vector; j < d_model) *reinterpret_cast<Pack<T, Vector>*>(to + j) = packs[q];
  }
}

}  // namespace detail

// Launchers

template <class T, class Token>
void forward(const Inputs<T, Token, cuda>& in, const std::type_identity_t<View<T, 3, cuda>>& out) {
  check_shapes(in);
  const Index batch = in.tokens.extent(0), length = in.tokens.extent(1), d_model = in.weight.extent(1);
  require_shape("embedding", "out", out, Extents<3>{batch, length, d_model});
  require(out.stride(2) == 1 || d_model <= 1, "embedding: the rows of out must be contiguous");
  const Index count = batch * length, blocks = (count + 7) / 8;
  require(blocks < Index{1} << 31, "embedding: ", count, " tokens are more than a GPU takes in one launch");
  if (count == 0 || d_model == 0) return;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  constexpr int vector = diffmamba::detail::pack_size<T>;
  const bool vectors = diffmamba::detail::takes_packs<vector>(View<const T, 2, cuda>(in.weight)) &&
                       diffmamba::detail::takes_packs<vector>(out);
  cuda_runtime::launch_overlapped(
      "gather_kernel", vectors ? detail::gather_kernel<T, vector> : detail::gather_kernel<T, 1>,
      dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream.handle, detail::Tokens(in.tokens), count,
      in.weight.data(), in.weight.stride(0), in.weight.extent(0), d_model, out.data(), out.stride(0), out.stride(1));
}

}  // namespace diffmamba::embedding
