// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.hpp"

struct CUevent_st;  // what cudaEvent_t points to

namespace diffmamba::cuda_runtime {

/// Whether an event also notes the time, which costs a little.
enum class Timing { off, on };

/// A mark in the order of a stream. Defined in device/event.cuh.
template <class = void>
class Event {
 public:
  explicit Event(Timing timing = Timing::off, int device = 0);
  ~Event();
  Event(Event&& other) noexcept : handle_(other.handle_), device_(other.device_) { other.handle_ = nullptr; }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// Puts the mark behind everything launched on the stream so far.
  void record(Stream stream = current_stream());
  /// Holds the calling thread until the mark is reached; returns at once if it was never recorded.
  void wait() const;
  /// True if the mark has been reached or was never recorded.
  bool reached() const;
  /// Holds what is launched on the stream from now on until the mark is reached; the host does not wait.
  void hold(Stream stream) const;
  /// From this mark to a later one, both with timing and both reached.
  double milliseconds_until(const Event& later) const;

 private:
  CUevent_st* handle_ = nullptr;
  int device_ = 0;
};

/// What is launched on `second` from now on runs after what was launched on `first` so far.
template <class = void>
void order(Stream first, Stream second);

}  // namespace diffmamba::cuda_runtime
