// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Events, pinned memory and graphs, compiled once for diffmamba::cuda_instantiated.
#include "diffmamba/device/event.cuh"
#include "diffmamba/device/graph.cuh"
#include "diffmamba/device/pinned.cuh"

namespace diffmamba::cuda_runtime {

template class Event<>;
template void order<>(Stream, Stream);
template void* allocate_pinned<>(std::size_t);
template void release_pinned<>(void*) noexcept;
template void copy_bytes_async<>(const void*, void*, std::size_t, Stream);
template class Graph<>;

}  // namespace diffmamba::cuda_runtime
