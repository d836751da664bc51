// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The norms, plain, with the residual stream and gated, on 16384 rows of bfloat16, with a copy beside: bytes are those
// read and written once. The peer is state-spaces/mamba (Triton) on an H100.
#include <vector>

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_backward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_forward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"
#include "support/gpu_timing.hpp"

namespace {

using namespace diffmamba;
namespace gpu = diffmamba::bench::gpu;
using T = bfloat16;
constexpr Index rows = 16384;

/// Several tensors with the same numbers in different memory.
template <class Element>
std::vector<Tensor<Element, 3, cuda>> copies(int sets, Index channels, std::uint64_t seed) {
  const auto one = gpu::random_tensor<Element>(Extents{Index{1}, rows, channels}, seed);
  return std::vector<Tensor<Element, 3, cuda>>(static_cast<std::size_t>(sets), one);
}
/// Milliseconds of the peer, forward and backward.
struct Peer {
  double forward = 0, backward = 0;
};

/// x alone, with the sum of a residual stream in float, or gated.
void run(const gpu::Report& report, Index channels, Peer plain, Peer stream, Peer gated) {
  const double size = static_cast<double>(rows * channels);
  const std::string width = " " + std::to_string(rows) + " x " + std::to_string(channels);
  const int sets = gpu::sets_for(4 * size);
  const auto at = [](auto& tensors, int set) -> auto& {
    return tensors[static_cast<std::size_t>(set)];
  };
  auto x = copies<T>(sets, channels, 1), dout = copies<T>(sets, channels, 2), out = copies<T>(sets, channels, 3);
  const auto weight = gpu::random_tensor<float>(Extents{channels}, 4), bias = weight;
  Tensor<float, 1, cuda> dweight(Extents{channels}), dbias(Extents{channels});
  Workspace<cuda> workspace(std::size_t{64} << 20);

  report.run("copy" + width, {.bytes = 4 * size},
             [&] { return gpu::time(sets, [&](int set) { copy(at(x, set), at(out, set)); }); });

  {
    std::vector<rms_norm::Saved<T, cuda>> saved(static_cast<std::size_t>(sets));
    const auto forward = [&](int set) {
      rms_norm::forward(rms_norm::Inputs<T, cuda>{.x = at(x, set), .weight = weight}, {}, {.out = at(out, set)},
                        &at(saved, set));
    };
    for (int set = 0; set < sets; ++set) forward(set);
    report.run("rms_norm forward" + width, {.bytes = 4 * size, .peer_milliseconds = plain.forward},
               [&] { return gpu::time(sets, forward); });
    report.run("rms_norm backward" + width, {.bytes = 6 * size, .peer_milliseconds = plain.backward}, [&] {
      return gpu::time(sets, [&](int set) {
        rms_norm::backward(rms_norm::Inputs<T, cuda>{.x = at(x, set), .weight = weight}, at(saved, set),
                           {.dout = at(dout, set)}, {.dx = at(out, set), .dweight = dweight}, workspace);
      });
    });
  }
  {
    std::vector<layer_norm::Saved<T, cuda>> saved(static_cast<std::size_t>(sets));
    const auto input = [&](int set) {
      return rms_norm::Inputs<T, cuda>{.x = at(x, set), .weight = weight, .bias = bias};
    };
    const auto forward = [&](int set) { layer_norm::forward(input(set), {}, {.out = at(out, set)}, &at(saved, set)); };
    for (int set = 0; set < sets; ++set) forward(set);
    report.run("layer_norm forward" + width, {.bytes = 4 * size}, [&] { return gpu::time(sets, forward); });
    report.run("layer_norm backward" + width, {.bytes = 6 * size}, [&] {
      return gpu::time(sets, [&](int set) {
        layer_norm::backward(input(set), at(saved, set), {.dout = at(dout, set)},
                             {.dx = at(out, set), .dweight = dweight, .dbias = dbias}, workspace);
      });
    });
  }
  {
    std::vector<gated_rms_norm::Saved<T, cuda>> saved(static_cast<std::size_t>(sets));
    auto z = copies<T>(sets, channels, 5), dz = copies<T>(sets, channels, 5);
    const auto input = [&](int set) {
      return gated_rms_norm::Inputs<T, cuda>{.x = at(x, set), .weight = weight, .z = at(z, set)};
    };
    const auto forward = [&](int set) {
      gated_rms_norm::forward(input(set), {.norm_before_gate = false}, {.out = at(out, set)}, &at(saved, set));
    };
    for (int set = 0; set < sets; ++set) forward(set);
    report.run("gated_rms_norm forward" + width, {.bytes = 6 * size, .peer_milliseconds = gated.forward},
               [&] { return gpu::time(sets, forward); });
    report.run("gated_rms_norm backward" + width, {.bytes = 10 * size, .peer_milliseconds = gated.backward}, [&] {
      return gpu::time(sets, [&](int set) {
        gated_rms_norm::backward(input(set), at(saved, set), {.dout = at(dout, set)},
                                 {.dx = at(out, set), .dz = at(dz, set), .dweight = dweight}, workspace);
      });
    });
  }
  {
    std::vector<rms_norm::Saved<T, cuda>> saved(static_cast<std::size_t>(sets));
    auto residual = copies<float>(sets, channels, 6), sum = copies<float>(sets, channels, 7);
    const auto forward = [&](int set) {
      rms_norm::forward(rms_norm::Inputs<T, cuda>{.x = at(x, set), .weight = weight, .residual = at(residual, set)}, {},
                        {.out = at(out, set), .residual_out = at(sum, set)}, &at(saved, set));
    };
    for (int set = 0; set < sets; ++set) forward(set);
    report.run("add + rms_norm forward" + width, {.bytes = 12 * size, .peer_milliseconds = stream.forward},
               [&] { return gpu::time(sets, forward); });
    // dL/d(residual) in float, in place, and dL/dx in bfloat16.
    report.run("add + rms_norm backward" + width, {.bytes = 16 * size, .peer_milliseconds = stream.backward}, [&] {
      return gpu::time(sets, [&](int set) {
        rms_norm::backward(
            rms_norm::Inputs<T, cuda>{.x = View<const T, 3, cuda>(nullptr, at(x, set).extents()), .weight = weight},
            at(saved, set), {.dout = at(dout, set), .dresidual_out = at(residual, set), .residual_out = at(sum, set)},
            {.dx = at(out, set), .dresidual = at(residual, set), .dweight = dweight}, workspace);
      });
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  const gpu::Report report(argc, argv, "norms");
  run(report, 1024, {.031, .112}, {.072, .200}, {.038, .144});
  run(report, 2048, {.049, .144}, {.138, .263}, {.071, .189});
}
