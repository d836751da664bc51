// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_step.hpp"
#include "support/bandwidth.hpp"

// One exponential per token, channel and state holds the scan, so next to the time per token stand Gexp/s and how much
// that is of this machine's exp2 in the first cache with as many threads (of_exp). GB/s counts every operand once.
namespace {

namespace dm = diffmamba;
namespace scan = diffmamba::selective_scan;
using dm::Index;

/// Our exp2 over 4 KiB, 1/s.
double exp2_rate() {
  using L = dm::Lanes<float>;
  constexpr Index size = 1024, rounds = 4000;
  const Index tiles = 4 * dm::max_threads();
  dm::Tensor<float, 2> x({tiles, size}, -0.5f), y({tiles, size});
  const double seconds = dm::bench::best_seconds(5, [&] {
    dm::parallel_for(tiles, [&](Index t) {
      for (Index round = 0; round < rounds; ++round) {
        for (Index i = 0; i < size; i += L::size) exp2(L::load(x.view().pointer(t, i))).store(y.view().pointer(t, i));
        benchmark::ClobberMemory();
      }
    });
  });
  return static_cast<double>(tiles * size * rounds) / seconds;
}

/// Arguments: batch, length, channels, d_state, threads.
struct Problem {
  Index batch, length, channels, d_state;
  dm::Threads threads;
  dm::Tensor<float, 3> u, delta, z, dout;
  dm::Tensor<float, 2> A;
  dm::Tensor<float, 4> B, C;
  dm::Tensor<float, 1> D, delta_bias;

  explicit Problem(const benchmark::State& state)
      : batch(state.range(0)),
        length(state.range(1)),
        channels(state.range(2)),
        d_state(state.range(3)),
        threads(static_cast<int>(state.range(4))),
        u(dm::bench::normal(state, 1)),
        delta(dm::bench::normal(state, 2)),
        z(dm::bench::normal(state, 3)),
        dout(dm::bench::normal(state, 4)),
        A({channels, d_state}),
        B({batch, length, Index{1}, d_state}),
        C({batch, length, Index{1}, d_state}),
        D(dm::bench::normal(channels, 5)),
        delta_bias(dm::bench::normal(channels, 6)) {
    for (Index c = 0; c < channels; ++c)
      for (Index n = 0; n < d_state; ++n) A(c, n) = -static_cast<float>(n + 1);  // the official initialisation
    dm::fill_normal(B, dm::Philox{7});
    dm::fill_normal(C, dm::Philox{8});
  }
  scan::Inputs<float> inputs() const {
    return {.u = u, .delta = delta, .A = A, .B = B, .C = C, .D = D, .z = z, .delta_bias = delta_bias};
  }
  void report(benchmark::State& state, Index operands) const {
    static const double rates[] = {0, (dm::Threads(1), exp2_rate()), (dm::Threads(2), exp2_rate())};
    const double tokens = static_cast<double>(batch * length) * static_cast<double>(state.iterations());
    const double exps = tokens * static_cast<double>(channels * d_state);
    const double bytes = 4 * tokens * static_cast<double>(operands * channels + 2 * d_state);
    using benchmark::Counter;
    state.counters["us_per_token"] = Counter(tokens * 1e-6, Counter::kIsRate | Counter::kInvert);
    state.counters["Gexp/s"] = Counter(exps * 1e-9, Counter::kIsRate);
    state.counters["of_exp"] = Counter(exps / rates[state.range(4)], Counter::kIsRate);
    state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsRate);
  }
};

void forward(benchmark::State& state) {
  const Problem p(state);
  const scan::Options options{.delta_softplus = true};
  dm::Tensor<float, 3> out(p.u.extents());
  scan::Saved<float> saved;
  dm::Workspace<> workspace(scan::workspace_bytes(p.inputs(), options));
  for (auto _ : state) scan::forward<float>(p.inputs(), options, {.out = out}, &saved, workspace);
  p.report(state, 4);
}

void backward(benchmark::State& state) {
  const Problem p(state);
  const auto saved = scan::forward(p.inputs(), {.delta_softplus = true}).saved;
  auto d = scan::backward(p.inputs(), saved, {.dout = p.dout});
  dm::Workspace<> workspace(scan::workspace_bytes(p.inputs(), saved));
  for (auto _ : state)
    scan::backward<float>(p.inputs(), saved, {.dout = p.dout},
                          {.du = d.du,
                           .ddelta = d.ddelta,
                           .dA = d.dA,
                           .dB = d.dB,
                           .dC = d.dC,
                           .dD = d.dD,
                           .dz = d.dz,
                           .ddelta_bias = d.ddelta_bias},
                          workspace, dm::GradientMode::assign);
  p.report(state, 7);
}

/// One token of a batch; the state is read and written.
void step(benchmark::State& state) {
  const dm::Threads threads(static_cast<int>(state.range(2)));
  const Index batch = state.range(0), channels = state.range(1), d_state = 16;
  dm::Tensor<float, 2> u({batch, channels}, 0.5f), delta({batch, channels}, 0.1f), A({channels, d_state}, -1.0f);
  dm::Tensor<float, 2> out({batch, channels});
  dm::Tensor<float, 3> B({batch, Index{1}, d_state}, 0.5f), C({batch, Index{1}, d_state}, 0.5f);
  dm::Tensor<float, 3> ssm_state({batch, channels, d_state});
  for (auto _ : state)
    scan::step<float>({.u = u, .delta = delta, .A = A, .B = B, .C = C}, ssm_state, {.delta_softplus = true}, out);
  dm::bench::report_bytes(state, 4 * (2 * ssm_state.size() + A.size()));
}

void shapes(benchmark::internal::Benchmark* registered) {
  for (Index threads : {1, 2}) {
    registered->Args({8, 256, 512, 16, threads});
    registered->Args({1, 4096, 1536, 16, threads});
  }
  registered->UseRealTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(forward)->Apply(shapes);
BENCHMARK(backward)->Apply(shapes);
BENCHMARK(step)
    ->Args({1, 1536, 1})
    ->Args({64, 1536, 1})
    ->Args({64, 1536, 2})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
