// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The products of a training step in bfloat16: y = x w^T, dx = dy w, dw += dy^T x in float. `--ranks` times every entry
// of cuBLASLt's ranking, not only the first, which is what the library takes. Then the plans.
#include <cstring>

#include "diffmamba/ops/linear/linear_backward.hpp"
#include "diffmamba/ops/linear/linear_forward.hpp"
#include "support/gpu_timing.hpp"

namespace dm = diffmamba;
using dm::bfloat16;
using dm::cuda;
using dm::Index;

int main(int argc, char** argv) {
  const dm::bench::gpu::Report report(argc, argv, "matmul");
  bool ranks = false, plans = false;
  for (int i = 1; i < argc; ++i) {
    ranks |= std::strcmp(argv[i], "--ranks") == 0;
    plans |= std::strcmp(argv[i], "--plans") == 0;
  }
  struct Shape {
    Index rows, out, in;
  };
  for (const auto& [rows, out, in] : {Shape{16384, 4384, 1024},
                                      {16384, 1024, 2048},
                                      {2048, 50288, 1024},
                                      {16384, 50288, 1024},
                                      {25600, 4384, 1024},
                                      {25600, 1024, 2048}}) {
    const auto x = dm::bench::gpu::random_tensor<bfloat16>(dm::Extents{rows, in}, 1);
    const auto w = dm::bench::gpu::random_tensor<bfloat16>(dm::Extents{out, in}, 2, 0.03);
    const auto tile = dm::bench::gpu::random_tensor<bfloat16>(dm::Extents{rows, Index{1024}}, 3);
    dm::Tensor<bfloat16, 2, cuda> y(dm::Extents{rows, out}), dx(dm::Extents{rows, in});
    for (Index j = 0; j + 1024 <= out; j += 1024) dm::copy(tile.view(), y.view().slice<1>(j, j + 1024));
    dm::Tensor<float, 2, cuda> dw(dm::Extents{out, in});
    const dm::linear::Inputs<bfloat16, cuda> inputs{.x = x, .weight = w};
    const double flop = 2.0 * static_cast<double>(rows) * static_cast<double>(out) * static_cast<double>(in);
    const std::string name = std::to_string(rows) + " x " + std::to_string(out) + " x " + std::to_string(in);
    for (int rank = 0; rank < (ranks ? 8 : 1); ++rank) {
      dm::detail::plan_rank_of_thread() = rank;
      const std::string place = ranks ? " #" + std::to_string(rank) : "";
      const auto run = [&](const char* what, auto&& launch) {
        report.run(name + what + place, {.flop = flop}, [&] {
          return dm::bench::gpu::time(
              1, [&](int) { launch(); }, 10, 0.02);
        });
      };
      run(" dx", [&] { dm::linear::backward(inputs, std::as_const(y), {.dx = dx}); });
      run(" dw", [&] { dm::linear::backward(inputs, std::as_const(y), {.dweight = dw}, dm::GradientMode::add); });
      run(" y", [&] { dm::linear::forward(inputs, y); });
    }
    dm::detail::plan_rank_of_thread() = 0;
  }
  if (plans)
    for (const dm::MatmulPlan& plan : dm::matmul_plans())
      std::printf(
          "%6lld x %6lld x %6lld %d%d -> %s: algorithm %d tile %d stages %d cluster %d split %d waves %.2f, %zu KiB\n",
          static_cast<long long>(plan.m), static_cast<long long>(plan.n), static_cast<long long>(plan.k), plan.a_turned,
          plan.b_turned, std::string(dm::name_of(plan.c)).c_str(), plan.algorithm, plan.tile, plan.stages, plan.cluster,
          plan.split_k, static_cast<double>(plan.waves), plan.workspace >> 10);
}
