// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// What stands between the paths of a differential mixer and its output, on 16384 rows of bfloat16: bytes are those read
// and written once.
#include <vector>

#include "diffmamba/ops/differential_combine/differential_combine_backward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"
#include "diffmamba/ops/fold_difference/fold_difference_backward.hpp"
#include "diffmamba/ops/fold_difference/fold_difference_forward.hpp"
#include "diffmamba/ops/swiglu/swiglu_backward.hpp"
#include "diffmamba/ops/swiglu/swiglu_forward.hpp"
#include "support/gpu_timing.hpp"

namespace {

using namespace diffmamba;
namespace gpu = diffmamba::bench::gpu;
namespace combine = diffmamba::differential_combine;
using T = bfloat16;
constexpr Index rows = 16384, channels = 1024;

template <class Element>
std::vector<Tensor<Element, 3, cuda>> copies(int sets, std::uint64_t seed) {
  const auto one = gpu::random_tensor<Element>(Extents{Index{1}, rows, channels}, seed);
  return std::vector<Tensor<Element, 3, cuda>>(static_cast<std::size_t>(sets), one);
}

}  // namespace

int main(int argc, char** argv) {
  const gpu::Report report(argc, argv, "combine");
  const double size = static_cast<double>(rows * channels);
  const int sets = gpu::sets_for(6 * size);
  const auto at = [](auto& tensors, int set) -> auto& {
    return tensors[static_cast<std::size_t>(set)];
  };
  auto y1 = copies<T>(sets, 1), y2 = copies<T>(sets, 2), dout = copies<T>(sets, 3);
  auto out = copies<T>(sets, 4), dy2 = copies<T>(sets, 4);
  const auto weight = gpu::random_tensor<float>(Extents{channels}, 5),
             lambda = gpu::random_tensor<float>(Extents{1}, 6);
  Tensor<float, 1, cuda> dweight(Extents{channels}), dsubln(Extents{channels}), dlambda(Extents{1});
  Workspace<cuda> workspace(std::size_t{64} << 20);

  for (const auto& [name, norm] : {std::pair{"before", Norm::before}, std::pair{"after", Norm::after}}) {
    const bool before = norm == Norm::before;
    const auto input = [&](int set) {
      combine::Inputs<T, cuda> in{.y1 = at(y1, set), .y2 = at(y2, set), .lambda = lambda};
      (before ? in.norm_weight : in.subln_weight) = weight;
      return in;
    };
    std::vector<combine::Saved<T, cuda>> saved(static_cast<std::size_t>(sets));
    const auto forward = [&](int set) {
      combine::forward(input(set), {.norm = norm}, {.out = at(out, set)}, &at(saved, set));
    };
    for (int set = 0; set < sets; ++set) forward(set);
    report.run(std::string("combine, norm ") + name + ", forward", {.bytes = 6 * size},
               [&] { return gpu::time(sets, forward); });
    report.run(std::string("combine, norm ") + name + ", backward", {.bytes = 10 * size}, [&] {
      return gpu::time(sets, [&](int set) {
        combine::GradientViews<T, cuda> gradients{.dy1 = at(out, set), .dy2 = at(dy2, set), .dlambda = dlambda};
        (before ? gradients.dnorm_weight : gradients.dsubln_weight) = dweight;
        combine::backward(input(set), at(saved, set), {.dout = at(dout, set)}, gradients, workspace);
      });
    });
  }
  report.run("swiglu forward", {.bytes = 6 * size}, [&] {
    return gpu::time(sets, [&](int set) {
      swiglu::forward(swiglu::Inputs<T, cuda>{.x = at(y1, set), .z = at(y2, set)}, at(out, set));
    });
  });
  report.run("swiglu backward", {.bytes = 10 * size}, [&] {
    return gpu::time(sets, [&](int set) {
      swiglu::backward(swiglu::Inputs<T, cuda>{.x = at(y1, set), .z = at(y2, set)}, at(dout, set),
                       {.dx = at(out, set), .dz = at(dy2, set)});
    });
  });

  // The folded output projection: two weights of 1024 x 1024.
  const double folded = 2.0 * channels * channels;
  constexpr int weights = 16;
  std::vector<Tensor<T, 3, cuda>> W(weights, gpu::random_tensor<T>(Extents{Index{2}, channels, channels}, 7));
  std::vector<Tensor<T, 2, cuda>> F(weights, Tensor<T, 2, cuda>(Extents{channels, 2 * channels}));
  std::vector<Tensor<float, 2, cuda>> dF(weights, gpu::random_tensor<float>(Extents{channels, 2 * channels}, 8));
  std::vector<Tensor<float, 3, cuda>> dW(weights, Tensor<float, 3, cuda>(Extents{Index{2}, channels, channels}));
  report.run("fold 1024 x 2048 forward", {.bytes = 4 * folded}, [&] {
    return gpu::time(weights, [&](int set) {
      fold_difference::forward(fold_difference::Inputs<T, cuda>{.weight = at(W, set), .lambda = lambda}, {},
                               {.weight = at(F, set)});
    });
  });
  report.run("fold 1024 x 2048 backward", {.bytes = 13 * folded}, [&] {
    return gpu::time(weights, [&](int set) {
      fold_difference::backward(fold_difference::Inputs<T, cuda>{.weight = at(W, set), .lambda = lambda}, {},
                                {.dweight = at(dF, set)}, {.dweight = at(dW, set), .dlambda = dlambda}, workspace,
                                GradientMode::add);
    });
  });
  Tensor<float, 1, cuda> value(Extents{1});
  report.run("lambda, sigmoid of a sum, forward", {}, [&] {
    return gpu::time(
        16, [&](int) { combine::lambda_forward<float>(Lambda::sigmoid_sum, 0.2, {.lambda_q1 = weight}, value); });
  });
}
