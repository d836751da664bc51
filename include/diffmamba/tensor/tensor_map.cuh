// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>  // CUtensorMap; its functions come out of the runtime, so that nothing of the driver is linked

#include <cstdint>  // std::uintptr_t

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/tensor/view.hpp"

/// Views as the copy engine of Hopper's GPUs sees them: maps that a kernel takes as __grid_constant__ parameters and
/// hands to device/hopper.cuh.
namespace diffmamba::hopper {

/// Whether the copy engine can walk over a tensor of 16-bit numbers: multiples of 16 bytes everywhere.
template <class T>
bool can_map(const View<T, 4, cuda>& view) {
  bool good = sizeof(T) == 2 && view.data() != nullptr && view.size() > 0 &&
              reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0 && view.extent(3) % 8 == 0 &&
              (view.extent(3) == 1 || view.stride(3) == 1);
  for (int axis = 0; axis < 3; ++axis)
    good = good && view.extent(axis) < (Index{1} << 31) &&
           (view.extent(axis) == 1 ||
            (view.stride(axis) > 0 && view.stride(axis) % 8 == 0 && view.stride(axis) < (Index{1} << 38)));
  return good;
}

/// How the copy engine finds boxes of `rows` tokens and 64 numbers of one head: view is (batch, length, heads, columns)
/// and can_map; coordinates are (column, head, token, batch).
template <class T>
CUtensorMap tensor_map(const View<T, 4, cuda>& view, int rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cuda_runtime::check(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion");
#else
    cuda_runtime::check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
                        "cudaGetDriverEntryPoint");
#endif
    require(found == cudaDriverEntryPointSuccess && function != nullptr,
            "cuda: the driver has no cuTensorMapEncodeTiled; it must be of CUDA 12 or later");
    return reinterpret_cast<Encode>(function);
  }();
  const auto extent = [&](int axis) { return static_cast<cuuint64_t>(view.extent(axis)); };
  // An axis of one element may have any stride; the engine wants a multiple of 16 bytes.
  const auto bytes = [&](int axis) {
    return view.extent(axis) == 1 ? cuuint64_t{16} : static_cast<cuuint64_t>(view.stride(axis)) * sizeof(T);
  };
  const cuuint64_t extents[4] = {extent(3), extent(2), extent(1), extent(0)};
  const cuuint64_t strides[3] = {bytes(2), bytes(1), bytes(0)};
  const cuuint32_t box[4] = {64, 1, static_cast<cuuint32_t>(rows), 1}, steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map,
                                 std::is_same_v<std::remove_const_t<T>, bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                                                  : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                 4, const_cast<std::remove_const_t<T>*>(view.data()), extents, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS, "cuda: cuTensorMapEncodeTiled: error ", static_cast<int>(status), " for a tensor ",
          view.extents());
  return map;
}

}  // namespace diffmamba::hopper
