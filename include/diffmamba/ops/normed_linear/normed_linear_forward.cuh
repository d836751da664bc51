// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/pack.cuh"
#include "diffmamba/math/sigmoid.cuh"
#include "diffmamba/ops/matmul/few_rows.cuh"
#include "diffmamba/ops/normed_linear/normed_linear.hpp"

/// Decoding's product on an NVIDIA GPU, as few_rows.cuh, in one kernel with the norm before it and the convolution
/// behind: what decoding one sequence costs is not the bytes but the way from one kernel to the next.
///
/// Every block needs the whole normalised row, so every block computes it. A warp owns its part of the channels: it
/// adds them up, puts r * norm.weight, rounded, into shared memory and multiplies them with its part of the weight
/// right away. The root of the mean is one number per group of channels, and a group is some warps: their sums are
/// scaled by it when all warps meet to add them. So the norm needs no barrier of its own. (r * norm.weight is rounded
/// instead of r / root * norm.weight: the same relative error.) Only a norm before needs its mean first; each warp
/// reads the whole row for it. r is written by block 0.
///
/// A column is one thread's: it has read the state of the convolution and its filter by the time the sum is there.
namespace diffmamba::normed_linear {
namespace detail {

using namespace diffmamba::detail;

struct Operands {
  FewRows product;
  const float *before, *residual, *norm;
  float* residual_out;
  Index residual_row, residual_out_row;
  float before_eps, before_scale, eps;
  int groups;
  const float *conv_weight, *conv_bias;
  float* conv_state;
  Index conv_first, conv_columns, conv_weight_channel, state_row, state_channel;
};

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

/// The sum of the squares of a row, by a warp.
template <class T>
__device__ inline float square_of_row(const T* x, int k) {
  constexpr int at_once = 4;
  float square = 0;
  for (int from = threadIdx.x % 32 * 8; from < k; from += at_once * 256) {
    Pack<T, 8> packs[at_once];
#pragma unroll
    for (int t = 0; t < at_once; ++t)
      packs[t] = from + t * 256 < k ? load_pack<8>(x + from + t * 256) : zero_pack<8, T>();
#pragma unroll
    for (int t = 0; t < at_once; ++t) {
      float values[8];
      packs[t].widen(values);
#pragma unroll
      for (const float value : values) square += value * value;
    }
  }
  return warp_sum(square);
}

// CUDA kernels

/// `Groups` times 8 columns of the result per block of `warps` that compute, and one that brings the weight.
template <class T, int Groups, int warps>
__global__ __launch_bounds__(32 * (warps + 1)) void normed_linear_kernel(const __grid_constant__ Operands p) {
  constexpr int columns = 8 * Groups;
  const FewRows& product = p.product;
  extern __shared__ __align__(128) unsigned char normed_linear_memory[];
  __shared__ std::uint64_t arrived[few_rows_chunks];
  __shared__ float sums[warps][columns * most_rows], squares[warps][most_rows];
  T* const tile = reinterpret_cast<T*>(normed_linear_memory);
  T* const rows = tile + columns * few_rows_pitch(product.k);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4;
  const Index first = Index{blockIdx.x} * columns;
  const int count = static_cast<int>(product.n - first < columns ? product.n - first : columns);
  // The thread's element of the result, and its channel of the convolution.
  const int row = threadIdx.x / columns, column = threadIdx.x % columns;
  const bool has_element = row < product.m && column < count;
  const Index channel = first + column - p.conv_first;
  const bool convolves = has_element && p.conv_weight != nullptr && channel >= 0 && channel < p.conv_columns;
  float4* const state =
      reinterpret_cast<float4*>(p.conv_state + (convolves ? row * p.state_row + channel * p.state_channel : 0));
  const float4* const filter =
      reinterpret_cast<const float4*>(p.conv_weight + (convolves ? channel * p.conv_weight_channel : 0));
  // The warp's channels, whole blocks of 32. A group begins where a warp does, since the number of groups divides those
  // of the blocks and of the warps (takes).
  const int blocks = product.k / 32, begin = 32 * (warp * blocks / warps), end = 32 * ((warp + 1) * blocks / warps);

  cuda_runtime::let_next_kernel_begin();
  if (convolves) {
    cuda_runtime::touch(state);
    cuda_runtime::touch(filter);
    if (p.conv_bias != nullptr) cuda_runtime::touch(p.conv_bias + channel);
  }
  if (blockIdx.x < 8 && warp < warps)
    for (int place = begin + lane * 4; place < end; place += 128) {
      cuda_runtime::touch(p.norm + place);
      if (p.before != nullptr) cuda_runtime::touch(p.before + place);
    }
  const FewRowsTile<T> weight(product, first, count, tile, arrived);
  cuda_runtime::wait_for_earlier_kernels();
  weight.bring();

  float4 past{}, taps{};
  float bias = 0;
  if (convolves) {
    past = *state;
    taps = *filter;
    if (p.conv_bias != nullptr) bias = p.conv_bias[channel];
  }
  if (warp < warps) {
    constexpr int turns = 2, turn = 128;  // what is under way at once
    for (int i = 0; i < product.m; ++i) {
      const T* const x = static_cast<const T*>(product.x) + i * product.x_row;
      float root = 1, square = 0;
      for (int from = begin; from < end; from += turns * turn) {
        Pack<T, 4> values[turns];
        Pack<float, 4> residual[turns], factors[turns], scales[turns];
#pragma unroll
        for (int t = 0; t < turns; ++t) {
          const int place = from + t * turn + lane * 4;
          const bool there = place < end;
          values[t] = there ? load_pack<4>(x + place) : zero_pack<4, T>();
          residual[t] = there && p.residual != nullptr ? load_pack<4>(p.residual + i * p.residual_row + place)
                                                       : zero_pack<4, float>();
          if (there) factors[t] = load_pack<4>(p.norm + place);
          if (there && p.before != nullptr) scales[t] = load_pack<4>(p.before + place);
        }
        if (p.before != nullptr && from == begin)
          root = p.before_scale * rsqrtf(square_of_row(x, product.k) / static_cast<float>(product.k) + p.before_eps);
#pragma unroll
        for (int t = 0; t < turns; ++t) {
          const int place = from + t * turn + lane * 4;
          if (place >= end) continue;
          float sum[4];
          values[t].widen(sum);
          if (p.before != nullptr)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[e] *= root * scales[t].elements[e];
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[e] += residual[t].elements[e];
          if (p.residual_out != nullptr && blockIdx.x == 0)
            store_pack<4>(p.residual_out + i * p.residual_out_row + place, sum);
#pragma unroll
          for (int e = 0; e < 4; ++e) square += sum[e] * sum[e], sum[e] *= factors[t].elements[e];
          store_pack<4>(rows + i * few_rows_pitch(product.k) + place, sum);
        }
      }
      square = warp_sum(square);
      if (lane == 0) squares[warp][i] = square;
    }
    __syncwarp();
  }
  weight.wait(begin, warp < warps ? end : begin);
  if (warp < warps) {
    // Columns from count on are whatever lies there: they make elements that nobody stores.
    const int pitch = few_rows_pitch(product.k), of_row = lane / 4;
    float c[2][Groups][4] = {};
#pragma unroll 4
    for (int place = begin + quad * 8; place < end; place += 32) {
      const uint4 a = of_row < product.m
                          ? *reinterpret_cast<const uint4*>(rows + of_row * few_rows_pitch(product.k) + place)
                          : uint4{};
#pragma unroll
      for (int i = 0; i < Groups; ++i) {
        const uint4 b = *reinterpret_cast<const uint4*>(tile + (i * 8 + of_row) * pitch + place);
        mma::multiply_add<T>(c[0][i], {a.x, 0u, a.y, 0u}, b.x, b.y);
        mma::multiply_add<T>(c[1][i], {a.z, 0u, a.w, 0u}, b.z, b.w);
      }
    }
#pragma unroll
    for (int i = 0; i < Groups; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)  // row `of_row`, columns 2 quad and 2 quad + 1
        sums[warp][of_row * columns + i * 8 + quad * 2 + e] = c[0][i][e] + c[1][i][e];
  }
  __syncthreads();
  if (!has_element) return;
  float value =
      product.bias != nullptr ? static_cast<const float*>(product.bias)[(first + column) * product.bias_stride] : 0.0f;
  const int of_group = warps / p.groups;
  const float channels = static_cast<float>(product.k / p.groups);
  for (int from = 0; from < warps; from += of_group) {
    float square = 0, sum = 0;
    for (int w = from; w < from + of_group; ++w) square += squares[w][row], sum += sums[w][row * columns + column];
    value += rsqrtf(square / channels + p.eps) * sum;
  }
  if (convolves) {
    *state = {past.y, past.z, past.w, value};
    value = bias + taps.x * past.y + taps.y * past.z + taps.z * past.w + taps.w * value;
    value *= sigmoid_for<T>(value);
  }
  static_cast<T*>(product.y)[row * product.y_row + first + column] = narrow<T>(value);
}

// Launchers

template <class T, int Groups, int warps>
void launch(const Operands& p, cudaStream_t stream) {
  constexpr int columns = 8 * Groups;
  const auto kernel = normed_linear_kernel<T, Groups, warps>;
  cuda_runtime::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_bytes)),
      "cudaFuncSetAttribute");
  cuda_runtime::launch_overlapped("normed_linear_kernel", kernel,
                                  dim3(static_cast<unsigned>((p.product.n + columns - 1) / columns)),
                                  dim3(32 * (warps + 1)), block_bytes(columns, p.product.m, p.product.k), stream, p);
}

}  // namespace detail

