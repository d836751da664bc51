// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"
#include "support/bandwidth.hpp"

namespace {

namespace dm = diffmamba;
namespace norm = diffmamba::rms_norm;

/// x joins the residual stream, which is normalised: what stands between two blocks.
void forward(benchmark::State& state) {
  const auto x = dm::bench::normal(state, 1), residual = dm::bench::normal(state, 2);
  const auto weight = dm::bench::normal(x.extent(2), 3);
  dm::Tensor<float, 3> out(x.extents()), residual_out(x.extents());
  norm::Saved<float> saved;
  for (auto _ : state)
    norm::forward<float>({.x = x, .weight = weight, .residual = residual}, {},
                         {.out = out, .residual_out = residual_out}, &saved);
  dm::bench::report_bytes(state, 4 * 4 * x.size());
}

void forward_alone(benchmark::State& state) {
  const auto x = dm::bench::normal(state, 1);
  const auto weight = dm::bench::normal(x.extent(2), 3);
  dm::Tensor<float, 3> out(x.extents());
  for (auto _ : state) norm::forward<float>({.x = x, .weight = weight}, {}, {.out = out}, nullptr);
  dm::bench::report_bytes(state, 2 * 4 * x.size());
}

void backward(benchmark::State& state) {
  const auto r = dm::bench::normal(state, 1), dout = dm::bench::normal(state, 2);
  const auto dresidual_out = dm::bench::normal(state, 4);
  const auto weight = dm::bench::normal(r.extent(2), 3);
  const norm::Inputs<float> in{.x = r, .weight = weight};
  const auto saved = norm::forward(in).saved;
  dm::Tensor<float, 3> dresidual(r.extents());
  dm::Tensor<float, 1> dweight(weight.extents());
  dm::Workspace<dm::cpu> workspace(norm::workspace_bytes(in));
  for (auto _ : state)
    norm::backward(in, saved, {.dout = dout, .dresidual_out = dresidual_out, .residual_out = r},
                   {.dresidual = dresidual, .dweight = dweight}, workspace);
  dm::bench::report_bytes(state, 4 * 4 * r.size());
}

BENCHMARK(forward)->Apply(dm::bench::row_shapes);
BENCHMARK(forward_alone)->Apply(dm::bench::row_shapes);
BENCHMARK(backward)->Apply(dm::bench::row_shapes);

}  // namespace

BENCHMARK_MAIN();
