// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "support/bandwidth.hpp"

namespace {

namespace dm = diffmamba;
namespace norm = diffmamba::gated_rms_norm;

/// Two groups, as the two paths of a differential block; the last argument is norm_before_gate.
norm::Options options(const benchmark::State& state) {
  return {.group_size = state.range(2) / 2, .norm_before_gate = state.range(3) != 0};
}

void forward(benchmark::State& state) {
  const auto x = dm::bench::normal(state, 1), z = dm::bench::normal(state, 2);
  const auto weight = dm::bench::normal(x.extent(2), 3);
  dm::Tensor<float, 3> out(x.extents());
  norm::Saved<float> saved;
  for (auto _ : state) norm::forward<float>({.x = x, .weight = weight, .z = z}, options(state), {.out = out}, &saved);
  dm::bench::report_bytes(state, 3 * 4 * x.size());
}

void backward(benchmark::State& state) {
  const auto x = dm::bench::normal(state, 1), z = dm::bench::normal(state, 2), dout = dm::bench::normal(state, 4);
  const auto weight = dm::bench::normal(x.extent(2), 3);
  const norm::Inputs<float> in{.x = x, .weight = weight, .z = z};
  const auto saved = norm::forward(in, options(state)).saved;
  dm::Tensor<float, 3> dx(x.extents()), dz(x.extents());
  dm::Tensor<float, 1> dweight(weight.extents());
  dm::Workspace<dm::cpu> workspace(norm::workspace_bytes(in));
  for (auto _ : state) norm::backward(in, saved, {.dout = dout}, {.dx = dx, .dz = dz, .dweight = dweight}, workspace);
  dm::bench::report_bytes(state, 5 * 4 * x.size());
}

void shapes(benchmark::internal::Benchmark* registered) {
  for (int norm_before_gate : {0, 1}) registered->Args({8, 256, 512, norm_before_gate});
  for (int norm_before_gate : {0, 1}) registered->Args({8, 2048, 1024, norm_before_gate});
  registered->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(forward)->Apply(shapes);
BENCHMARK(backward)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
