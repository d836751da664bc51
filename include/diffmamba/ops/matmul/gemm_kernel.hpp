// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>      // std::memcpy
#include <type_traits>  // std::is_same_v
#include <utility>      // std::index_sequence

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/eigen_core.hpp"  // packet math

/// The inner loops of the matrix product, for one thread (Goto and van de Geijn 2008, "Anatomy of high-performance
/// matrix multiplication"). A micro-tile of c, `rows` x `columns`, lives in registers: `rows` values of a are
/// broadcast, one after another, against `packets` vectors of b. b is packed into panels of `columns` columns, so that
/// the loop over k reads it front to back from the L1 cache; a is read where it lies if its rows are contiguous, and is
/// packed into panels of `rows` rows otherwise. Vectors are Eigen's packets: whatever instruction set the translation
/// unit is compiled for.
namespace diffmamba::detail {

// g++ says that a vector type loses its attributes as a template argument, which it does, to no effect here.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

/// The packet that squares are transposed with: at most half a 512-bit register, since g++ 12 warns of uninitialised
/// values in Eigen's transpose of whole ones.
template <class T, bool Whole = Eigen::internal::packet_traits<T>::size * sizeof(T) < 64>
struct SquareOf {
  using type = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int size = Eigen::internal::packet_traits<T>::size;
};
template <class T>
struct SquareOf<T, false> {
  using type = typename Eigen::internal::packet_traits<T>::half;
  static constexpr int size = Eigen::internal::packet_traits<T>::size / 2;
};

template <class T>
struct Gemm {
  using Packet = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int width = Eigen::internal::packet_traits<T>::size;
  // All but four (32 registers: six) of the registers hold sums: the others the vectors of b and a broadcast value of
  // a.
  static constexpr int registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS;
  static constexpr int packets = 2;
  static constexpr int rows = registers >= 32 ? 12 : registers >= 16 ? 6 : 2;
  static constexpr int columns = packets * width;
  using Square = typename SquareOf<T>::type;
  static constexpr int square = SquareOf<T>::size;
  // A panel of b, depth x columns, takes at most two thirds of a 48 KiB L1 cache.
  static constexpr Index depth = 256;

  /// How a finished sum enters c.
  struct Epilogue {
    T alpha = 1, beta = 0;
    const T* bias = nullptr;  // one per column of c, added where it is given
  };

  /// c (rows x packets * width) = alpha a b + beta c + bias. a(i, p) = a[i * row + p * step], b in a packed panel.
  template <int Packets, bool PackedA>
  static void multiply(Index depth_now, const T* a, Index a_row, const T* b, T* c, Index c_row,
                       const Epilogue& epilogue) {
    multiply<Packets, PackedA>(depth_now, a, a_row, b, c, c_row, epilogue, std::make_index_sequence<rows>{});
  }

  /// Packs columns [0, count) of b, count <= columns, into a panel (depth_now, columns) filled up with zeros.
  template <class B>
  static void pack_b(Index depth_now, Index count, const B* b, Index b_row, Index b_column, T* panel) {
    using namespace Eigen::internal;
    if constexpr (std::is_same_v<B, T>) {
      if (b_column == 1 && count == columns) {
        for (Index p = 0; p < depth_now; ++p)
          for (int j = 0; j < packets; ++j)
            pstore(panel + p * columns + j * width, ploadu<Packet>(b + p * b_row + j * width));
        return;
      }
      if (b_row == 1 && count == columns) {
        Index p = 0;
        for (; p + square <= depth_now; p += square)
          for (int j = 0; j < columns; j += square) {
            Eigen::internal::PacketBlock<Square, square> block;
            for (int i = 0; i < square; ++i) block.packet[i] = ploadu<Square>(b + p + (j + i) * b_column);
            ptranspose(block);
            for (int i = 0; i < square; ++i) pstore(panel + (p + i) * columns + j, block.packet[i]);
          }
        for (; p < depth_now; ++p)
          for (int j = 0; j < columns; ++j) panel[p * columns + j] = b[p + j * b_column];
        return;
      }
    }
    for (Index p = 0; p < depth_now; ++p) {
      for (Index j = 0; j < count; ++j) panel[p * columns + j] = static_cast<T>(b[p * b_row + j * b_column]);
      for (Index j = count; j < columns; ++j) panel[p * columns + j] = T(0);
    }
  }

  /// Packs rows [0, count) of a into panels (depth_now, rows), `panel_size` elements apart, the last one filled up with
  /// zeros. Row after row of a^T, so that memory is read in order where a is a transposed view.
  template <class A>
  static void pack_a(Index depth_now, Index count, const A* a, Index a_row, Index a_column, T* panels,
                     Index panel_size) {
    const Index whole = count / rows, rest = count % rows;
    for (Index p = 0; p < depth_now; ++p) {
      const A* from = a + p * a_column;
      T* to = panels + p * rows;
      for (Index panel = 0; panel < whole; ++panel, from += rows * a_row, to += panel_size) {
        if constexpr (std::is_same_v<A, T>) {
          if (a_row == 1) {
            std::memcpy(to, from, rows * sizeof(T));
            continue;
          }
        }
        for (int i = 0; i < rows; ++i) to[i] = static_cast<T>(from[i * a_row]);
      }
      if (rest == 0) continue;
      for (Index i = 0; i < rest; ++i) to[i] = static_cast<T>(from[i * a_row]);
      for (Index i = rest; i < rows; ++i) to[i] = T(0);
    }
  }

 private:
  template <int Packets, bool PackedA, std::size_t... I>
  static void multiply(Index depth_now, const T* a, Index a_row, const T* b, T* c, Index c_row,
                       const Epilogue& epilogue, std::index_sequence<I...>) {
    using namespace Eigen::internal;
    static_assert(Packets == 1 || Packets == 2);
    Packet sum[rows][2];
    ((sum[I][0] = sum[I][1] = pset1<Packet>(T(0))), ...);
    const T* end = b + depth_now * columns;
    for (; b != end; b += columns) {
      const Packet b0 = pload<Packet>(b);
      if constexpr (Packets == 2) {
        const Packet b1 = pload<Packet>(b + width);
        const auto row = [&](Packet(&s)[2], const T* value) {
          const Packet x = pset1<Packet>(*value);
          s[0] = pmadd(x, b0, s[0]);
          s[1] = pmadd(x, b1, s[1]);
        };
        (row(sum[I], PackedA ? a + I : a + static_cast<Index>(I) * a_row), ...);
      } else {
        ((sum[I][0] = pmadd(pset1<Packet>(PackedA ? a[I] : a[static_cast<Index>(I) * a_row]), b0, sum[I][0])), ...);
      }
      a += PackedA ? rows : 1;
    }
    const Packet alpha = pset1<Packet>(epilogue.alpha);
    for (int j = 0; j < Packets; ++j) {
      const Packet bias = epilogue.bias ? ploadu<Packet>(epilogue.bias + j * width) : pset1<Packet>(T(0));
      if (epilogue.beta == T(0)) {
        (pstoreu(c + static_cast<Index>(I) * c_row + j * width, pmadd(alpha, sum[I][j], bias)), ...);
      } else {
        const Packet beta = pset1<Packet>(epilogue.beta);
        const auto row = [&](T* target, const Packet& value) {
          pstoreu(target, pmadd(beta, ploadu<Packet>(target), pmadd(alpha, value, bias)));
        };
        (row(c + static_cast<Index>(I) * c_row + j * width, sum[I][j]), ...);
      }
    }
  }
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

}  // namespace diffmamba::detail
