// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The causal convolution, width 4 with SiLU and bias, beside a plain copy of the same bytes.
#include <deque>

#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"
#include "support/gpu_timing.hpp"

namespace {

using namespace diffmamba;
namespace conv = causal_conv1d;

constexpr conv::Options silu{.activation = conv::Activation::silu};

template <class T>
struct Problem {
  Tensor<T, 3, cuda> x, dout, out, dx;
  Tensor<float, 2, cuda> weight, dweight;
  Tensor<float, 1, cuda> bias, dbias;
  Workspace<cuda> workspace;

  Problem(const Extents<3>& extents, std::uint64_t seed)
      : x(bench::gpu::random_tensor<T>(extents, seed)),
        dout(bench::gpu::random_tensor<T>(extents, seed + 1)),
        out(extents),
        dx(extents),
        weight(bench::gpu::random_tensor<float>(Extents{extents[2], Index{4}}, 3)),
        dweight(weight.extents()),
        bias(bench::gpu::random_tensor<float>(Extents<1>{extents[2]}, 4)),
        dbias(bias.extents()),
        workspace(conv::workspace_bytes(inputs())) {}

  conv::Inputs<T, cuda> inputs() const { return {.x = x, .weight = weight, .bias = bias}; }
  void forward() { conv::forward(inputs(), silu, {.out = out}, nullptr, workspace); }
  void backward() {
    conv::backward(inputs(), conv::Saved<T, cuda>{silu}, {.dout = dout.view()},
                   {.dx = dx.view(), .dweight = dweight.view(), .dbias = dbias.view()}, workspace);
  }
};

template <class T>
void run(const bench::gpu::Report& report, const Extents<3>& extents, const char* type, double peer_forward,
         double peer_both) {
  const std::string name = " " + std::to_string(extents[0]) + " x " + std::to_string(extents[1]) + " x " +
                           std::to_string(extents[2]) + " " + type;
  const double size = static_cast<double>(extents.size()) * sizeof(T);
  const int sets = bench::gpu::sets_for(4 * size);
  std::deque<Problem<T>> problems;
  for (int set = 0; set < sets; ++set) problems.emplace_back(extents, 10 * static_cast<std::uint64_t>(set));
  const auto with = [&](auto&& what) {
    return bench::gpu::time(sets, [&](int set) { what(problems[static_cast<std::size_t>(set)]); });
  };
  report.run("copy" + name, {.bytes = 2 * size}, [&] { return with([](auto& p) { copy(p.x, p.out); }); });
  report.run("forward" + name, {.bytes = 2 * size, .peer_milliseconds = peer_forward},
             [&] { return with([](auto& p) { p.forward(); }); });
  report.run("backward" + name, {.bytes = 3 * size, .peer_milliseconds = peer_both - peer_forward},
             [&] { return with([](auto& p) { p.backward(); }); });
}

void run_step(const bench::gpu::Report& report, Index batch, Index channels) {
  const Problem<bfloat16> p({batch, Index{1}, channels}, 1);
  auto state = bench::gpu::random_tensor<float>(Extents{batch, channels, Index{4}}, 5);
  Tensor<bfloat16, 3, cuda> out(p.x.extents());
  const conv::StepInputs<bfloat16, cuda> in{.x = p.x, .weight = p.weight, .bias = p.bias};
  report.run("step " + std::to_string(batch) + " x " + std::to_string(channels) + ", float states",
             {.bytes = 32.0 * static_cast<double>(batch * channels)},
             [&] { return bench::gpu::time(8, [&](int) { conv::step(in, state.view(), silu, out.view()); }); });
}

}  // namespace

int main(int argc, char** argv) {
  const bench::gpu::Report report(argc, argv, "causal_conv1d");
  run<bfloat16>(report, {8, 2048, 2304}, "bfloat16", .063, .189);
  run<bfloat16>(report, {8, 2048, 4352}, "bfloat16", .114, .341);
  run<float>(report, {8, 2048, 2304}, "float", 0, 0);
  for (const Index batch : {1, 64}) run_step(report, batch, 2304);
}
