// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/core/eigen_core.hpp"  // Eigen::Map
#include "diffmamba/core/error.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// Memory of Eigen (a Map, a Matrix or Array, a block of one) as a view, without a copy: of rank 1 if Eigen knows that
/// it is a vector, else of rank 2 (rows, columns), whichever way it is stored. The view is valid as long as the memory
/// is; Eigen's own Matrix must be a variable.
template <class Derived>
auto view_of(Eigen::DenseBase<Derived>& x) {
  static_assert((Derived::Flags & Eigen::DirectAccessBit) != 0,
                "view_of: this Eigen expression has no memory of its own");
  auto& matrix = x.derived();
  using T = std::remove_pointer_t<decltype(matrix.data())>;
  if constexpr (Derived::IsVectorAtCompileTime) {
    return View<T, 1>(matrix.data(), {matrix.size()}, {matrix.innerStride()});
  } else {
    return View<T, 2>(matrix.data(), {matrix.rows(), matrix.cols()}, {matrix.rowStride(), matrix.colStride()});
  }
}
template <class Derived>
auto view_of(const Eigen::DenseBase<Derived>& x) {
  const auto view = view_of(const_cast<Eigen::DenseBase<Derived>&>(x));
  using Of = std::remove_cvref_t<decltype(view)>;
  return View<const typename Of::value_type, Of::rank>(view);
}

/// A matrix as Eigen sees it: row-major, rows at any distance. Throws Error if the elements of a row do not lie side by
/// side.
template <class T>
auto as_eigen(const View<T, 2, cpu>& x) {
  using Matrix = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Element = std::conditional_t<std::is_const_v<T>, const Matrix, Matrix>;
  require(x.extent(1) <= 1 || x.stride(1) == 1, "as_eigen: the elements of a row do not lie side by side (strides ",
          x.strides(), " of ", x.extents(), ")");
  return Eigen::Map<Element, Eigen::Unaligned, Eigen::OuterStride<>>(x.data(), x.extent(0), x.extent(1),
                                                                     Eigen::OuterStride<>(x.stride(0)));
}

}  // namespace diffmamba
