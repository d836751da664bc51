// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/selective_scan/selective_scan.hpp"

#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "support/gpu_timing.hpp"

// The selective scan with d_state 16, z, D, delta_bias and softplus: inference, training forward, and forward with
// backward. The peer is the CUDA kernel of state-spaces/mamba, replayed from a graph on an H100.
namespace {

using namespace diffmamba;
namespace scan = diffmamba::selective_scan;

constexpr Index d_state = 16;

struct Shape {
  Index batch, channels, length;
  double peer_bf16_forward, peer_bf16_both, peer_float_forward, peer_float_both;  // ms
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

template <class T>
struct Problem {
  using S = accumulate_t<T>;
  Tensor<T, 3, cuda> u, delta, z, dout, out, du, ddelta, dz;
  Tensor<T, 4, cuda> B, C, dB, dC;
  Tensor<S, 2, cuda> A, dA;
  Tensor<S, 1, cuda> D, delta_bias, dD, ddelta_bias;
  scan::Saved<T, cuda> saved;

  Problem(const Shape& s, std::uint64_t seed)
      : u(random<T>(Extents{s.batch, s.length, s.channels}, seed)),
        delta(random<T>(Extents{s.batch, s.length, s.channels}, seed + 1)),
        z(random<T>(Extents{s.batch, s.length, s.channels}, seed + 2)),
        dout(random<T>(Extents{s.batch, s.length, s.channels}, seed + 3)),
        out(u.extents()),
        du(u.extents()),
        ddelta(u.extents()),
        dz(u.extents()),
        B(random<T>(Extents{s.batch, s.length, Index{1}, d_state}, seed + 4)),
        C(random<T>(Extents{s.batch, s.length, Index{1}, d_state}, seed + 5)),
        dB(B.extents()),
        dC(C.extents()),
        dA(Extents{s.channels, d_state}),
        D(random<S>(Extents<1>{s.channels}, seed + 6)),
        delta_bias(random<S>(Extents<1>{s.channels}, seed + 7)),
        dD(D.extents()),
        ddelta_bias(D.extents()) {
    Tensor<S, 2> decay({s.channels, d_state});
    fill_normal(decay, Philox{seed + 8});
    for (S& a : decay) a = -std::exp(a);
    A = to<cuda>(decay);
  }
  scan::Inputs<T, cuda> inputs() const {
    return {.u = u, .delta = delta, .A = A, .B = B, .C = C, .D = D, .z = z, .delta_bias = delta_bias};
  }
  void forward(bool training) {
    const scan::Options options{.delta_softplus = true};
    Workspace<cuda> workspace(scan::workspace_bytes(inputs(), options));
    scan::forward<T>(inputs(), options, {.out = out}, training ? &saved : nullptr, workspace);
  }
  void backward() {
    Workspace<cuda> workspace(scan::workspace_bytes(inputs(), saved));
    scan::backward<T>(
        inputs(), saved, {.dout = dout},
        {.du = du, .ddelta = ddelta, .dA = dA, .dB = dB, .dC = dC, .dD = dD, .dz = dz, .ddelta_bias = ddelta_bias},
        workspace);
  }
};

template <class T>
void run(const bench::gpu::Report& report, const Shape& s, const char* type, double peer_forward, double peer_both) {
  const std::string name = std::to_string(s.batch) + " x " + std::to_string(s.channels) + " x " +
                           std::to_string(s.length) + " " + type + " ";
  if (!report.wants(name)) return;
  const double elements = static_cast<double>(s.batch * s.channels * s.length), size = sizeof(T);
  const int sets = bench::gpu::sets_for(8 * elements * size);
  std::vector<Problem<T>> problems;
  for (int set = 0; set < sets; ++set) problems.emplace_back(s, 10 * static_cast<std::uint64_t>(set));
  using bench::gpu::time;
  report.line(name + "inference", time(sets, [&](int set) { problems[static_cast<std::size_t>(set)].forward(false); }),
              {.bytes = 4 * elements * size, .peer_milliseconds = peer_forward});
  for (auto& problem : problems) problem.forward(true);  // Saved takes its memory
  report.line(name + "forward", time(sets, [&](int set) { problems[static_cast<std::size_t>(set)].forward(true); }),
              {.bytes = 4 * elements * size, .peer_milliseconds = peer_forward});
  report.line(name + "forward + backward",
              time(sets,
                   [&](int set) {
                     problems[static_cast<std::size_t>(set)].forward(true);
                     problems[static_cast<std::size_t>(set)].backward();
                   }),
              {.bytes = 11 * elements * size, .peer_milliseconds = peer_both});
}

}  // namespace

int main(int argc, char** argv) {
  const bench::gpu::Report report(argc, argv, "selective_scan (batch x channels x length)");
  for (const Shape& s : {Shape{8, 2048, 512, .149, .705, .311, 1.05}, Shape{8, 2048, 2048, .588, 2.99, 1.16, 3.87},
                         Shape{8, 2048, 8192, 2.69, 12.4, 5.01, 15.9}, Shape{1, 2048, 65536, 2.96, 14.4, 5.80, 18.6},
                         Shape{1, 5120, 2048, .198, 1.05, .390, 1.32}, Shape{1, 5120, 65536, 7.52, 32.6, 13.0, 41.4}}) {
    run<bfloat16>(report, s, "bf16", s.peer_bf16_forward, s.peer_bf16_both);
    run<float>(report, s, "float", s.peer_float_forward, s.peer_float_both);
  }
}
