// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::remove_const_t

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/nn/scan_parts.hpp"

// All of these move little: parameters, states, or what the rarer mixers add up. So they are plain: a thread for each
// element (or one block for each row), sums in the order of the CPU.
namespace diffmamba {
namespace detail {

// CUDA kernels

template <class T>
__global__ void negative_exp_kernel(const T* A_log, T* A, Index count) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += Index{gridDim.x} * blockDim.x)
    A[i] = -exp(A_log[i]);
}

template <class A, class B, class T>
__global__ void add_product_kernel(const A* a, const B* b, T* to, Index count) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += Index{gridDim.x} * blockDim.x)
    to[i] += a[i] * b[i];
}

template <class From, class T>
__global__ void add_over_batch_kernel(const From* from, T* to, Index batch, Index count) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += Index{gridDim.x} * blockDim.x) {
    T sum = to[i];
    for (Index b = 0; b < batch; ++b) sum += from[b * count + i];
    to[i] = sum;
  }
}

template <class From, class T>
__global__ void add_to_kernel(const From* from, T* to, Index count) {
  using S = accumulate_t<T>;
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += Index{gridDim.x} * blockDim.x)
    to[i] = T(static_cast<S>(to[i]) + static_cast<S>(from[i]));
}

template <class T>
__global__ void multiply_by_kernel(T* to, const T* factor) {
  *to *= *factor;
}

enum class PathsForm { difference, sum, spread };

/// One block a row of (batch, length, channels); difference and sum read both paths, spread writes them.
template <PathsForm form, class T>
__global__ void paths_kernel(View<const T, 3, cuda> from, View<T, 3, cuda> to, Index rows, Index length,
                             Index channels) {
  using S = accumulate_t<T>;
  for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* const in = from.pointer(row / length, row % length);
    T* const out = to.pointer(row / length, row % length);
    for (Index c = threadIdx.x; c < channels; c += blockDim.x) {
      const S first = static_cast<S>(in[c]);
      if constexpr (form == PathsForm::spread) {
        out[c] = T(first);
        out[channels + c] = T(-first);
      } else {
        const S second = static_cast<S>(in[channels + c]);
        out[c] = T(form == PathsForm::sum ? first + second : first - second);
      }
    }
  }
}

template <class T, class R>
__global__ void fold_halves_kernel(const T* w, View<const R, 1, cuda> lambda, T* folded, Index rows, Index columns) {
  for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
    const R l = lambda(lambda.extent(0) == 1 ? 0 : row);
    for (Index i = threadIdx.x; i < columns; i += blockDim.x)
      folded[row * columns + i] =
          T(static_cast<R>(w[(rows + row) * columns + i]) - l * static_cast<R>(w[row * columns + i]));
  }
}

inline constexpr int fold_threads = 256;

/// The sum of a block's numbers, in a fixed order; known to thread 0.
template <class R>
__device__ R block_sum(R value, R* shared) {
  shared[threadIdx.x] = value;
  for (int half = fold_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  const R sum = shared[0];
  __syncthreads();
  return sum;
}

/// One block a row: the gradients of the weight, and sum(W_2 * dfolded) of the row.
template <class T, class R>
__global__ void fold_halves_backward_kernel(const T* w, View<const R, 1, cuda> lambda, const R* dfolded, R* dw,
                                            R* products, Index rows, Index columns) {
  __shared__ R shared[fold_threads];
  for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
    const R l = lambda(lambda.extent(0) == 1 ? 0 : row);
    R product = 0;
    for (Index i = threadIdx.x; i < columns; i += blockDim.x) {
      const R d = dfolded[row * columns + i];
      product += static_cast<R>(w[row * columns + i]) * d;
      dw[(rows + row) * columns + i] += d;
      dw[row * columns + i] -= l * d;
    }
    const R sum = block_sum(product, shared);
    if (threadIdx.x == 0) products[row] = sum;
  }
}

/// dlambda -= products, row by row, or all of them for the one lambda.
template <class R>
__global__ void subtract_products_kernel(const R* products, View<R, 1, cuda> dlambda, Index rows) {
  __shared__ R shared[fold_threads];
  if (dlambda.extent(0) == rows) {
    for (Index row = threadIdx.x; row < rows; row += blockDim.x) dlambda(row) -= products[row];
    return;
  }
  R sum = 0;
  for (Index row = threadIdx.x; row < rows; row += blockDim.x) sum += products[row];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) dlambda(0) -= sum;
}

/// One thread a channel of a sequence: the columns that stay move to the front, the newest inputs come behind them.
template <class T>
__global__ void remember_inputs_kernel(View<const T, 3, cuda> x, View<accumulate_t<T>, 3, cuda> conv_state) {
  const Index length = x.extent(1), channels = x.extent(2), size = conv_state.extent(2);
  const Index kept = length < size ? size - length : 0, count = x.extent(0) * channels;
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += Index{gridDim.x} * blockDim.x) {
    const Index b = i / channels, c = i % channels;
    accumulate_t<T>* const row = conv_state.pointer(b, c);
    for (Index k = 0; k < kept; ++k) row[k] = row[k + length];
    for (Index k = kept; k < size; ++k) row[k] = static_cast<accumulate_t<T>>(x(b, length - size + k, c));
  }
}

// Launchers

/// launch(blocks, stream) on the current stream, for `count` items of 256 threads a block; nothing for none.
template <class Launch>
void launch_over(Index count, const char* name, Launch&& launch) {
  if (count == 0) return;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  launch(cuda_runtime::blocks_for(count, 256), stream.handle);
  cuda_runtime::check_launch(name);
}

