// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min
#include <limits>     // std::numeric_limits

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/pack.cuh"
#include "diffmamba/ops/cross_entropy/cross_entropy.hpp"

/// A row of logits belongs to a group of threads: a warp if it is short, else a block. They read it once, keeping it in
/// shared memory as far as it fits (the rest comes from the L2 cache the second time), each with a running maximum m
/// and the sum of exp(x - m); these are merged, and if a gradient is wanted the same threads write it from what they
/// have kept. Losses of rows are added in double by one block, in an order that depends on their number alone.
namespace diffmamba::cross_entropy::detail {

using diffmamba::detail::load_pack;
using diffmamba::detail::Pack;
using diffmamba::detail::store_pack;

// Constants that device code may read, unlike the functions.
template <class S>
inline constexpr S lowest = std::numeric_limits<S>::lowest();
template <class S>
inline constexpr S not_a_number = std::numeric_limits<S>::quiet_NaN();

/// Labels or tokens of either width.
struct Numbers {
  const void* data;
  Index stride;
  bool wide;
  template <class Label>
  explicit Numbers(const View<const Label, 1, cuda>& view)
      : data(view.data()), stride(view.stride(0)), wide(sizeof(Label) == 8) {}
  __device__ Index operator()(Index i) const {
    return wide ? static_cast<const std::int64_t*>(data)[i * stride]
                : static_cast<const std::int32_t*>(data)[i * stride];
  }
};

/// e^x for x <= 0 and results that are rounded to T: for the 16-bit types the GPU's approximate power of two, about
/// 1e-7 relative per unit of x, and 0 below 2^-126.
template <class T>
__device__ inline accumulate_t<T> exp_for(accumulate_t<T> x) {
  if constexpr (std::is_same_v<T, double>) {
    return exp(x);
  } else if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.4426950408889634f));
    return power;
  }
}

/// The sum of exponentials of a part of a row: sum of exp(x - maximum).
template <class T>
struct Partial {
  using S = accumulate_t<T>;
  S maximum = lowest<S>, sum = 0;

  // A NaN is not the larger one: it comes out by the sum.
  __device__ static S larger(S a, S b) {
    if constexpr (std::is_same_v<S, float>)
      return fmaxf(a, b);
    else
      return fmax(a, b);
  }

  template <int N>
  __device__ void add(const S (&x)[N]) {
    S largest = maximum;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = larger(largest, x[i]);
    if (largest > maximum) {
      sum *= exp_for<T>(maximum - largest);
      maximum = largest;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exp_for<T>(x[i] - maximum);
  }
  __device__ void merge(S other_maximum, S other_sum) {
    const S largest = larger(maximum, other_maximum);
    sum = sum * exp_for<T>(maximum - largest) + other_sum * exp_for<T>(other_maximum - largest);
    maximum = largest;
  }
  __device__ void merge_warp() {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const S m = __shfl_xor_sync(~0u, maximum, distance), s = __shfl_xor_sync(~0u, sum, distance);
      // Both lanes compute the same: the lower one's part comes first.
      if (threadIdx.x & distance) {
        Partial first{m, s};
        first.merge(maximum, sum);
        *this = first;
      } else {
        merge(m, s);
      }
    }
  }
};

template <class T>
struct RowArguments {
  using S = accumulate_t<T>;
  const T* logits;
  T* dlogits;  // null: no gradient
  Index logits_row, dlogits_row;
  Numbers labels;
  Index rows, columns, size, ignore_index;
  double smoothing;
  S* losses;
  Index loss_stride;
  S* logsumexp;     // null: not wanted
  const S* factor;  // of the gradient, null: 1
  S scale;
  int cached;  // elements of a row that stay in shared memory
};

// CUDA kernels

