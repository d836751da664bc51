// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// The first program of the README; a test keeps the two the same.

#include <diffmamba/diffmamba.hpp>
#include <iostream>
namespace dm = diffmamba;

int main() {
  dm::Tensor<float, 3> x({2, 64, 256});  // (batch, length, d_model)
  dm::fill_normal(x, dm::Philox{1});

  dm::Differential<dm::Mamba2<float>> mixer({.d_model = 256, .d_state = 64, .expand = 1}, {.depth = 0});
  dm::initialize(mixer, dm::Philox{2});

  decltype(mixer)::Saved saved;  // what backward needs: a type, not a tape
  auto y = mixer.forward(x, saved);
  dm::Tensor<float, 3> dy = 2.0f * y / static_cast<float>(y.size());  // of mean(y^2): lazy, one fused pass
  auto dx = mixer.backward(dy, saved);                                // adds into the parameters' gradients

  mixer.visit([](std::string_view name, auto& parameter) { std::cout << name << " " << dm::shape(parameter) << "\n"; });
  std::cout << "mean(y^2) = " << dm::mean(y * y).value() << ", dx " << dm::shape(dx) << "\n";
}
