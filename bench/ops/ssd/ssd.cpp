// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD forward, backward and step, float, at the shapes of the training step (two paths of a d_model 256 block) and of a
// long sequence. Counters:
//   GFLOP/s   of the matrix products, chunks counted as full squares (the usual way)
//   must      the same with triangles counted as triangles: what cannot be left out
//   sgemm     what this machine's best GEMM reaches with as many threads, measured in this process
#include <benchmark/benchmark.h>

#include <map>
#include <random>

#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_step.hpp"
#include "ops/ssd/ssd_flops.hpp"
#include "support/ceilings.hpp"

using namespace diffmamba;

namespace {

constexpr ssd::Sizes shapes[] = {
    {.batch = 8, .length = 256, .nheads = 8, .headdim = 64, .ngroups = 2, .d_state = 64},
    {.batch = 8, .length = 256, .nheads = 16, .headdim = 32, .ngroups = 2, .d_state = 64},
    {.batch = 1, .length = 4096, .nheads = 24, .headdim = 64, .ngroups = 1, .d_state = 128},
};
constexpr ssd::Options options{.dt_softplus = true};

template <int Rank>
Tensor<float, Rank> normal(const Extents<Rank>& extents, float scale, float mean = 0) {
  Tensor<float, Rank> result(extents);
  std::mt19937 generator(1);
  std::normal_distribution<float> distribution(mean, scale);
  for (float& value : result) value = distribution(generator);
  return result;
}

struct Operands {
  ssd::Sizes s;
  Tensor<float, 4> x, B, C, dout;
  Tensor<float, 3> dt;
  Tensor<float, 1> A, D, dt_bias;

  explicit Operands(const ssd::Sizes& sizes)
      : s(sizes),
        x(normal(Extents{s.batch, s.length, s.nheads, s.headdim}, 1)),
        B(normal(Extents{s.batch, s.length, s.ngroups, s.d_state}, 1)),
        C(normal(Extents{s.batch, s.length, s.ngroups, s.d_state}, 1)),
        dout(normal(x.extents(), 1)),
        dt(normal(Extents{s.batch, s.length, s.nheads}, 0.5f, -2)),
        A(normal(Extents<1>{s.nheads}, 0.5f, -4)),
        D(Extents<1>{s.nheads}, 1.0f),
        dt_bias(Extents<1>{s.nheads}, -1.0f) {}
  ssd::Inputs<float> inputs() const { return {.x = x, .dt = dt, .A = A, .B = B, .C = C, .D = D, .dt_bias = dt_bias}; }
};

/// The machine's sgemm rate at a number of threads, measured once.
double sgemm_rate() {
  static std::map<int, double> known;
  double& rate = known[max_threads()];
  if (rate == 0) rate = std::max(bench::blas_rate(), bench::matmul_rate());
  return rate;
}

void count(benchmark::State& state, const ssd::Sizes& s, double flops, double must) {
  using benchmark::Counter;
  const auto rate = Counter::kIsIterationInvariantRate;
  state.counters["GFLOP/s"] = Counter(flops * 1e-9, rate);
  state.counters["must"] = Counter(must * 1e-9, rate);
  state.counters["sgemm"] = sgemm_rate() * 1e-9;
  state.counters["ns/token"] = Counter(static_cast<double>(s.batch * s.length) * 1e-9, rate | Counter::kInvert);
}

void forward(benchmark::State& state) {
  const Threads threads(static_cast<int>(state.range(1)));
  const Operands o(shapes[state.range(0)]);
  Tensor<float, 4> out(o.x.extents());
  ssd::Saved<float> saved;
  Workspace<cpu> workspace(ssd::workspace_bytes(o.inputs(), options));
  const bool training = state.range(2) != 0;
  ssd::forward(o.inputs(), options, {.out = out}, &saved, workspace);
  for (auto _ : state) ssd::forward(o.inputs(), options, {.out = out}, training ? &saved : nullptr, workspace);
  count(state, o.s, bench::ssd_flops(o.s, options).forward, bench::ssd_flops(o.s, options, true).forward);
}

void backward(benchmark::State& state) {
  const Threads threads(static_cast<int>(state.range(1)));
  const Operands o(shapes[state.range(0)]);
  const auto saved = ssd::forward(o.inputs(), options).saved;
  auto d = ssd::backward(o.inputs(), saved, {.dout = o.dout});
  Workspace<cpu> workspace(ssd::workspace_bytes(o.inputs(), saved));
  for (auto _ : state)
    ssd::backward(o.inputs(), saved, {.dout = o.dout},
                  {.dx = d.dx, .ddt = d.ddt, .dA = d.dA, .dB = d.dB, .dC = d.dC, .dD = d.dD, .ddt_bias = d.ddt_bias},
                  workspace);
  count(state, o.s, bench::ssd_flops(o.s, options).backward, bench::ssd_flops(o.s, options, true).backward);
}

/// One token of every sequence; bytes/s of the states, which are read and written.
void step(benchmark::State& state) {
  const Threads threads(static_cast<int>(state.range(1)));
  ssd::Sizes s = shapes[state.range(0)];
  s.length = 1;
  const Operands o(s);
  Tensor<float, 4> states({s.batch, s.nheads, s.headdim, s.d_state}), out(o.x.extents());
  const ssd::StepInputs<float> in{.x = o.x, .dt = o.dt, .A = o.A, .B = o.B, .C = o.C, .D = o.D, .dt_bias = o.dt_bias};
  for (auto _ : state) ssd::step(in, states, options, out);
  state.SetBytesProcessed(state.iterations() * states.size() * 8);
}

void shapes_and_threads(benchmark::internal::Benchmark* b) {
  b->ArgNames({"shape", "threads"})->ArgsProduct({{0, 1, 2}, {1, 2}})->Unit(benchmark::kMillisecond)->UseRealTime();
}

BENCHMARK(forward)
    ->ArgNames({"shape", "threads", "saved"})
    ->ArgsProduct({{0, 1, 2}, {1, 2}, {1}})
    ->Args({2, 2, 0})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(backward)->Apply(shapes_and_threads);
BENCHMARK(step)->Apply(shapes_and_threads);

}  // namespace

BENCHMARK_MAIN();
