// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::min, std::max
#include <cstddef>    // std::size_t
#include <limits>     // std::numeric_limits
#include <utility>    // std::index_sequence

#if defined(DIFFMAMBA_BLAS)
#define bfloat16 openblas_bfloat16  // OpenBLAS gives a 16-bit integer this name, in the global namespace
#include <cblas.h>
#undef bfloat16
#endif

#include "diffmamba/device/memory.hpp"
#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/matmul/gemm_kernel.hpp"
#include "diffmamba/ops/matmul/matmul.hpp"

/// The matrix product on the CPU. Three ways, chosen by the shapes alone:
///
/// - few rows of a against rows of b^T that are contiguous (decoding: activations times a weight): dot products. The
///   weight is read once, front to back, at the speed of memory.
/// - everything else: c is cut into tiles, b is packed once for all of them, and each tile runs the micro-kernel of
///   gemm_kernel.hpp over the whole of k, so that an element of c is summed by one thread in one order.
/// - with DIFFMAMBA_BLAS, float and double: the tiles are given to cblas, which runs on one thread in each.
namespace diffmamba {
namespace detail {

/// c = alpha a b + beta c + bias with every stride spelt out; T is the type of the sums.
template <class T, class A, class B, class C>
struct Product {
  Index m, n, k;
  const A* a;
  Index a_row, a_column;
  const B* b;
  Index b_row, b_column;
  C* c;
  Index c_row, c_column;
  T alpha = 1, beta = 0;
  const T* bias = nullptr;  // (n)

  Product<T, B, A, C> transposed() const {
    return {n, m, k, b, b_column, b_row, a, a_column, a_row, c, c_column, c_row, alpha, beta, nullptr};
  }
  /// c = value with alpha, beta and bias applied, element (i, j).
  void store(Index i, Index j, T value) const {
    C& target = c[i * c_row + j * c_column];
    value *= alpha;
    if (bias != nullptr) value += bias[j];
    if (beta != T(0)) value += beta * static_cast<T>(target);
    target = static_cast<C>(value);
  }
};

/// Memory that a thread keeps from call to call; a larger size replaces it.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { arena<cpu>().deallocate(memory_); }

  template <class T>
  T* get(Index count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > bytes_) {
      arena<cpu>().deallocate(memory_);
      memory_ = nullptr;
      bytes_ = 0;
      memory_ = arena<cpu>().allocate(bytes);
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};
inline Scratch& scratch_of_caller() {  // what all threads of a product read: packed b
  thread_local Scratch scratch;
  return scratch;
}
inline Scratch& scratch_of_tile() {
  thread_local Scratch scratch;
  return scratch;
}

/// Starting threads costs microseconds: a product of fewer operations is not worth it.
inline constexpr Index serial_operations = 1 << 18;

template <class Work>
void tiles_in_parallel(bool worth_it, Index tiles, Work&& work) {
  if (worth_it)
    parallel_for(tiles, work);
  else
    for (Index tile = 0; tile < tiles; ++tile) work(tile);
}

/// How c is cut: equal tiles of at most `most_rows` x `most_columns`, at least `least` of them where c is large enough.
/// Each column of tiles reads all of a again and each row of tiles all of b; `a_cost` is what an element of a costs
/// then, compared with one of b.
struct Tiling {
  Index rows, columns;  // of a tile; multiples of the micro-tile
  Index row_tiles, column_tiles;

