// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"
#include "support/bandwidth.hpp"

namespace {

namespace dm = diffmamba;
namespace conv = diffmamba::causal_conv1d;

constexpr conv::Options with_silu{.activation = conv::Activation::silu};

struct Problem {
  dm::Tensor<float, 3> x, dout, out, dx;
  dm::Tensor<float, 2> weight, dweight;
  dm::Tensor<float, 1> bias, dbias;
  conv::Inputs<float> in;
  dm::Workspace<dm::cpu> workspace;

  Problem(const benchmark::State& state, dm::Index width = 4)
      : x(dm::bench::normal(state, 1)),
        dout(dm::bench::normal(state, 2)),
        out(x.extents()),
        dx(x.extents()),
        weight({x.extent(2), width}, 0.3f),
        dweight(weight.extents()),
        bias(dm::bench::normal(x.extent(2), 3)),
        dbias(bias.extents()),
        in{.x = x, .weight = weight, .bias = bias},
        workspace(conv::workspace_bytes(in)) {}
};

void forward(benchmark::State& state) {
  Problem p(state);
  for (auto _ : state) conv::forward(p.in, with_silu, {.out = p.out}, nullptr, p.workspace);
  dm::bench::report_bytes(state, 2 * 4 * p.x.size());
}
void forward_without_silu(benchmark::State& state) {
  Problem p(state);
  for (auto _ : state) conv::forward(p.in, {}, {.out = p.out}, nullptr, p.workspace);
  dm::bench::report_bytes(state, 2 * 4 * p.x.size());
}
void backward(benchmark::State& state) {
  Problem p(state);
  const conv::Saved<float> saved{with_silu};
  for (auto _ : state)
    conv::backward(p.in, saved, {.dout = p.dout}, {.dx = p.dx, .dweight = p.dweight, .dbias = p.dbias}, p.workspace);
  dm::bench::report_bytes(state, 3 * 4 * p.x.size());
}
void step(benchmark::State& state) {
  Problem p(state);
  dm::Tensor<float, 3> conv_state({p.x.extent(0), p.x.extent(2), 4});
  for (auto _ : state) conv::step<float>({.x = p.x, .weight = p.weight, .bias = p.bias}, conv_state, with_silu, p.out);
  dm::bench::report_bytes(state, 4 * (2 * p.x.size() + 2 * conv_state.size()));
}

BENCHMARK(forward)->Apply(dm::bench::row_shapes);
BENCHMARK(forward_without_silu)->Apply(dm::bench::row_shapes);
BENCHMARK(backward)->Apply(dm::bench::row_shapes);
BENCHMARK(step)->Args({1, 1, 1024})->Args({64, 1, 4096})->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