/// Group: threads of a row, 32 or those of a block. Vector: logits that are read at a time.
template <class T, int Group, int Vector, bool Gradient>
__global__ __launch_bounds__(Group == 32 ? 256 : Group,
                             Group == 512 ? 2 : 1) void rows_kernel(const __grid_constant__ RowArguments<T> p) {
  using S = accumulate_t<T>;
  constexpr int at_once = Vector == 1 ? 16 : 4, stride = Group * Vector;
  extern __shared__ uint4 kept_rows[];
  const int thread = Group == 32 ? threadIdx.x % 32 : threadIdx.x;
  const Index row = Group == 32 ? Index{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32 : Index{blockIdx.x};
  if (row >= p.rows) return;  // whole groups
  const int size = static_cast<int>(p.size), columns = static_cast<int>(p.columns);
  const Index label = p.labels(row);
  T* to = Gradient ? p.dlogits + row * p.dlogits_row : nullptr;
  const S nothing[Vector] = {};
  if (label == p.ignore_index || label < 0 || label >= p.size) {
    if (thread == 0) {
      p.losses[row * p.loss_stride] = label == p.ignore_index ? S(0) : not_a_number<S>;
      if (p.logsumexp != nullptr) p.logsumexp[row] = 0;
    }
    if constexpr (Gradient)
      for (int v = thread * Vector; v < columns; v += stride) store_pack<Vector>(to + v, nothing);
    return;
  }
  const T* from = p.logits + row * p.logits_row;
  T* kept = reinterpret_cast<T*>(kept_rows) + (Group == 32 ? threadIdx.x / 32 * p.cached : 0);
  const S score = static_cast<S>(from[label]);
  const bool smooth = p.smoothing != 0;

  Partial<T> part;
  S total = 0;
  for (int first = thread * Vector; first < size; first += at_once * stride) {
    Pack<T, Vector> packs[at_once];
#pragma unroll
    for (int q = 0; q < at_once; ++q)
      if (first + q * stride < size) packs[q] = load_pack<Vector>(from + first + q * stride);
#pragma unroll
    for (int q = 0; q < at_once; ++q) {
      const int v = first + q * stride;
      if (v >= size) break;
      if (Gradient && v < p.cached) *reinterpret_cast<Pack<T, Vector>*>(kept + v) = packs[q];
      S x[Vector];
      packs[q].widen(x);
      if (v + Vector > size)
#pragma unroll
        for (int i = 0; i < Vector; ++i)
          if (v + i >= size) x[i] = lowest<S>;
      part.add(x);
      if (smooth)
#pragma unroll
        for (int i = 0; i < Vector; ++i) total += v + i < size ? x[i] : S(0);
    }
  }
  part.merge_warp();
  double sum_of_logits = static_cast<double>(total);
  if (smooth)
    for (int distance = 16; distance > 0; distance /= 2) sum_of_logits += __shfl_xor_sync(~0u, sum_of_logits, distance);
  if constexpr (Group > 32) {
    constexpr int warps = Group / 32;
    __shared__ S maxima[warps], sums[warps];
    __shared__ double totals[warps];
    if (thread % 32 == 0) {
      maxima[thread / 32] = part.maximum;
      sums[thread / 32] = part.sum;
      totals[thread / 32] = sum_of_logits;
    }
    __syncthreads();
    part = {maxima[0], sums[0]};
    sum_of_logits = totals[0];
    for (int i = 1; i < warps; ++i) {
      part.merge(maxima[i], sums[i]);
      sum_of_logits += totals[i];
    }
  } else {
    __syncwarp();
  }
  if (thread == 0) {
    const double smoothed = smooth ? (1 - p.smoothing) * static_cast<double>(score) +
                                         p.smoothing * sum_of_logits / static_cast<double>(p.size)
                                   : static_cast<double>(score);
    const double log_sum = log(static_cast<double>(part.sum));
    p.losses[row * p.loss_stride] = static_cast<S>(log_sum + (static_cast<double>(part.maximum) - smoothed));
    if (p.logsumexp != nullptr) p.logsumexp[row] = static_cast<S>(log_sum + static_cast<double>(part.maximum));
  }
  if constexpr (Gradient) {
    const S dloss = p.factor != nullptr ? p.scale * *p.factor : p.scale;
    const S each = dloss / part.sum, uniform = static_cast<S>(p.smoothing / static_cast<double>(p.size)) * dloss;
    const S at_label = static_cast<S>(1 - p.smoothing) * dloss;
#pragma unroll 2
    for (int v = thread * Vector; v < size; v += stride) {
      S x[Vector];
      load_pack<Vector>((v < p.cached ? kept : from) + v).widen(x);
#pragma unroll
      for (int i = 0; i < Vector; ++i) x[i] = exp_for<T>(x[i] - part.maximum) * each - uniform;
      if (v <= label && label < v + Vector) {
#pragma unroll
        for (int i = 0; i < Vector; ++i)
          if (v + i == label) x[i] -= at_label;
      }
      if (v + Vector > size) {
#pragma unroll
        for (int i = 0; i < Vector; ++i)
          if (v + i >= size) x[i] = 0;
      }
      store_pack<Vector>(to + v, x);
    }
    // The padding behind the last vector that has a logit in it.
    for (int v = (size + Vector - 1) / Vector * Vector + thread * Vector; v < columns; v += stride)
      store_pack<Vector>(to + v, nothing);
  }
}

/// The sum over all threads of the one block of 1024, in a fixed order; thread 0 has it.
template <class Value>
__device__ Value block_sum(Value value) {
  __shared__ Value sums[32];
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 1; i < 32; ++i) value += sums[i];
  return value;
}