template <class T>
void forward(const Inputs<T, cuda>& in, const std::type_identity_t<View<T, 2, cuda>>& out) {
  check(in, out);
  require(takes(in), "normed_linear: not offered for x ", in.source.x.extents(), " and weight ", in.weight.extents(),
          " with these options, strides or alignment; see takes");
  const auto& s = in.source;
  const auto& c = in.convolution;
  const int k = static_cast<int>(s.x.extent(1));
  const detail::Operands p{
      .product = {s.x.data(), in.weight.data(), out.data(), in.bias.data(), s.x.stride(0), in.weight.stride(0),
                  out.stride(0), 1, in.bias ? in.bias.stride(0) : 0, in.weight.extent(0),
                  static_cast<int>(s.x.extent(0)), k, diffmamba::detail::few_rows_chunk(k), 1.0f, 0.0f,
                  cuda_runtime::weights_at_rest_of_thread()},
      .before = s.before.weight.data(),
      .residual = s.residual.data(),
      .norm = s.norm.weight.data(),
      .residual_out = s.residual_out.data(),
      .residual_row = s.residual ? s.residual.stride(0) : 0,
      .residual_out_row = s.residual_out ? s.residual_out.stride(0) : 0,
      .before_eps = static_cast<float>(s.before.eps),
      .before_scale = static_cast<float>(s.before.scale),
      .eps = static_cast<float>(s.norm.eps),
      .groups = s.group_size > 0 ? static_cast<int>(k / s.group_size) : 1,
      .conv_weight = c.weight.data(),
      .conv_bias = c.bias.data(),
      .conv_state = c.state.data(),
      .conv_first = c.first,
      .conv_columns = c.weight ? c.weight.extent(0) : 0,
      .conv_weight_channel = c.weight ? c.weight.stride(0) : 0,
      .state_row = c.weight ? c.state.stride(0) : 0,
      .state_channel = c.weight ? c.state.stride(1) : 0};
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  // The more columns a block has, the fewer blocks normalise the row; but every multiprocessor should have one, and
  // what is on the GPU together, two layers of a model, must find room.
  const auto suits = [&](int columns) {
    return p.product.n >= 128 * columns &&
           detail::block_bytes(columns, p.product.m, k) <= detail::half_of_a_multiprocessor;
  };
  if (suits(32))
    detail::launch<T, 4, 8>(p, stream.handle);
  else if (suits(16))
    detail::launch<T, 2, 8>(p, stream.handle);
  else
    detail::launch<T, 1, 8>(p, stream.handle);
}

}  // namespace diffmamba::normed_linear
