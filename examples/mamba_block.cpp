// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// A Mamba block: what the official README opens with.

#include <diffmamba/diffmamba.hpp>
#include <iostream>

namespace dm = diffmamba;

int main() {
  const int batch = 2, length = 64, dim = 16;
  dm::Tensor<float, 3> x({batch, length, dim});
  dm::fill_normal(x, dm::Philox{1});
  dm::Mamba<float> model({
      .d_model = dim,  // Model dimension d_model
      .d_state = 16,   // SSM state expansion factor
      .d_conv = 4,     // Local convolution width
      .expand = 2,     // Block expansion factor
  });
  dm::initialize(model, dm::Philox{0});
  dm::Tensor<float, 3> y = model.forward(x);
  dm::require(y.extents() == x.extents(), "y is ", y.extents());
  std::cout << "y " << dm::shape(y) << ", " << model.parameter_count() << " parameters\n";
}
