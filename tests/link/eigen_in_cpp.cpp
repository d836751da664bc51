// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Eigen keeps its SIMD where nvcc compiles it too, and both compilers see the same Eigen, so that it does not matter
// whose copy of its functions the linker takes.
#include <cstdio>

#include "diffmamba/tensor/eigen.hpp"

int packet_size_in_cu();
float product_in_cu();

int main() {
  const int here = Eigen::internal::packet_traits<float>::size, there = packet_size_in_cu();
  const Eigen::MatrixXf a = Eigen::MatrixXf::Constant(40, 40, 0.5f), b = a * a;
  std::printf("floats at once: %d in a .cpp, %d in a .cu; products %g and %g\n", here, there,
              static_cast<double>(b(7, 8)), static_cast<double>(product_in_cu()));
  return here == there && here > 1 && b(7, 8) == product_in_cu() ? 0 : 1;
}
