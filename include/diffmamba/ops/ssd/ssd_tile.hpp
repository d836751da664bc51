// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::copy_n, std::fill_n
#include <type_traits>  // std::integral_constant, std::is_same_v

#include "diffmamba/core/config.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/math/lanes.hpp"
#include "diffmamba/math/sigmoid.hpp"

// Matrices of one chunk on the CPU: at most 64 steps by a head or a state, so that they live in the first two caches.
// Products of this size are lost in a general GEMM's packing (Eigen reaches two thirds of what this file does), and
// half of them are triangular, which a general GEMM cannot use.
//
// A tile is a dense row-major matrix whose rows are padded to `unit` elements. The padding is zero in whatever is
// loaded, hence in whatever is computed: products and sums over rows run over whole packets and never ask for a tail.
// A packet is one Lanes: AVX-512, AVX, SSE or NEON, or a plain scalar, as Eigen is compiled.
namespace diffmamba::ssd::detail {

template <class A>
inline constexpr Index packet_size = Lanes<A>::size;

/// Rows of a register block: 8 x 2 packets of sums where there are 32 registers, 4 x 2 where there are 16.
inline constexpr int block_rows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 8 : 4;

template <class A>
inline constexpr Index unit = packet_size<A> > block_rows ? packet_size<A> : block_rows;

/// Length of a row of n elements with its padding.
template <class A>
constexpr Index padded(Index n) {
  return (n + unit<A> - 1) / unit<A> * unit<A>;
}

/// Cuts memory for tiles out of a workspace, or only adds up what it would take.
template <class A>
class Carver {
 public:
  explicit Carver(Workspace<cpu>* workspace) : workspace_(workspace) {}
  A* operator()(Index count) {
    bytes_ += Workspace<cpu>::template bytes_of<A>(count);
    return workspace_ == nullptr ? nullptr : workspace_->template take<A>(count);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  Workspace<cpu>* workspace_;
  std::size_t bytes_ = 0;
};

// --- Rows ------------------------------------------------------------------------------------------------------------

template <class A>
void fill_zero(A* row, Index n) {
  std::fill_n(row, n, A(0));
}

/// Converts where the types differ, rounding once.
template <class From, class To>
void copy_row(const From* from, Index n, To* to) {
  if constexpr (std::is_same_v<From, To>)
    std::copy_n(from, n, to);
  else
    for (Index j = 0; j < n; ++j) to[j] = static_cast<To>(from[j]);
}

/// Reads rows of any element type into a tile.
template <class A, class T>
void load_rows(const T* from, Index from_stride, Index rows, Index columns, A* to, Index stride) {
  for (Index i = 0; i < rows; ++i) {
    copy_row(from + i * from_stride, columns, to + i * stride);
    fill_zero(to + i * stride + columns, stride - columns);
  }
}

/// Writes a tile to rows of any element type.
template <class T, class A>
void store_rows(const A* from, Index stride, Index rows, Index columns, T* to, Index to_stride) {
  for (Index i = 0; i < rows; ++i) copy_row(from + i * stride, columns, to + i * to_stride);
}

/// to_i = scale_i from_i
template <class A>
void scale_rows(const A* from, const A* scale, Index rows, Index stride, A* to) {
  for (Index i = 0; i < rows; ++i) {
    const Lanes<A> s = Lanes<A>::all(scale[i]);
    for (Index j = i * stride; j < (i + 1) * stride; j += packet_size<A>) (s * Lanes<A>::load(from + j)).store(to + j);
  }
}

/// sum_j a_j b_j over a padded row, or over any dense memory of whole packets
template <class A>
A dot(const A* a, const A* b, Index n) {
  Lanes<A> sum = Lanes<A>::all(A(0));
  for (Index j = 0; j < n; j += packet_size<A>) sum = multiply_add(Lanes<A>::load(a + j), Lanes<A>::load(b + j), sum);
  return sum.sum();
}

#if defined(__GNUC__)  // g++ remarks that a packet in a template argument loses its alignment attribute; it does not
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif
/// The transpose of `from`, (rows, columns) with any row stride, as a tile of padded rows.
template <class A>
void transpose(const A* from, Index from_stride, Index rows, Index columns, A* to, Index stride) {
  constexpr int w = static_cast<int>(packet_size<A>);
  const Index whole_rows = rows / w * w, whole_columns = columns / w * w;
  for (Index j = 0; j < whole_columns; j += w)
    for (Index i = 0; i < whole_rows; i += w) {
      Eigen::internal::PacketBlock<typename Lanes<A>::Register, w> block;
#pragma GCC unroll 16
      for (int k = 0; k < w; ++k) block.packet[k] = Lanes<A>::load(from + (i + k) * from_stride + j).raw;
      Eigen::internal::ptranspose(block);
#pragma GCC unroll 16
      for (int k = 0; k < w; ++k) Lanes<A>::of(block.packet[k]).store(to + (j + k) * stride + i);
    }
  for (Index j = 0; j < columns; ++j) {
    for (Index i = j < whole_columns ? whole_rows : 0; i < rows; ++i) to[j * stride + i] = from[i * from_stride + j];
    for (Index i = rows; i < stride; ++i) to[j * stride + i] = A(0);
  }
}

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

/// 1 in the first `count` lanes, else 0.
template <class A>
Lanes<A> first_lanes(Index count) {
  static constexpr auto table = [] {
    struct {
      A value[2 * packet_size<A>];
    } t{};
    for (Index j = 0; j < packet_size<A>; ++j) t.value[j] = A(1);
    return t;
  }();
  return Lanes<A>::load(table.value + packet_size<A> - count);
}

// --- Products --------------------------------------------------------------------------------------------------------

/// What part of a product is asked for, or not zero. i and j are row and column of the result, k is summed over.
enum class Part {
  all,
  lower_result,  // only j <= i is needed (what is above the diagonal's blocks is left as it was)
  lower_factor,  // the first factor is zero for k > i
  upper_factor   // the first factor is zero for k < i
};

/// How a product meets what is in the result: c = keep * c + scale_i * (a b)
template <class A>
struct Into {
  A keep = A(0);             // 0: c is not read
  const A* scale = nullptr;  // one factor a row, or none
};

/// A register block of the result: Rows x Packets packets of sums. Element (i, k) of the first factor is at
/// a[i stride + k], or for a transposed one at a[k stride + i]. The loops over registers are unrolled by order: -O2
/// alone would keep the sums in memory.
template <class A, bool Transposed, int Rows, int Packets>
inline void product_block(Index depth, const A* a, Index a_stride, const A* b, Index b_stride, A* c, Index c_stride,
                          const Into<A>& into, Index row) {
  constexpr int w = static_cast<int>(packet_size<A>), blocks = Rows * Packets;
  Lanes<A> sum[Rows][Packets];
#pragma GCC unroll 16
  for (int e = 0; e < blocks; ++e) sum[e / Packets][e % Packets] = Lanes<A>::all(A(0));
  for (Index k = 0; k < depth; ++k) {
    Lanes<A> right[Packets];
#pragma GCC unroll 2
    for (int p = 0; p < Packets; ++p) right[p] = Lanes<A>::load(b + k * b_stride + p * w);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Lanes<A> left = Lanes<A>::all(Transposed ? a[k * a_stride + i] : a[i * a_stride + k]);
#pragma GCC unroll 2
      for (int p = 0; p < Packets; ++p) sum[i][p] = multiply_add(left, right[p], sum[i][p]);
    }
  }
#pragma GCC unroll 16
  for (int e = 0; e < blocks; ++e) {
    const int i = e / Packets, p = e % Packets;
    A* to = c + i * c_stride + p * w;
    Lanes<A> value = sum[i][p];
    if (into.scale != nullptr) value = value * Lanes<A>::all(into.scale[row + i]);
    if (into.keep != A(0)) value = multiply_add(Lanes<A>::all(into.keep), Lanes<A>::load(to), value);
    value.store(to);
  }
}

/// One block of rows of the result.
template <class A, bool Transposed, int Rows>
inline void product_rows(Index row, Index columns, Index begin, Index end, const A* a, Index a_stride, const A* b,
                         Index b_stride, A* c, Index c_stride, const Into<A>& into) {
  constexpr Index w = packet_size<A>;
  const A* left = Transposed ? a + begin * a_stride + row : a + row * a_stride + begin;
  const A* right = b + begin * b_stride;
  A* out = c + row * c_stride;
  Index j = 0;
  for (; j + 2 * w <= columns; j += 2 * w)
    product_block<A, Transposed, Rows, 2>(end - begin, left, a_stride, right + j, b_stride, out + j, c_stride, into,
                                          row);
  for (; j < columns; j += w)
    product_block<A, Transposed, Rows, 1>(end - begin, left, a_stride, right + j, b_stride, out + j, c_stride, into,
                                          row);
}

/// c = keep c + scale_i (a b): rows x columns, summed over depth; columns is a padded length, or is rounded up to whole
/// packets. a is (rows, depth), or with Transposed (depth, rows). The one place where the chunks of this operator are
/// multiplied: a BLAS would go here.
template <bool Transposed, class A>
void product(Part part, Index rows, Index columns, Index depth, const A* a, Index a_stride, const A* b, Index b_stride,
             A* c, Index c_stride, Into<A> into = {}) {
  const auto block = [&]<int Rows>(std::integral_constant<int, Rows>, Index row) {
    const Index last = row + Rows;
    const Index needed = part == Part::lower_result && last < columns ? last : columns;
    const Index begin = part == Part::upper_factor ? row : 0;
    const Index end = part == Part::lower_factor && last < depth ? last : depth;
    product_rows<A, Transposed, Rows>(row, needed, begin, end, a, a_stride, b, b_stride, c, c_stride, into);
  };
  Index row = 0;
  for (; row + block_rows <= rows; row += block_rows) block(std::integral_constant<int, block_rows>{}, row);
  if constexpr (block_rows == 8)
    if (row + 4 <= rows) block(std::integral_constant<int, 4>{}, row), row += 4;
  for (; row < rows; ++row) block(std::integral_constant<int, 1>{}, row);
}

}  // namespace diffmamba::ssd::detail
