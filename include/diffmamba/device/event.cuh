// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/event.hpp"

namespace diffmamba::cuda_runtime {

template <class Void>
Event<Void>::Event(Timing timing, int device) : device_(device) {
  detail::require_device(device);
  const DeviceScope scope(device);
  check(cudaEventCreateWithFlags(&handle_, timing == Timing::on ? cudaEventDefault : cudaEventDisableTiming),
        "cudaEventCreateWithFlags");
}
template <class Void>
Event<Void>::~Event() {
  if (handle_ != nullptr) (void)cudaEventDestroy(handle_);
}
template <class Void>
void Event<Void>::record(Stream stream) {
  const DeviceScope scope(stream.device);
  check(cudaEventRecord(handle_, stream.handle), "cudaEventRecord");
}
template <class Void>
void Event<Void>::wait() const {
  check(cudaEventSynchronize(handle_), "cudaEventSynchronize");
}
template <class Void>
bool Event<Void>::reached() const {
  const cudaError_t status = cudaEventQuery(handle_);
  if (status == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  check(status, "cudaEventQuery");
  return true;
}
template <class Void>
void Event<Void>::hold(Stream stream) const {
  const DeviceScope scope(stream.device);
  check(cudaStreamWaitEvent(stream.handle, handle_, 0), "cudaStreamWaitEvent");
}
template <class Void>
double Event<Void>::milliseconds_until(const Event& later) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, handle_, later.handle_), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds);
}

template <class>
void order(Stream first, Stream second) {
  if (first == second) return;
  Event<> mark(Timing::off, first.device);
  mark.record(first);
  mark.hold(second);  // an event may be destroyed before it is reached
}

}  // namespace diffmamba::cuda_runtime