/// loss (+)= the sum or mean of the losses; weight = 1 / kept or 1.
template <class S>
__global__ __launch_bounds__(1024) void reduce_kernel(const S* losses, Numbers labels, Index rows, Index ignore_index,
                                                      bool mean, bool add, S* loss, S* weight) {
  double sum = 0;
  long long kept = 0;
  constexpr int at_once = 8;
  for (Index first = threadIdx.x; first < rows; first += at_once * 1024) {
    S values[at_once] = {};
    Index numbers[at_once];
#pragma unroll
    for (int q = 0; q < at_once; ++q) {
      const Index i = first + q * 1024;
      numbers[q] = ignore_index;
      if (i < rows) values[q] = losses[i];
      if (i < rows && mean) numbers[q] = labels(i);
    }
#pragma unroll
    for (int q = 0; q < at_once; ++q) {
      sum += static_cast<double>(values[q]);
      kept += numbers[q] != ignore_index;
    }
  }
  sum = block_sum(sum);
  if (mean) kept = block_sum(kept);
  if (threadIdx.x != 0) return;
  if (mean) sum = kept > 0 ? sum / static_cast<double>(kept) : not_a_number<double>;
  loss[0] = add ? loss[0] + static_cast<S>(sum) : static_cast<S>(sum);
  if (weight != nullptr) weight[0] = !mean ? S(1) : kept > 0 ? static_cast<S>(1 / static_cast<double>(kept)) : S(0);
}

template <class S>
__global__ __launch_bounds__(1024) void kept_scale_kernel(Numbers labels, Index rows, Index ignore_index, double scale,
                                                          S* factors, Index stride) {
  long long kept = 0;
  for (Index i = threadIdx.x; i < rows; i += 1024) kept += labels(i) != ignore_index;
  kept = block_sum(kept);
  if (threadIdx.x != 0) return;
  const double count = static_cast<double>(kept);
  factors[0] = kept > 0 ? static_cast<S>(scale / count) : S(0);
  factors[stride] = kept > 0 ? static_cast<S>(1 / count) : not_a_number<S>;
}

// Launchers

template <class T, int Group, int Vector, bool Gradient>
void launch_rows(RowArguments<T> p, cudaStream_t stream) {
  constexpr int rows_per_block = Group == 32 ? 8 : 1;
  constexpr Index most =
      (Index{112} << 10) / static_cast<Index>(sizeof(T));  // two blocks at a time on a multiprocessor
  p.cached = Gradient ? static_cast<int>(std::min(p.columns, most / rows_per_block) / Vector * Vector) : 0;
  const std::size_t shared = static_cast<std::size_t>(p.cached) * sizeof(T) * rows_per_block;
  const auto kernel = rows_kernel<T, Group, Vector, Gradient>;
  if (shared > std::size_t{32} << 10)
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(most * static_cast<Index>(sizeof(T)))),
                        "cudaFuncSetAttribute");
  const Index blocks = (p.rows + rows_per_block - 1) / rows_per_block;
  kernel<<<static_cast<unsigned>(blocks), rows_per_block * Group, shared, stream>>>(p);
  cuda_runtime::check_launch("rows_kernel");
}
template <class T, bool Gradient>
void launch_rows(const RowArguments<T>& p, cudaStream_t stream) {
  require(p.rows < Index{1} << 31 && p.columns < Index{1} << 31, "cross_entropy: (", p.rows, ", ", p.columns,
          ") logits are more than a GPU takes in one launch");
  if (p.rows == 0) return;
  constexpr int vector = diffmamba::detail::pack_size<T>;
  const auto whole = [](const T* data, Index row) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && row % vector == 0;
  };
  const bool vectors =
      p.columns % vector == 0 && whole(p.logits, p.logits_row) && (!Gradient || whole(p.dlogits, p.dlogits_row));
  const auto by_length = [&]<int Vector>() {
    if (p.columns <= 128 * vector)
      launch_rows<T, 32, Vector, Gradient>(p, stream);
    else if (p.columns <= 1024 * vector)
      launch_rows<T, 128, Vector, Gradient>(p, stream);
    else
      launch_rows<T, 512, Vector, Gradient>(p, stream);
  };
  if (vectors)
    by_length.template operator()<vector>();
  else
    by_length.template operator()<1>();
}