template <PathsForm form, class T>
void launch_paths(const View<const T, 3, cuda>& from, const View<T, 3, cuda>& to, const View<const T, 3, cuda>& one) {
  const Index rows = one.size() == 0 ? 0 : one.extent(0) * one.extent(1);
  launch_over(rows * 256, "paths_kernel", [&](unsigned blocks, cudaStream_t stream) {
    paths_kernel<form, T><<<blocks, 256, 0, stream>>>(from, to, rows, one.extent(1), one.extent(2));
  });
}

}  // namespace detail

template <class T, int Rank>
Tensor<std::remove_const_t<T>, Rank, cuda> negative_exp(const View<T, Rank, cuda>& A_log) {
  using Value = std::remove_const_t<T>;
  require(A_log.contiguous(), "A_log must be dense");
  auto A = Tensor<Value, Rank, cuda>::uninitialized(A_log.extents());
  detail::launch_over(A.size(), "negative_exp_kernel", [&](unsigned blocks, cudaStream_t stream) {
    detail::negative_exp_kernel<Value><<<blocks, 256, 0, stream>>>(A_log.data(), A.data(), A.size());
  });
  return A;
}

template <class A, class B, class T, int Rank>
void add_product(const View<A, Rank, cuda>& a, const View<B, Rank, cuda>& b, const View<T, Rank, cuda>& to) {
  detail::check_add_product(a, b, to);
  detail::launch_over(to.size(), "add_product_kernel", [&](unsigned blocks, cudaStream_t stream) {
    detail::add_product_kernel<<<blocks, 256, 0, stream>>>(a.data(), b.data(), to.data(), to.size());
  });
}

template <class From, class T, int Rank>
void add_over_batch(const View<From, Rank + 1, cuda>& from, const View<T, Rank, cuda>& to) {
  detail::check_add_over_batch(from, to);
  detail::launch_over(to.size(), "add_over_batch_kernel", [&](unsigned blocks, cudaStream_t stream) {
    detail::add_over_batch_kernel<<<blocks, 256, 0, stream>>>(from.data(), to.data(), from.extent(0), to.size());
  });
}

template <class From, class T, int Rank>
void add_to(const View<From, Rank, cuda>& from, const View<T, Rank, cuda>& to) {
  detail::check_add_to(from, to);
  detail::launch_over(to.size(), "add_to_kernel", [&](unsigned blocks, cudaStream_t stream) {
    detail::add_to_kernel<<<blocks, 256, 0, stream>>>(from.data(), to.data(), to.size());
  });
}

template <class T>
void multiply_by(const View<T, 1, cuda>& to, const View<const T, 1, cuda>& factor) {
  detail::launch_over(1, "multiply_by_kernel", [&](unsigned, cudaStream_t stream) {
    detail::multiply_by_kernel<<<1, 1, 0, stream>>>(to.data(), factor.data());
  });
}

template <class T>
void subtract_paths(const View<const T, 3, cuda>& paths, const View<T, 3, cuda>& out) {
  detail::check_paths(paths, out);
  detail::launch_paths<detail::PathsForm::difference, T>(paths, out, out);
}
template <class T>
void subtract_paths_backward(const View<const T, 3, cuda>& dout, const View<T, 3, cuda>& dpaths) {
  detail::check_paths(dpaths, dout);
  detail::launch_paths<detail::PathsForm::spread, T>(dout, dpaths, dout);
}
template <class T>
void add_paths(const View<const T, 3, cuda>& paths, const View<T, 3, cuda>& out) {
  detail::check_paths(paths, out);
  detail::launch_paths<detail::PathsForm::sum, T>(paths, out, out);
}

template <class T, class R>
void fold_halves(const View<const T, 2, cuda>& w, const View<const R, 1, cuda>& lambda,
                 const View<T, 2, cuda>& folded) {
  detail::check_halves(w, lambda, folded);
  const Index rows = folded.extent(0), columns = folded.extent(1);
  detail::launch_over(
      folded.size() == 0 ? 0 : rows * 256, "fold_halves_kernel", [&](unsigned blocks, cudaStream_t stream) {
        detail::fold_halves_kernel<T, R><<<blocks, 256, 0, stream>>>(w.data(), lambda, folded.data(), rows, columns);
      });
}

template <class T, class R>
void fold_halves_backward(const View<const T, 2, cuda>& w, const View<const R, 1, cuda>& lambda,
                          const View<const R, 2, cuda>& dfolded, const View<R, 2, cuda>& dw,
                          const View<R, 1, cuda>& dlambda) {
  detail::check_halves(w, lambda, dfolded);
  const Index rows = dfolded.extent(0), columns = dfolded.extent(1);
  auto products = Tensor<R, 1, cuda>::uninitialized(Extents<1>{rows});
  detail::launch_over(
      rows * detail::fold_threads, "fold_halves_backward_kernel", [&](unsigned blocks, cudaStream_t stream) {
        detail::fold_halves_backward_kernel<T, R><<<blocks, detail::fold_threads, 0, stream>>>(
            w.data(), lambda, dfolded.data(), dw.data(), products.data(), rows, columns);
        detail::subtract_products_kernel<R><<<1, detail::fold_threads, 0, stream>>>(products.data(), dlambda, rows);
      });
}

template <class T>
void remember_inputs(const View<const T, 3, cuda>& x, const View<accumulate_t<T>, 3, cuda>& conv_state) {
  detail::launch_over(x.extent(0) * x.extent(2), "remember_inputs_kernel", [&](unsigned blocks, cudaStream_t stream) {
    detail::remember_inputs_kernel<T><<<blocks, 256, 0, stream>>>(x, conv_state);
  });
}

}  // namespace diffmamba
