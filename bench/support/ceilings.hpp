// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::max, std::min
#include <chrono>     // std::chrono::steady_clock
#include <cmath>      // std::exp
#include <cstddef>    // std::size_t

#if defined(DIFFMAMBA_BENCH_HAS_CBLAS)
#include <cblas.h>
#endif

#include <Eigen/Core>

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/matmul/matmul_forward.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// What this machine can do at most, measured in this process with the number of threads that is set: what a figure of
/// a benchmark is held against. Each is the best of several runs, since a ceiling is what the machine reaches
/// undisturbed.
namespace diffmamba::bench {

/// Seconds of the fastest of `runs` calls, after one that is not counted.
template <class Work>
double best_seconds(int runs, Work&& work) {
  using Clock = std::chrono::steady_clock;
  work();
  double best = HUGE_VAL;
  for (int run = 0; run < runs; ++run) {
    const auto begin = Clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

/// Float products of square matrices by our own matmul, FLOP/s.
inline double matmul_rate(Index size = 2048, int runs = 5) {
  Tensor<float, 2> a({size, size}, 0.5f), b({size, size}, 0.25f), c({size, size});
  const double n = static_cast<double>(size);
  return 2 * n * n * n / best_seconds(runs, [&] { matmul(a, b, c); });
}

/// The same by the machine's BLAS with all threads, FLOP/s; 0 where there is none.
inline double blas_rate([[maybe_unused]] Index size = 2048, [[maybe_unused]] int runs = 5) {
#if defined(DIFFMAMBA_BENCH_HAS_CBLAS)
#if defined(OPENBLAS_VERSION)
  const int before = openblas_get_num_threads();
  openblas_set_num_threads(max_threads());
#endif
  Tensor<float, 2> a({size, size}, 0.5f), b({size, size}, 0.25f), c({size, size});
  const int m = static_cast<int>(size);
  const double n = static_cast<double>(size), seconds = best_seconds(runs, [&] {
                                                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, m, m, 1.0f,
                                                            a.data(), m, b.data(), m, 0.0f, c.data(), m);
                                              });
#if defined(OPENBLAS_VERSION)
  openblas_set_num_threads(before);
#endif
  return 2 * n * n * n / seconds;
#else
  return 0;
#endif
}

/// Bytes per second of STREAM's triad a = b + s c over arrays far larger than the caches (the written array counts
/// once, as in STREAM: what the cache reads before it writes is not counted).
inline double triad_rate(Index floats = Index{1} << 25, int runs = 5) {
  Tensor<float, 1> a{Extents<1>(floats)}, b(Extents<1>(floats), 1.0f), c(Extents<1>(floats), 2.0f);
  constexpr Index tile = Index{1} << 16;
  const double seconds = best_seconds(runs, [&] {
    parallel_for(tiles_of(floats, tile), [&](Index t) {
      const Index begin = t * tile, size = std::min(tile, floats - begin);
      Eigen::Map<Eigen::ArrayXf>(a.data() + begin, size) =
          Eigen::Map<const Eigen::ArrayXf>(b.data() + begin, size) +
          3.0f * Eigen::Map<const Eigen::ArrayXf>(c.data() + begin, size);
    });
  });
  return 3.0 * sizeof(float) * static_cast<double>(floats) / seconds;
}

/// Bytes per second of reading alone: what holds the decoding of a model larger than the caches.
inline double read_rate(Index floats = Index{1} << 26, int runs = 5) {
  Tensor<float, 1> a(Extents<1>(floats), 1.0f);
  constexpr Index tile = Index{1} << 16;
  const Index tiles = tiles_of(floats, tile);
  Tensor<float, 1> sums{Extents<1>(tiles)};
  const double seconds = best_seconds(runs, [&] {
    parallel_for(tiles, [&](Index t) {
      const Index begin = t * tile;
      sums(t) = Eigen::Map<const Eigen::ArrayXf>(a.data() + begin, std::min(tile, floats - begin)).sum();
    });
  });
  return sizeof(float) * static_cast<double>(floats) / seconds;
}

/// Exponentials of floats in the first cache, per second: what holds a selective scan.
inline double exp_rate(Index rounds = 2000, int runs = 5) {
  constexpr Index size = 2048;
  const Index tiles = 4 * max_threads();
  Tensor<float, 2> x({tiles, size}, -0.5f);
  const double seconds = best_seconds(runs, [&] {
    parallel_for(tiles, [&](Index t) {
      Eigen::Map<Eigen::ArrayXf> row(x.view().pointer(t), size);
      for (Index round = 0; round < rounds; ++round) row = (-row).exp();
    });
  });
  return static_cast<double>(tiles * size * rounds) / seconds;
}

/// All of them, measured at the first use; about five seconds.
struct Ceilings {
  double sgemm;  // FLOP/s: the better of the machine's BLAS and our own matmul
  double blas, matmul;
  double triad, read;  // bytes/s
  double exp;          // 1/s
};

inline const Ceilings& ceilings() {
  static const Ceilings all = [] {
    Ceilings c{};
    c.blas = blas_rate();
    c.matmul = matmul_rate();
    c.sgemm = std::max(c.blas, c.matmul);
    c.triad = triad_rate();
    c.read = read_rate();
    c.exp = exp_rate();
    return c;
  }();
  return all;
}

}  // namespace diffmamba::bench
