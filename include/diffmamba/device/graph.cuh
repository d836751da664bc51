// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/graph.hpp"
#include "diffmamba/device/memory.hpp"

namespace diffmamba::cuda_runtime {

template <class Void>
Graph<Void>::Graph(const std::function<void()>& work, WarmUp warm_up) : stream_(current_stream()) {
  require(stream_.handle != nullptr,
          "graph: the launches of the default stream cannot be recorded; make an OwnedStream current");
  if (warm_up == WarmUp::yes) work();
  const DeviceScope scope(stream_.device);
  // Relaxed: memory may be taken from the system meanwhile, which does not touch the order of launches.
  check(cudaStreamBeginCapture(stream_.handle, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (const Error& error) {
    (void)cudaStreamEndCapture(stream_.handle, &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    fail("graph: something cannot be recorded: ", error.what());
  }
  check(cudaStreamEndCapture(stream_.handle, &graph), "cudaStreamEndCapture (a launch cannot be recorded)");
  const auto nodes = cudaGraphGetNodes(graph, nullptr, &nodes_);
  const auto status = nodes == cudaSuccess ? cudaGraphInstantiate(&handle_, graph, 0) : nodes;
  (void)cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  arena<cuda>().pin(stream_);
}

template <class Void>
Graph<Void>::~Graph() {
  if (handle_ == nullptr) return;
  (void)cudaStreamSynchronize(stream_.handle);
  (void)cudaGraphExecDestroy(handle_);
  arena<cuda>().unpin(stream_);
}

template <class Void>
void Graph<Void>::replay() const {
  require(handle_ != nullptr, "graph: nothing was recorded");
  const DeviceScope scope(stream_.device);
  check(cudaGraphLaunch(handle_, stream_.handle), "cudaGraphLaunch");
}

}  // namespace diffmamba::cuda_runtime