template <class T, class Label>
RowArguments<T> row_arguments(const Inputs<T, Label, cuda>& in, const Options& options, accumulate_t<T>* losses,
                              Index loss_stride) {
  return {in.logits.data(),
          nullptr,
          in.logits.stride(0),
          0,
          Numbers(in.labels),
          in.logits.extent(0),
          in.logits.extent(1),
          vocabulary(in.logits.extent(1), options),
          options.ignore_index,
          options.label_smoothing,
          losses,
          loss_stride,
          nullptr,
          nullptr,
          1,
          0};
}

template <class T, class Label>
void reduce_losses(const Inputs<T, Label, cuda>& in, const Options& options, const accumulate_t<T>* losses, bool add,
                   accumulate_t<T>* loss, accumulate_t<T>* weight, cudaStream_t stream) {
  reduce_kernel<<<1, 1024, 0, stream>>>(losses, Numbers(in.labels), in.logits.extent(0), options.ignore_index,
                                        options.reduction == Reduction::mean, add, loss, weight);
  cuda_runtime::check_launch("reduce_kernel");
}

}  // namespace diffmamba::cross_entropy::detail

namespace diffmamba::cross_entropy {

template <class T, class Label>
void forward(const Inputs<T, Label, cuda>& in, const Options& options, const Outputs<T, cuda>& outputs,
             Saved<T, cuda>* saved, Workspace<cuda>& workspace) {
  using S = accumulate_t<T>;
  check_shapes(in, options);
  const Index rows = in.logits.extent(0);
  require_shape("cross_entropy", "loss", outputs.loss, Extents<1>{loss_size(rows, options)});
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const std::size_t mark = workspace.mark();
  const bool none = options.reduction == Reduction::none;
  S* losses = none ? outputs.loss.data() : workspace.template take<S>(rows);
  auto arguments = detail::row_arguments(in, options, losses, none ? outputs.loss.stride(0) : 1);
  S* weight = nullptr;
  if (saved != nullptr) {
    if (!saved->logsumexp || saved->logsumexp.extent(0) != rows)
      saved->logsumexp = Tensor<S, 1, cuda>::uninitialized({rows});
    if (!saved->weight) saved->weight = Tensor<S, 1, cuda>::uninitialized({1});
    saved->options = options;
    arguments.logsumexp = saved->logsumexp.data();
    weight = saved->weight.data();
  }
  detail::launch_rows<T, false>(arguments, stream.handle);
  if (!none)
    detail::reduce_losses(in, options, losses, false, outputs.loss.data(), weight, stream.handle);
  else if (weight != nullptr)
    cuda_runtime::fill(weight, 1, S(1));
  workspace.reset(mark);
}

template <class T, class Label>
void forward(const Inputs<T, Label, cuda>& in, const Options& options,
             const std::type_identity_t<View<accumulate_t<T>, 1, cuda>>& loss, GradientMode mode,
             Workspace<cuda>& workspace) {
  check_shapes(in, options);
  require(options.reduction == Reduction::sum, "cross_entropy: a slice gives the sum of its losses");
  require_shape("cross_entropy", "loss", loss, Extents<1>{1});
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const std::size_t mark = workspace.mark();
  auto* losses = workspace.template take<accumulate_t<T>>(in.logits.extent(0));
  detail::launch_rows<T, false>(detail::row_arguments(in, options, losses, 1), stream.handle);
  detail::reduce_losses<T, Label>(in, options, losses, mode == GradientMode::add, loss.data(), nullptr, stream.handle);
  workspace.reset(mark);
}

template <class Label, class S>
void kept_scale(const View<const Label, 1, cuda>& labels, const Options& options, double scale,
                const View<S, 1, cuda>& factors) {
  require_shape("cross_entropy", "factors", factors, Extents<1>{2});
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  detail::kept_scale_kernel<<<1, 1024, 0, stream.handle>>>(
      detail::Numbers(labels), labels.extent(0), options.ignore_index, scale, factors.data(), factors.stride(0));
  cuda_runtime::check_launch("kept_scale_kernel");
}

}  // namespace diffmamba::cross_entropy
