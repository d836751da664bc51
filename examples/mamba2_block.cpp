// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// A Mamba-2 block, and the differential block made of two of them.

#include <diffmamba/diffmamba.hpp>
#include <iostream>

namespace dm = diffmamba;

int main() {
  const int batch = 2, length = 64, dim = 256;
  dm::Tensor<float, 3> x({batch, length, dim});
  dm::fill_normal(x, dm::Philox{1});
  dm::Mamba2<float> model({
      .d_model = dim,  // Model dimension d_model
      .d_state = 64,   // SSM state expansion factor, typically 64 or 128
      .d_conv = 4,     // Local convolution width
      .expand = 2,     // Block expansion factor
  });
  dm::Differential<dm::Mamba2<float>> differential({.d_model = dim, .d_state = 64, .expand = 1}, {.depth = 0});
  dm::initialize(model, dm::Philox{0});
  dm::initialize(differential, dm::Philox{0});
  dm::require(model.forward(x).extents() == x.extents(), "wrong shape");
  dm::require(differential.forward(x).extents() == x.extents(), "wrong shape");
  std::cout << model.parameter_count() << " parameters, differential " << differential.parameter_count() << "\n";
}