  Tiling(Index m, Index n, Index unit_rows, Index unit_columns, Index most_rows, Index most_columns, Index least,
         Index a_cost) {
    const Index row_units = tiles_of(m, unit_rows), column_units = tiles_of(n, unit_columns);
    row_tiles = tiles_of(m, most_rows);
    column_tiles = tiles_of(n, most_columns);
    while (row_tiles * column_tiles < least && (row_tiles < row_units || column_tiles < column_units)) {
      const bool by_rows =
          column_tiles >= column_units || (row_tiles < row_units && a_cost * m * column_tiles >= n * row_tiles);
      ++(by_rows ? row_tiles : column_tiles);
    }
    rows = tiles_of(row_units, row_tiles) * unit_rows;
    columns = tiles_of(column_units, column_tiles) * unit_columns;
    row_tiles = tiles_of(m, rows);
    column_tiles = tiles_of(n, columns);
  }
  Index count() const { return row_tiles * column_tiles; }
};

/// Few rows: c(i, j) = a(i, :) . b(:, j) with both contiguous. `Rows` rows of a against four columns of b at a time.
template <class T, std::size_t... I>
void add_dots(Index k, const T* a, Index a_row, const T* const (&b)[4], T* sums, std::index_sequence<I...>) {
  using namespace Eigen::internal;
  using Packet = typename Gemm<T>::Packet;
  constexpr int width = Gemm<T>::width;
  Packet sum[sizeof...(I)][4];
  const auto clear = [](Packet(&s)[4]) { s[0] = s[1] = s[2] = s[3] = pset1<Packet>(T(0)); };
  (clear(sum[I]), ...);
  Index p = 0;
  for (; p + width <= k; p += width) {
    const Packet b0 = ploadu<Packet>(b[0] + p), b1 = ploadu<Packet>(b[1] + p), b2 = ploadu<Packet>(b[2] + p),
                 b3 = ploadu<Packet>(b[3] + p);
    const auto add = [&](Packet(&s)[4], const T* row) {
      const Packet x = ploadu<Packet>(row);
      s[0] = pmadd(x, b0, s[0]);
      s[1] = pmadd(x, b1, s[1]);
      s[2] = pmadd(x, b2, s[2]);
      s[3] = pmadd(x, b3, s[3]);
    };
    (add(sum[I], a + static_cast<Index>(I) * a_row + p), ...);
  }
  const auto finish = [&](const Packet(&s)[4], const T* row, T* target) {
    target[0] += predux(s[0]);
    target[1] += predux(s[1]);
    target[2] += predux(s[2]);
    target[3] += predux(s[3]);
    for (Index q = p; q < k; ++q)
      for (int j = 0; j < 4; ++j) target[j] += row[q] * b[j][q];
  };
  (finish(sum[I], a + static_cast<Index>(I) * a_row, sums + 4 * I), ...);
}

template <class T, class A, class B, class C>
void multiply_few_rows(const Product<T, A, B, C>& product) {
  const Index m = product.m, n = product.n, k = product.k;
  const T* a = nullptr;
  Index a_row = k;
  if constexpr (std::is_same_v<A, T>) {
    if (product.a_column == 1) {
      a = product.a;
      a_row = product.a_row;
    }
  }
  if (a == nullptr) {
    T* packed = scratch_of_caller().get<T>(m * k);
    for (Index i = 0; i < m; ++i)
      for (Index p = 0; p < k; ++p)
        packed[i * k + p] = static_cast<T>(product.a[i * product.a_row + p * product.a_column]);
    a = packed;
  }
  // A tile reads some 128 KiB of b: enough to stream, small enough to share out evenly.
  const Index columns = std::clamp<Index>((131072 / static_cast<Index>(sizeof(B)) / k + 3) / 4 * 4, 4, 1024);
  tiles_in_parallel(m * n * k > serial_operations / 4, tiles_of(n, columns), [&](Index tile) {
    const Index last = std::min((tile + 1) * columns, n);
    for (Index j = tile * columns; j < last; j += 4) {
      const int count = static_cast<int>(std::min<Index>(4, last - j));
      constexpr Index block = std::is_same_v<B, T> ? std::numeric_limits<Index>::max() : 512;
      constexpr Index most_rows = 64;
      T sums[most_rows * 4] = {};
      for (Index p = 0, step = 0; p < k; p += step) {
        step = std::min(block, k - p);
        const T* rows[4];
        [[maybe_unused]] T converted[4][std::is_same_v<B, T> ? 1 : 512];
        for (int q = 0; q < 4; ++q) {
          const B* row = product.b + p + (j + std::min(q, count - 1)) * product.b_column;
          if constexpr (std::is_same_v<B, T>) {
            rows[q] = row;
          } else {
            for (Index s = 0; s < step; ++s) converted[q][s] = static_cast<T>(row[s]);
            rows[q] = converted[q];
          }
        }
        Index i = 0;
        const auto add = [&](auto count_of_rows) {
          add_dots(step, a + i * a_row + p, a_row, rows, sums + i * 4, count_of_rows);
          i += static_cast<Index>(count_of_rows.size());
        };
        while (i + 4 <= m) add(std::make_index_sequence<4>{});
        while (i + 2 <= m) add(std::make_index_sequence<2>{});
        while (i < m) add(std::make_index_sequence<1>{});
      }
      for (Index i = 0; i < m; ++i)
        for (int q = 0; q < count; ++q) product.store(i, j + q, sums[i * 4 + q]);
    }
  });
}

/// One tile of c, rows [i0, i1) x columns [j0, j1), over the depth of one packed b: blocks of `depth` values of k, each
/// (panels, depth of the block, columns of the micro-tile).
template <class T, class A, class B, class C>
void multiply_tile(const Product<T, A, B, C>& product, const T* packed_b, Index panels, Index depth, Index i0, Index i1,
                   Index j0, Index j1) {
  using G = Gemm<T>;
  constexpr Index rows = G::rows, columns = G::columns;
  const Index row_panels = tiles_of(i1 - i0, rows), column_panels = tiles_of(j1 - j0, columns);
  // a is read where it lies if its rows are contiguous; the last rows are packed all the same, filled up with zeros.
  bool in_place = false;
  if constexpr (std::is_same_v<A, T>) in_place = product.a_column == 1;
  // c is written where it lies if its rows are contiguous, else through a buffer, padded to whole micro-tiles.
  T* target = nullptr;
  if constexpr (std::is_same_v<C, T>)
    if (product.c_column == 1) target = product.c + i0 * product.c_row + j0;
  const bool direct = target != nullptr;
  const Index panel_size = rows * depth, c_columns = column_panels * columns;
  T* memory = scratch_of_tile().get<T>((in_place ? 1 : row_panels) * panel_size + rows * columns +
                                       (direct ? 0 : row_panels * rows * c_columns));
  T* packed_a = memory;
  T* edge = packed_a + (in_place ? 1 : row_panels) * panel_size;
  T* buffer = edge + rows * columns;
  const Index c_row = direct ? product.c_row : c_columns;
  if (!direct) target = buffer;

  for (Index p = 0; p < product.k; p += depth) {
    const Index depth_now = std::min(depth, product.k - p);
    const A* a = product.a + i0 * product.a_row + p * product.a_column;
    const Index first_packed = in_place ? (i1 - i0) / rows * rows : 0;
    G::pack_a(depth_now, i1 - i0 - first_packed, a + first_packed * product.a_row, product.a_row, product.a_column,
              packed_a, panel_size);
    for (Index j = 0; j < column_panels; ++j) {
      const T* b = packed_b + (p * panels + (j0 / columns + j) * depth_now) * columns;
      const Index count_j = std::min(columns, j1 - j0 - j * columns);
      typename G::Epilogue epilogue;
      if (direct) {
        epilogue.alpha = product.alpha;
        epilogue.beta = p == 0 ? product.beta : T(1);
        if (p == 0 && product.bias != nullptr) epilogue.bias = product.bias + j0 + j * columns;
      } else if (p > 0) {
        epilogue.beta = T(1);
      }
      for (Index i = 0; i < row_panels; ++i) {
        const Index count_i = std::min(rows, i1 - i0 - i * rows);
        T* c = target + i * rows * c_row + j * columns;
        const bool whole = !direct || (count_i == rows && count_j == columns);
        typename G::Epilogue plain;
        const auto run = [&]<int Packets>() {
          if constexpr (std::is_same_v<A, T>) {
            if (in_place && count_i == rows) {
              G::template multiply<Packets, false>(depth_now, a + i * rows * product.a_row, product.a_row, b,
                                                   whole ? c : edge, whole ? c_row : columns, whole ? epilogue : plain);
              return;
            }
          }
          G::template multiply<Packets, true>(depth_now, packed_a + (in_place ? 0 : i * panel_size), 0, b,
                                              whole ? c : edge, whole ? c_row : columns, whole ? epilogue : plain);
        };
        if (count_j <= G::width)
          run.template operator()<1>();
        else
          run.template operator()<2>();
        if (whole) continue;
        for (Index r = 0; r < count_i; ++r)
          for (Index s = 0; s < count_j; ++s) {
            T value = epilogue.alpha * edge[r * columns + s];
            if (epilogue.bias != nullptr) value += epilogue.bias[s];
            if (epilogue.beta != T(0)) value += epilogue.beta * c[r * c_row + s];
            c[r * c_row + s] = value;
          }
      }
    }
  }
  if (!direct)
    for (Index i = i0; i < i1; ++i)
      for (Index j = j0; j < j1; ++j) product.store(i, j, buffer[(i - i0) * c_columns + j - j0]);
}

template <class T, class A, class B, class C>
void multiply_tiles(const Product<T, A, B, C>& product) {
  using G = Gemm<T>;
  // Packed b takes at most 16 MiB (or 256 columns): a wider or deeper product is done in parts. A result that is not of
  // type T must not be rounded between parts: then k stays whole.
  constexpr Index budget = Index{16} << 20, columns_at_once = 256 / G::columns * G::columns;
  const Index k_part = std::is_same_v<C, T> ? std::min<Index>(product.k, 8192) : product.k;
  const Index n_part =
      std::min(product.n, std::max(budget / (k_part * static_cast<Index>(sizeof(T))) / columns_at_once, Index{1}) *
                              columns_at_once);
  const bool parallel = product.m * product.n * product.k > serial_operations;
  for (Index j = 0; j < product.n; j += n_part)
    for (Index p = 0; p < product.k; p += k_part) {
      auto part = product;
      part.n = std::min(n_part, product.n - j);
      part.k = std::min(k_part, product.k - p);
      part.a += p * part.a_column;
      part.b += p * part.b_row + j * part.b_column;
      part.c += j * part.c_column;
      part.bias = part.bias != nullptr && p == 0 ? part.bias + j : nullptr;
      if (p > 0) part.beta = 1;

      const Index panels = tiles_of(part.n, G::columns);
      const Index blocks = tiles_of(part.k, G::depth), depth = tiles_of(part.k, blocks);
      T* packed = scratch_of_caller().get<T>(part.k * panels * G::columns);
      constexpr Index panels_at_once = 4;
      const Index groups = tiles_of(panels, panels_at_once);
      tiles_in_parallel(parallel, blocks * groups, [&](Index tile) {
        const Index q = tile / groups * depth, first = tile % groups * panels_at_once;
        const Index depth_now = std::min(depth, part.k - q);
        for (Index panel = first; panel < std::min(first + panels_at_once, panels); ++panel) {
          const Index column = panel * G::columns;
          G::pack_b(depth_now, std::min<Index>(G::columns, part.n - column),
                    part.b + q * part.b_row + column * part.b_column, part.b_row, part.b_column,
                    packed + (q * panels + panel * depth_now) * G::columns);
        }
      });
      // Packing a costs some eight times what reading packed b does.
      const bool packs_a = !std::is_same_v<A, T> || part.a_column != 1;
      const Tiling tiling(part.m, part.n, G::rows, G::columns, 96, (packs_a ? 2 : 1) * columns_at_once,
                          parallel ? 16 : 1, packs_a ? 8 : 1);
      tiles_in_parallel(parallel, tiling.count(), [&](Index tile) {
        const Index i0 = tile % tiling.row_tiles * tiling.rows, j0 = tile / tiling.row_tiles * tiling.columns;
        multiply_tile(part, packed, panels, depth, i0, std::min(i0 + tiling.rows, part.m), j0,
                      std::min(j0 + tiling.columns, part.n));
      });
    }
}

#if defined(DIFFMAMBA_BLAS)
/// Threads are ours: cblas must run on the thread that calls it. OpenBLAS is told so once for the process (its own
/// threads would change the bits and fight with ours); another cblas must be a sequential one or be told by its user.
inline void make_blas_sequential() {
#if defined(OPENBLAS_VERSION)
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
#endif
}

/// Whether cblas can take the product: its sizes are ints, and each operand has a contiguous axis.
template <class T, class A, class B, class C>
bool blas_takes(const Product<T, A, B, C>& product) {
  if constexpr ((std::is_same_v<T, float> || std::is_same_v<T, double>)&&std::is_same_v<A, T> && std::is_same_v<B, T> &&
                std::is_same_v<C, T>) {
    const auto fits = [](Index rows, Index columns, Index row, Index column) {
      constexpr Index most = std::numeric_limits<int>::max();
      const bool plain = column == 1 && row >= columns, turned = row == 1 && column >= rows;
      return rows <= most && columns <= most && row <= most && column <= most && (plain || turned);
    };
    return product.c_column == 1 && product.c_row >= product.n && fits(product.m, product.n, product.c_row, 1) &&
           fits(product.m, product.k, product.a_row, product.a_column) &&
           fits(product.k, product.n, product.b_row, product.b_column);
  } else {
    return false;
  }
}

template <class T>
void multiply_by_blas(const Product<T, T, T, T>& product) {
  make_blas_sequential();
  const bool parallel = product.m * product.n * product.k > serial_operations;
  // cblas packs its operands anew in each tile: few, large tiles.
  const Tiling tiling(product.m, product.n, 48, 64, 2048, 1024, parallel ? 4 : 1, 1);
  tiles_in_parallel(parallel, tiling.count(), [&](Index tile) {
    const Index i0 = tile % tiling.row_tiles * tiling.rows, j0 = tile / tiling.row_tiles * tiling.columns;
    const Index i1 = std::min(i0 + tiling.rows, product.m), j1 = std::min(j0 + tiling.columns, product.n);
    const T* a = product.a + i0 * product.a_row;
    const T* b = product.b + j0 * product.b_column;
    T* c = product.c + i0 * product.c_row + j0;
    T beta = product.beta;
    if (product.bias != nullptr) {
      for (Index i = 0; i < i1 - i0; ++i)
        for (Index j = 0; j < j1 - j0; ++j) {
          T& target = c[i * product.c_row + j];
          target = product.bias[j0 + j] + (beta == T(0) ? T(0) : beta * target);
        }
      beta = 1;
    }
    // Otherwise blas_takes has seen that it lies in columns.
    const bool turn_a = product.a_column != 1 || product.a_row < product.k;
    const bool turn_b = product.b_column != 1 || product.b_row < product.n;
    const auto call = [&](auto gemm) {
      gemm(CblasRowMajor, turn_a ? CblasTrans : CblasNoTrans, turn_b ? CblasTrans : CblasNoTrans,
           static_cast<int>(i1 - i0), static_cast<int>(j1 - j0), static_cast<int>(product.k), product.alpha, a,
           static_cast<int>(turn_a ? product.a_column : product.a_row), b,
           static_cast<int>(turn_b ? product.b_column : product.b_row), beta, c, static_cast<int>(product.c_row));
    };
    if constexpr (std::is_same_v<T, float>)
      call(cblas_sgemm);
    else
      call(cblas_dgemm);
  });
}
#endif

/// Up to this many rows dot products beat packing b.
inline constexpr Index few_rows = 16;

template <class T, class A, class B, class C>
void multiply(const Product<T, A, B, C>& product) {
  if (product.m == 0 || product.n == 0) return;
  if (product.k == 0 || product.alpha == T(0)) {
    for (Index i = 0; i < product.m; ++i)
      for (Index j = 0; j < product.n; ++j) product.store(i, j, T(0));
    return;
  }
  if (product.m <= few_rows && product.b_row == 1) return multiply_few_rows(product);
  if (product.n <= few_rows && product.a_column == 1 && product.bias == nullptr)
    return multiply_few_rows(product.transposed());
  if (product.c_column != 1 && product.c_row == 1 && product.bias == nullptr) return multiply(product.transposed());
#if defined(DIFFMAMBA_BLAS)
  // cblas packs both operands again in each tile, which a small result does not pay for.
  constexpr Index smallest_for_blas = 1 << 18;
  if constexpr (std::is_same_v<A, T> && std::is_same_v<B, T> && std::is_same_v<C, T>)
    if (product.m * product.n >= smallest_for_blas && blas_takes(product)) return multiply_by_blas(product);
#endif
  multiply_tiles(product);
}

template <class A, class B, class C>
void multiply(const View<A, 2>& a, const View<B, 2>& b, const View<C, 2>& c, const MatmulOptions& options,
              const accumulate_t<C>* bias = nullptr) {
  using T = accumulate_t<C>;
  multiply(Product<T, std::remove_const_t<A>, std::remove_const_t<B>, C>{
      a.extent(0), b.extent(1), a.extent(1), a.data(), a.stride(0), a.stride(1), b.data(), b.stride(0), b.stride(1),
      c.data(), c.stride(0), c.stride(1), static_cast<T>(options.alpha), static_cast<T>(options.beta), bias});
}

/// A tensor or view in host memory.
template <class X>
concept OnCpu = requires(X& x) {
  as_view(x);
  requires std::is_same_v<typename std::remove_reference_t<X>::device_type, cpu>;
};

}  // namespace detail

/// c = alpha a b + beta c, into the caller's memory. a, b, c: tensors or views of rank 2 or 3; c overlaps neither a
/// nor b. Throws Error if the sizes do not fit.
template <detail::OnCpu A, detail::OnCpu B, detail::OnCpu C>
void matmul(const A& a, const B& b, C&& c, const MatmulOptions& options = {}) {
  const auto left = as_view(a);
  const auto right = as_view(b);
  const auto result = as_view(c);
  detail::check_matmul(left, right, result);
  constexpr int rank = A::rank;
  const Index batch = rank == 3 ? left.extent(0) : 1;
  const Index operations = 2 * left.size() * right.extent(rank - 1);
  matmul_count().calls += 1;
  matmul_count().flops += operations;
  if constexpr (rank == 2) {
    detail::multiply(left, right, result, options);
  } else {
    const auto one = [&](Index i) {
      detail::multiply(left.template select<0>(i), right.template select<0>(i), result.template select<0>(i), options);
    };
    // Many small products: a thread for each. A few large ones: all threads for each. The bits are the same.
    detail::tiles_in_parallel(operations > detail::serial_operations && (batch >= 16 || operations / batch < 1 << 22),
                              batch, one);
  }
}

/// a b, as a new tensor of a's element type.
template <detail::OnCpu A, detail::OnCpu B>
auto matmul(const A& a, const B& b) {
  auto extents = a.extents();
  extents[A::rank - 1] = b.extent(A::rank - 1);
  auto result = Tensor<typename A::value_type, A::rank>::uninitialized(extents);
  matmul(a, b, result);
  return result;
}

}  // namespace diffmamba
