// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// State space duality by itself (listing 1 of the Mamba-2 paper): matrix products in chunks, and the recurrence that
// they equal.

#include <diffmamba/diffmamba.hpp>
#include <iostream>

namespace dm = diffmamba;

int main() {
  const int batch = 1, length = 2048, nheads = 12, headdim = 64, ngroups = 1, d_state = 64;
  dm::Tensor<float, 4> x({batch, length, nheads, headdim}), B({batch, length, ngroups, d_state}), C(B.extents());
  dm::Tensor<float, 3> dt({batch, length, nheads});
  dm::Tensor<float, 1> A({nheads}, -1.0f);
  dm::fill_normal(x, dm::Philox{1});
  dm::fill_normal(B, dm::Philox{2});
  dm::fill_normal(C, dm::Philox{3});
  dm::fill_uniform(dt, dm::Philox{4}, 0.001, 0.1);

  dm::ssd::Inputs<float> in{.x = x, .dt = dt, .A = A, .B = B, .C = C};
  auto [y, final_state, saved] = dm::ssd::forward(in, {.chunk_size = 64});

  dm::Tensor<float, 4> state({batch, nheads, headdim, d_state});
  dm::ssd::StepInputs<float> tokens{.x = x, .dt = dt, .A = A, .B = B, .C = C};
  auto y_steps = dm::ssd::step(tokens, state);
  float difference = 0;
  for (dm::Index i = 0; i < y.size(); ++i) difference = std::max(difference, std::abs(y.data()[i] - y_steps.data()[i]));
  std::cout << "y " << dm::shape(y) << ", chunks and recurrence differ by at most " << difference << "\n";
  return difference < 1e-2f ? 0 : 1;
}
