// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>       // std::atomic_flag
#include <exception>    // std::exception_ptr
#include <type_traits>  // std::is_invocable_v

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "diffmamba/core/config.hpp"

namespace diffmamba {

/// Threads that the next parallel loop of the calling thread may use; 1 without OpenMP and inside a parallel loop.
inline int max_threads() {
#if defined(_OPENMP)
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// Sets the number of threads of the calling thread for a scope: Threads two(2);
class Threads {
 public:
#if defined(_OPENMP)
  explicit Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count < 1 ? 1 : count); }
  ~Threads() { omp_set_num_threads(before_); }
#else
  explicit Threads(int) {}
#endif
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
#if defined(_OPENMP)
  int before_;
#endif
};

/// Calls work(tile) for every tile in [0, tiles), on several threads where there are any. The tiling is the caller's and
/// must follow from the shapes alone, never from the number of threads: then the result has the same bits on any number
/// of them. Tiles must not write to the same element. The first exception thrown by a tile is thrown again here.
///
/// work(tile, worker) is told who works, 0 <= worker < max_threads() as it was before the loop: for scratch memory that
/// one tile after another uses, which no result may depend on.
template <class Work>
void parallel_for(Index tiles, Work&& work) {
  const auto call = [&work](Index tile, [[maybe_unused]] int worker) {
    if constexpr (std::is_invocable_v<Work&, Index, int>)
      work(tile, worker);
    else
      work(tile);
  };
#if defined(_OPENMP)
  const int threads = max_threads();
  if (threads > 1 && tiles > 1) {
    std::exception_ptr error;
    std::atomic_flag caught = ATOMIC_FLAG_INIT;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (Index tile = 0; tile < tiles; ++tile) {
      try {
        call(tile, omp_get_thread_num());
      } catch (...) {
        if (!caught.test_and_set()) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  for (Index tile = 0; tile < tiles; ++tile) call(tile, 0);
}

/// Number of tiles of `tile` elements that cover `size`.
constexpr Index tiles_of(Index size, Index tile) { return (size + tile - 1) / tile; }

}  // namespace diffmamba
