// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/ssd/ssd.hpp"

#include "support/gpu_timing.hpp"

// SSD with softplus, dt_bias and D, headdim 64, one group: forward, forward with backward, and decoding. The peer is
// mamba_chunk_scan_combined of state-spaces/mamba with its better chunk of 128 and 256, replayed from a graph on an
// H100; the bytes are those of x, B, C, dt and out, or of the states.
namespace {

using namespace diffmamba;

constexpr Index headdim = 64;
constexpr ssd::Options options{.dt_softplus = true};

struct Shape {
  Index batch, length, heads, d_state;
  double peer_forward, peer_both;  // ms
};

/// Normal numbers; of a large tensor only the first 2^22 are drawn, and repeated.
template <class T, int Rank>
Tensor<T, Rank, cuda> random(const Extents<Rank>& extents, std::uint64_t seed) {
  const Index size = extents.size(), drawn = size < (Index{1} << 22) ? size : Index{1} << 22;
  const auto numbers = bench::gpu::random_tensor<T>(Extents<1>{drawn}, seed);
  auto result = Tensor<T, Rank, cuda>::uninitialized(extents);
  for (Index at = 0; at < size; at += drawn)
    copy_elements(cuda{}, numbers.data(), result.data() + at, size - at < drawn ? size - at : drawn);
  return result;
}

/// -1 to -16, as models begin with.
Tensor<float, 1, cuda> decays(Index heads) {
  Tensor<float, 1> A({heads});
  for (Index h = 0; h < heads; ++h) A(h) = -1.0f - 15.0f * static_cast<float>(h) / static_cast<float>(heads);
  return to<cuda>(A);
}
Tensor<float, 1, cuda> constant(Index heads, float value) {
  Tensor<float, 1> result({heads});
  for (float& element : result) element = value;
  return to<cuda>(result);
}

template <class T>
struct Problem {
  Tensor<T, 4, cuda> x, B, C, out, dout, dx, dB, dC;
  Tensor<T, 3, cuda> dt, ddt;
  Tensor<float, 1, cuda> A, D, dt_bias, dA, dD, ddt_bias;
  ssd::Saved<T, cuda> saved;

  Problem(const Shape& s, std::uint64_t seed, bool training)
      : x(random<T>(Extents{s.batch, s.length, s.heads, headdim}, seed)),
        B(random<T>(Extents{s.batch, s.length, Index{1}, s.d_state}, seed + 1)),
        C(random<T>(Extents{s.batch, s.length, Index{1}, s.d_state}, seed + 2)),
        out(Tensor<T, 4, cuda>::uninitialized(x.extents())),
        dt(random<T>(Extents{s.batch, s.length, s.heads}, seed + 3)),
        A(decays(s.heads)),
        D(constant(s.heads, 1)),
        dt_bias(constant(s.heads, -4)) {
    if (!training) return;
    dout = random<T>(x.extents(), seed + 4);
    dx = Tensor<T, 4, cuda>::uninitialized(x.extents());
    dB = Tensor<T, 4, cuda>::uninitialized(B.extents());
    dC = Tensor<T, 4, cuda>::uninitialized(C.extents());
    ddt = Tensor<T, 3, cuda>::uninitialized(dt.extents());
    dA = constant(s.heads, 0), dD = constant(s.heads, 0), ddt_bias = constant(s.heads, 0);
  }
  ssd::Inputs<T, cuda> inputs() const { return {.x = x, .dt = dt, .A = A, .B = B, .C = C, .D = D, .dt_bias = dt_bias}; }
  void forward(bool training) {
    Workspace<cuda> workspace(ssd::workspace_bytes(inputs(), options));
    ssd::forward(inputs(), options, {.out = out}, training ? &saved : nullptr, workspace);
  }
  void backward() {
    Workspace<cuda> workspace(ssd::workspace_bytes(inputs(), saved));
    ssd::backward(inputs(), saved, {.dout = dout},
                  {.dx = dx, .ddt = ddt, .dA = dA, .dB = dB, .dC = dC, .dD = dD, .ddt_bias = ddt_bias}, workspace);
  }
};

template <class T>
void run(const bench::gpu::Report& report, const Shape& s, const char* type, bool training) {
  const std::string name = std::to_string(s.batch) + " x " + std::to_string(s.length) + ", " + std::to_string(s.heads) +
                           " heads, N " + std::to_string(s.d_state) + " " + type +
                           (training ? " forward + backward" : " forward");
  if (!report.wants(name)) return;
  const double tokens = static_cast<double>(s.batch * s.length), size = sizeof(T);
  const double bytes =
      tokens * size * static_cast<double>(2 * s.heads * headdim + s.heads + 2 * s.d_state) * (training ? 2.5 : 1.0);
  const int sets = bench::gpu::sets_for(bytes);
  std::vector<Problem<T>> problems;
  for (int i = 0; i < sets; ++i) problems.emplace_back(s, 10 * static_cast<std::uint64_t>(i), training);
  const auto launch = [&](int set) {
    auto& problem = problems[static_cast<std::size_t>(set)];
    problem.forward(training);
    if (training) problem.backward();
  };
  report.line(name, bench::gpu::time(sets, launch),
              {.bytes = bytes, .peer_milliseconds = training ? s.peer_both : s.peer_forward});
}

void run_step(const bench::gpu::Report& report, Index batch, Index heads, Index d_state) {
  using T = bfloat16;
  const std::string name = "step " + std::to_string(batch) + " x " + std::to_string(heads) + " heads, N " +
                           std::to_string(d_state) + ", float states";
  if (!report.wants(name)) return;
  const double bytes = 8.0 * static_cast<double>(batch * heads * headdim * d_state);
  const int sets = bench::gpu::sets_for(bytes);
  std::vector<Tensor<float, 4, cuda>> states;
  for (int i = 0; i < sets; ++i) states.push_back(random<float>(Extents{batch, heads, headdim, d_state}, 1));
  const Problem<T> p({batch, 1, heads, d_state, 0, 0}, 1, false);
  const ssd::StepInputs<T, cuda> in{.x = p.x, .dt = p.dt, .A = p.A, .B = p.B, .C = p.C, .D = p.D, .dt_bias = p.dt_bias};
  Tensor<T, 4, cuda> out(p.x.extents());
  const auto time = bench::gpu::time(
      sets, [&](int set) { ssd::step(in, states[static_cast<std::size_t>(set)].view(), options, out.view()); });
  report.line(name, time, {.bytes = bytes});
}

}  // namespace

int main(int argc, char** argv) {
  const bench::gpu::Report report(argc, argv, "ssd");
  const Shape shapes[] = {{8, 2048, 32, 128, .313, 1.468}, {8, 2048, 32, 64, .233, 1.112},
                          {1, 65536, 32, 128, 1.56, 6.16}, {50, 512, 16, 64, .194, .978},
                          {4, 4096, 80, 128, .744, 3.31},  {1, 2048, 80, 128, .108, .560}};
  for (const Shape& s : shapes) run<bfloat16>(report, s, "bfloat16", false);
  for (const Shape& s : shapes) run<bfloat16>(report, s, "bfloat16", true);
  run<float>(report, {8, 2048, 32, 128, 0, 0}, "float", false);
  run<float>(report, {8, 2048, 32, 128, 0, 0}, "float", true);
  for (const Index batch : {1, 64, 128}) {
    run_step(report, batch, 32, 128);
    run_step(report, batch, 80, 128);
  }
}
