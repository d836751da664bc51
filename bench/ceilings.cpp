// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Prints what this machine can do at most: bench_ceilings [--sgemm]. With --sgemm only the GEMM rate in GFLOP/s, for
// scripts.
#include <cstdio>
#include <cstring>

#include "support/ceilings.hpp"

namespace db = diffmamba::bench;

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--sgemm") == 0) {
    std::printf("%.1f\n", std::max(db::blas_rate(), db::matmul_rate()) * 1e-9);
    return 0;
  }
  const db::Ceilings& c = db::ceilings();
  std::printf("threads             %8d\n", diffmamba::max_threads());
  std::printf("sgemm, BLAS         %8.1f GFLOP/s\n", c.blas * 1e-9);
  std::printf("sgemm, diffmamba    %8.1f GFLOP/s (%.0f %% of BLAS)\n", c.matmul * 1e-9,
              c.blas > 0 ? 100 * c.matmul / c.blas : 0);
  std::printf("triad               %8.2f GB/s\n", c.triad * 1e-9);
  std::printf("read                %8.2f GB/s\n", c.read * 1e-9);
  std::printf("exp                 %8.2f G/s\n", c.exp * 1e-9);
}
