// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/tensor/eigen.hpp"

int packet_size_in_cu();
float product_in_cu();

int packet_size_in_cu() {
  return Eigen::internal::packet_traits<float>::size;
}
float product_in_cu() {
  const Eigen::MatrixXf a = Eigen::MatrixXf::Constant(40, 40, 0.5f), b = a * a;
  return b(7, 8);
}
