// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>     // std::size_t
#include <functional>  // std::function
#include <utility>     // std::exchange

#include "diffmamba/device/cuda.hpp"

struct CUgraphExec_st;  // what cudaGraphExec_t points to

namespace diffmamba::cuda_runtime {

/// Whether a graph's launches are run once before they are recorded.
enum class WarmUp { no, yes };

/// A sequence of launches that is recorded once and from then on started by one call: the host no longer walks through
/// the operators, and the GPU does not wait for it. Defined in device/graph.cuh.
///
///   OwnedStream<> stream;
///   const StreamScope on(stream);
///   Graph<> graph([&] { model.forward_backward_on_device(...); });
///   graph.replay();
///
/// The constructor runs the callable twice: once as it is, so that everything which is prepared on first use exists,
/// and once recording. Its launches must go to the current stream, which must not be the default one, and nothing in it
/// may wait for the GPU or read its memory on the host; the Error says so if it does. What is recorded are addresses.
/// Tensors from outside must live and stay where they are. Temporary memory comes from the arena's blocks of that
/// stream, which are kept for as long as the graph lives and are written at every replay: so a stream of which graphs
/// were recorded is for them alone (several may share it, and then share that memory; they run one after another).
template <class = void>
class Graph {
 public:
  Graph() = default;
  explicit Graph(const std::function<void()>& work, WarmUp warm_up = WarmUp::yes);
  Graph(Graph&& other) noexcept
      : stream_(other.stream_), handle_(std::exchange(other.handle_, nullptr)), nodes_(other.nodes_) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(handle_, other.handle_);
    std::swap(nodes_, other.nodes_);
    return *this;
  }
  ~Graph();

  explicit operator bool() const { return handle_ != nullptr; }
  /// Starts all launches, in the order of the stream they were recorded on; returns at once.
  void replay() const;
  /// How many launches and copies it has.
  std::size_t nodes() const { return nodes_; }

 private:
  Stream stream_;
  CUgraphExec_st* handle_ = nullptr;
  std::size_t nodes_ = 0;
};

}  // namespace diffmamba::cuda_runtime
