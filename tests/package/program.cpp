// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// What a stranger writes first: one header, Eigen and nothing else.
#include <diffmamba/diffmamba.hpp>
#include <iostream>

namespace dm = diffmamba;

int main() {
  dm::Tensor<float, 2> x({3, 4}, 2.0f), y({3, 4});
  y = dm::silu(x) * 0.5f + x;

  dm::Tensor<float, 3> tokens({1, 5, 32});
  dm::fill_normal(tokens, dm::Philox{1});
  dm::Differential<dm::Mamba2<float>> mixer({.d_model = 32, .d_state = 8, .expand = 1, .headdim = 16}, {.depth = 0});
  dm::initialize(mixer, dm::Philox{2});
  const auto out = mixer.forward(tokens);
  std::cout << "y(0, 0) = " << y(0, 0) << ", mixer: " << dm::shape(out) << "\n";
  const bool good = std::abs(y(2, 3) - (0.5f * 2.0f / (1.0f + std::exp(-2.0f)) + 2.0f)) < 1e-6f;
  return good && out.extents() == tokens.extents() ? 0 : 1;
}
