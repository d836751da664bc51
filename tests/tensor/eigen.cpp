// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/tensor/eigen.hpp"

#include <doctest/doctest.h>

#include "diffmamba/expr/expr.hpp"

using namespace diffmamba;

TEST_CASE("Eigen's memory in expressions, in either order, and back") {
  Eigen::MatrixXf columns = Eigen::MatrixXf::Random(5, 7);
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = columns;
  const Eigen::VectorXf v = Eigen::VectorXf::Random(7);
  static_assert(std::is_same_v<decltype(view_of(v)), View<const float, 1>>);
  Tensor<float, 2> y = view_of(columns) - view_of(rows) + view_of(v);
  for (Index i = 0; i < 5; ++i)
    for (Index j = 0; j < 7; ++j) CHECK(y(i, j) == v(j));
  assign(view_of(columns), y * 2);
  CHECK(columns(4, 6) == 2 * v(6));
  auto block = rows.block(1, 2, 3, 4);
  assign(view_of(block), 9.0f);
  CHECK(rows(1, 2) == 9.0f);
  CHECK(rows(0, 2) != 9.0f);
  float memory[12] = {};
  Eigen::Map<Eigen::ArrayXXf> map(memory, 3, 4);
  assign(view_of(map), 1);
  CHECK(map.sum() == 12.0f);

  const Eigen::MatrixXf product = as_eigen(y.view()) * as_eigen(y.view()).transpose();
  CHECK(product.rows() == 5);
  CHECK(product(2, 3) == doctest::Approx(v.squaredNorm()));
  CHECK(as_eigen(View<const float, 2>(y.slice<1>(2, 5)))(4, 0) == v(2));
  CHECK_THROWS_WITH_AS((void)as_eigen(y.view().permute<1, 0>()),
                       "as_eigen: the elements of a row do not lie side by side (strides (1, 7) of (7, 5))", Error);
}
