// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// A stranger's CUDA source: the header-only library, compiled by nvcc, nothing linked.
#include <diffmamba/diffmamba.cuh>
#include <iostream>

namespace dm = diffmamba;

int main() {
  dm::Tensor<float, 3> x({2, 9, 16}, 0.5f);
  dm::Tensor<float, 2> weight({16, 4}, 0.25f);
  const dm::causal_conv1d::Options silu{.activation = dm::causal_conv1d::Activation::silu};
  const auto want = dm::causal_conv1d::forward(dm::causal_conv1d::Inputs<float>{.x = x, .weight = weight}, silu).out;
  if (dm::cuda_runtime::device_count() == 0) {
    std::cout << "no GPU here; on the CPU out(1, 8, 15) = " << want(1, 8, 15) << "\n";
    return 0;
  }
  const auto x_there = dm::to<dm::cuda>(x);
  const auto weight_there = dm::to<dm::cuda>(weight);
  const auto out = dm::to<dm::cpu>(
      dm::causal_conv1d::forward(dm::causal_conv1d::Inputs<float, dm::cuda>{.x = x_there, .weight = weight_there}, silu)
          .out);
  std::cout << dm::cuda_runtime::device_name() << ": out(1, 8, 15) = " << out(1, 8, 15) << "\n";
  return std::abs(out(1, 8, 15) - want(1, 8, 15)) < 1e-6f ? 0 : 1;
}
