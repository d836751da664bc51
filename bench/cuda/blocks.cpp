// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// Mixers of d_model 1024 in bfloat16 as a training step calls them: forward keeping what backward needs, and both with
// every gradient. Beside each the peer's time for the same block, replayed from a graph like ours.
#include "diffmamba/nn/block.hpp"
#include "diffmamba/nn/differential.hpp"
#include "support/gpu_timing.hpp"

namespace {

using namespace diffmamba;

struct Peer {
  double forward, both;  // milliseconds; 0: not measured
};

template <class M>
void mixer(const bench::gpu::Report& report, const std::string& name, const typename M::Options& options, Index batch,
           Index length, const Peer& peer) {
  if (!report.wants(name)) return;
  constexpr Index d_model = 1024;
  M module(options);
  initialize(module, Philox{1});
  module.zero_gradients();
  const auto x = bench::gpu::random_tensor<bfloat16>(Extents{batch, length, d_model}, 2);
  const auto dout = bench::gpu::random_tensor<bfloat16>(Extents{batch, length, d_model}, 3, 0.01);
  const auto forward = [&](typename M::Saved& saved) { return module.forward(Tensor<bfloat16, 3, cuda>(x), saved); };
  arena<cuda>().release();
  arena<cuda>().reset_peak();
  const std::size_t before = arena<cuda>().bytes_in_use();
  report.line(name + " forward",
              bench::gpu::time(1,
                               [&](int) {
                                 typename M::Saved saved;
                                 forward(saved);
                               }),
              {.peer_milliseconds = peer.forward});
  report.line(name + " forward + backward",
              bench::gpu::time(1,
                               [&](int) {
                                 typename M::Saved saved;
                                 forward(saved);
                                 module.backward(dout, saved);
                               }),
              {.peer_milliseconds = peer.both});
  std::printf("%-44s %10.0f MiB at most\n", "", static_cast<double>(arena<cuda>().peak_bytes() - before) / (1 << 20));
}

}  // namespace

int main(int argc, char** argv) {
  const bench::gpu::Report report(argc, argv, "blocks");
  using Plain = Mamba2<bfloat16, cuda>;
  using Diff = Differential<Mamba2<bfloat16, cuda>>;
  const auto both = [&](Index batch, Index length, const Peer& plain, const Peer& narrow, const Peer& wide) {
    const std::string shape = " " + std::to_string(batch) + " x " + std::to_string(length);
    mixer<Plain>(report, "mamba2 N128" + shape, {.d_model = 1024, .d_state = 128}, batch, length, plain);
    const auto differential = [](Index d_state) {
      return Diff::Options{.mixer = {.d_model = 1024, .d_state = d_state, .expand = 1}, .differential = {.depth = 3}};
    };
    mixer<Diff>(report, "diff_mamba2 N64" + shape, differential(64), batch, length, narrow);
    mixer<Diff>(report, "diff_mamba2 N128" + shape, differential(128), batch, length, wide);
  };
  both(8, 2048, {.769, 2.94}, {1.19, 4.48}, {1.30, 4.85});
  both(50, 512, {1.22, 4.58}, {1.79, 6.72}, {1.99, 7.39});
  const std::array<std::pair<Index, Index>, 2> shapes{{{8, 2048}, {50, 512}}};
  for (const auto& [batch, length] : shapes)
    mixer<Mamba<bfloat16, cuda>>(report, "mamba N16 " + std::to_string(batch) + " x " + std::to_string(length),
                                 {.d_model = 1024}, batch, length, batch == 8 ? Peer{1.01, 4.37} : Peer{1.50, 6.38});
}
