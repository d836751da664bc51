// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/tensor/copy.hpp"

namespace diffmamba {

// CUDA kernels

/// One element a thread; offsets are computed in 64 bits, the division per axis in 32 where the tensor allows it.
template <class Count, class From, class To, int Rank>
__global__ void copy_strided_kernel(View<const From, Rank, cuda> from, View<To, Rank, cuda> to, Index size) {
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += Index{gridDim.x} * blockDim.x) {
    Count rest = static_cast<Count>(i);
    Index source = 0, target = 0;
#pragma unroll
    for (int axis = Rank - 1; axis >= 0; --axis) {
      const Count extent = static_cast<Count>(from.extent(axis));
      const Index index = static_cast<Index>(rest % extent);
      rest /= extent;
      source += index * from.stride(axis);
      target += index * to.stride(axis);
    }
    if constexpr (std::is_same_v<From, To>)
      to.data()[target] = from.data()[source];
    else if constexpr (std::is_same_v<To, bfloat16> || std::is_same_v<To, half>)
      to.data()[target] = To(static_cast<float>(from.data()[source]));
    else
      to.data()[target] = static_cast<To>(from.data()[source]);
  }
}

// Launchers

template <class From, class To, int Rank>
void copy(const View<From, Rank, cuda>& from, const View<To, Rank, cuda>& to) {
  static_assert(!std::is_const_v<To>, "copy: the target cannot be written");
  using Source = std::remove_const_t<From>;
  require(from.extents() == to.extents(), "copy: from ", from.extents(), " to ", to.extents());
  const Index size = from.size();
  if (size == 0) return;
  if constexpr (std::is_same_v<Source, To>) {
    if (from.contiguous() && to.contiguous()) {
      cuda_runtime::copy_bytes(from.data(), to.data(), static_cast<std::size_t>(size) * sizeof(To));
      return;
    }
  }
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const unsigned blocks = cuda_runtime::blocks_for(size, 256);
  if (size <= Index{1} << 31)
    copy_strided_kernel<unsigned, Source, To, Rank><<<blocks, 256, 0, stream.handle>>>(from, to, size);
  else
    copy_strided_kernel<Index, Source, To, Rank><<<blocks, 256, 0, stream.handle>>>(from, to, size);
  cuda_runtime::check_launch("copy_strided_kernel");
}

}  // namespace diffmamba
