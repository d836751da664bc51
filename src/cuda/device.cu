// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The GPU runtime and copies between tensors, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/device/cuda.cuh"
#include "diffmamba/tensor/copy.cuh"

namespace diffmamba {

namespace cuda_runtime {
template int device_count<>();
template std::string device_name<>(int);
template MemoryInfo memory_info<>(int);
template void synchronize<>(Stream);
template void* allocate<>(std::size_t, Stream);
template void release<>(void*, std::size_t, Stream) noexcept;
template void copy_bytes<>(const void*, void*, std::size_t);
template class OwnedStream<>;
template void fill(float*, Index, float);
template void fill(double*, Index, double);
template void fill(bfloat16*, Index, bfloat16);
template void fill(half*, Index, half);
template void fill(std::int32_t*, Index, std::int32_t);
template void fill(std::int64_t*, Index, std::int64_t);
template void fill(std::uint8_t*, Index, std::uint8_t);
}  // namespace cuda_runtime

#define DIFFMAMBA_COPY_RANK(From, To, Rank)                                             \
  template void copy(const View<const From, Rank, cuda>&, const View<To, Rank, cuda>&); \
  template void copy(const View<From, Rank, cuda>&, const View<To, Rank, cuda>&);
#define DIFFMAMBA_COPY(From, To)   \
  DIFFMAMBA_COPY_RANK(From, To, 1) \
  DIFFMAMBA_COPY_RANK(From, To, 2) \
  DIFFMAMBA_COPY_RANK(From, To, 3) \
  DIFFMAMBA_COPY_RANK(From, To, 4)
DIFFMAMBA_COPY(float, float)
DIFFMAMBA_COPY(double, double)
DIFFMAMBA_COPY(bfloat16, bfloat16)
DIFFMAMBA_COPY(half, half)
DIFFMAMBA_COPY(float, bfloat16)
DIFFMAMBA_COPY(bfloat16, float)
DIFFMAMBA_COPY(float, half)
DIFFMAMBA_COPY(half, float)
DIFFMAMBA_COPY(float, double)
DIFFMAMBA_COPY(double, float)
DIFFMAMBA_COPY(double, bfloat16)
DIFFMAMBA_COPY(std::int32_t, std::int32_t)
DIFFMAMBA_COPY(std::int64_t, std::int64_t)

}  // namespace diffmamba
