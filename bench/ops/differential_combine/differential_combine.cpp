// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/differential_combine/differential_combine_backward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"
#include "support/bandwidth.hpp"

namespace {

namespace dm = diffmamba;
namespace combine = diffmamba::differential_combine;

struct Problem {
  dm::Tensor<float, 3> y1, y2;
  dm::Tensor<float, 1> lambda, weight;
  combine::Inputs<float> in;
  combine::Options options;

  /// The last argument of a benchmark is the norm: after, before, before_and_after, none.
  explicit Problem(const benchmark::State& state)
      : y1(dm::bench::normal(state, 1)),
        y2(dm::bench::normal(state, 2)),
        lambda(dm::Extents<1>(1), 0.7f),
        weight(dm::bench::normal(y1.extent(2), 3)),
        in{.y1 = y1, .y2 = y2, .lambda = lambda},
        options{.norm = static_cast<dm::Norm>(state.range(3))} {
    if (combine::norm_before(options)) in.norm_weight = weight;
    if (combine::norm_after(options)) in.subln_weight = weight;
  }
};

void forward(benchmark::State& state) {
  const Problem p(state);
  dm::Tensor<float, 3> out(p.y1.extents());
  combine::Saved<float> saved;
  for (auto _ : state) combine::forward(p.in, p.options, {.out = out}, &saved);
  dm::bench::report_bytes(state, 3 * 4 * p.y1.size());
}

void backward(benchmark::State& state) {
  const Problem p(state);
  const auto dout = dm::bench::normal(state, 4);
  const auto saved = combine::forward(p.in, p.options).saved;
  dm::Tensor<float, 3> dy1(p.y1.extents()), dy2(p.y1.extents());
  dm::Tensor<float, 1> dlambda(p.lambda.extents()), dnorm_weight, dsubln_weight;
  if (p.in.norm_weight) dnorm_weight = dm::Tensor<float, 1>(p.weight.extents());
  if (p.in.subln_weight) dsubln_weight = dm::Tensor<float, 1>(p.weight.extents());
  dm::Workspace<dm::cpu> workspace(combine::workspace_bytes(p.in));
  for (auto _ : state)
    combine::backward(
        p.in, saved, {.dout = dout},
        {.dy1 = dy1, .dy2 = dy2, .dlambda = dlambda, .dnorm_weight = dnorm_weight, .dsubln_weight = dsubln_weight},
        workspace);
  dm::bench::report_bytes(state, 5 * 4 * p.y1.size());
}

void shapes(benchmark::internal::Benchmark* registered) {
  for (int norm : {0, 1, 2, 3}) registered->Args({8, 256, 256, norm});
  for (int norm : {0, 1, 2, 3}) registered->Args({8, 2048, 1024, norm});
  registered->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(forward)->Apply(shapes);
BENCHMARK(backward)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
