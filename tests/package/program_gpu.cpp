// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The same from a .cpp file, with the kernels that were compiled once.
#include <diffmamba/diffmamba.hpp>
#include <iostream>

namespace dm = diffmamba;

int main() {
  if (dm::cuda_runtime::device_count() == 0) {
    std::cout << "no GPU here\n";
    return 0;
  }
  const dm::Tensor<float, 2, dm::cuda> x({3, 4}, 2.0f);
  return dm::to<dm::cpu>(x)(2, 3) == 2.0f ? 0 : 1;
}
