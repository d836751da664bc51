// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// What a stranger writes first: needs Eigen only.
#include <iostream>

#include "diffmamba/tensor/tensor.hpp"

namespace dm = diffmamba;

int main() {
  dm::Tensor<float, 2> x({3, 4}, 2.0f);
  std::cout << "a tensor of shape " << dm::shape(x) << "\n";
  return x(2, 3) == 2.0f ? 0 : 1;
}
