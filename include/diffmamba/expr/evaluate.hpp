// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/expr/arithmetic.hpp"
#include "diffmamba/expr/bound.hpp"
#include "diffmamba/expr/bound_reduction.hpp"
#include "diffmamba/expr/node.hpp"
#include "diffmamba/expr/reduce.hpp"

// Assignment on the CPU: one pass over the elements, threaded over tiles that follow from the shape, in blocks of at
// most 1024 elements. No memory is allocated (reductions: see bound_reduction.hpp). bfloat16 and half are converted
// when a block is loaded and rounded once when it is stored; everything between is float.
//
// Aliasing: an operand may be the target itself, y = y + x; each block is read before it is written. An operand that
// shares memory with the target in another way (shifted, transposed, broadcast) is refused with an Error. Reductions of
// the target are safe, x = x / sum(x): what would be overwritten too early is computed before.

namespace diffmamba {

#define DIFFMAMBA_EXPRESSION_ON_GPU                                                                    \
  "diffmamba: an expression on a GPU is a kernel of its own; compile this file with nvcc and include " \
  "diffmamba/expr/evaluate.cuh"

namespace detail {

/// Whether this file may launch kernels (which evaluate.cuh has).
#if defined(__CUDACC__)
inline constexpr bool compiled_for_gpu = true;
#else
inline constexpr bool compiled_for_gpu = false;
#endif

template <class T, class Node>
constexpr void check_target() {
  using C = typename Join<AnyType, typename Node::compute_type>::type;
  static_assert(!std::is_const_v<T>, "diffmamba: the target of an assignment is read only");
  static_assert(Node::is_mask == std::is_same_v<T, bool> || std::is_same_v<Node, ScalarNode>,
                "diffmamba: comparisons are assigned to tensors of bool, numbers to tensors of numbers; convert with "
                "cast<float>(...) or compare");
  static_assert(std::is_same_v<T, bool> || computable<accumulate_t<T>>,
                "diffmamba: expressions are assigned to tensors of float, double, bfloat16, half or bool");
  static_assert(
      Node::is_mask || std::is_same_v<C, AnyType> || std::is_same_v<T, bool> || std::is_same_v<C, accumulate_t<T>>,
      "diffmamba: the expression computes in double and the target is float or less, or the reverse; convert "
      "with cast<float>(...) or cast<double>(...)");
}

/// target = node, broadcast to the target's shape, which must be possible.
template <class T, int Rank, class Node>
void evaluate_blocks(const View<T, Rank, cpu>& target, const Node& node) {
  using Own = typename Node::compute_type;
  using C = std::conditional_t<!std::is_same_v<Own, AnyType>, Own,
                               std::conditional_t<std::is_same_v<T, double>, double, float>>;
  constexpr int S = Rank > 0 ? Rank : 1;
  if (target.size() == 0) return;

  // The index space: the target's axes, the one with the smallest step last, then as few as possible.
  Extents<S> space;
  Strides<S> to = strides_in<S>(target.extents(), target.strides());
  for (int i = 0; i < S; ++i) space[i] = Rank == 0 ? 1 : target.extents().sizes[i];
  for (int i = 0; i < S; ++i)
    require(space[i] == 1 || to[i] != 0, "assignment: the target ", target.extents(),
            " is broadcast and cannot be written");
  Bound<Node, C, S> bound(node, space);
  const auto each = [&](auto&& visit) {
    visit(to);
    bound.each_layout(visit);
  };
  for (int i = 1; i < S; ++i)
    for (int j = i; j > 0 && to[j] != 0 && to[j - 1] != 0 && to[j - 1] < to[j]; --j) {
      std::swap(space[j], space[j - 1]);
      each([&](Strides<S>& s) { std::swap(s[j], s[j - 1]); });
    }
  int group[S] = {};
  collapse(space, group, each);
  const Target<S> where{target.data(), sizeof(T), to, Footprint(target.data(), space, to, sizeof(T))};
  bound.prepare(space, &where);

  // The blocks.
  const Index length = space[S - 1], all_rows = target.size() / length;
  Index rows = 1, columns = length;
  if (S > 1 && length >= 8 && space[S > 1 ? S - 2 : 0] >= 8 && (bound.transposed() || is_transposed(to))) {
    columns = length < 32 ? length : 32;  // square blocks, so that every line of memory that is touched is used
    rows = 32;
  } else if (length >= block_size / 4) {
    const Index pieces = tiles_of(length, block_size);
    columns = tiles_of(tiles_of(length, pieces), 16) * 16;
    if (columns > length) columns = length;
  } else {
    rows = block_size / length;
  }
  const Index weight = bound.weight();
  if (weight > 1) {  // every element is a reduction of its own
    const Index most = 64 * block_size / weight > bound.grain() ? 64 * block_size / weight : bound.grain();
    if (columns > most) columns = most, rows = 1;
    if (rows * columns > most) rows = most / columns;
  }
  if (rows > all_rows) rows = all_rows;
  const Index pieces = tiles_of(length, columns), blocks = tiles_of(all_rows, rows) * pieces;
  Index tile = tiles_of(16 * block_size, rows * columns * weight);
  if (bound.whole_rows()) tile = tiles_of(tile, pieces) * pieces;
  const bool dense = is_dense(to, space);

  parallel_for(tiles_of(blocks, tile), [&](Index t) {
    typename Bound<Node, C, S>::Reader reader(bound);
    alignas(64) C values[block_size];
    const Index end = (t + 1) * tile < blocks ? (t + 1) * tile : blocks;
    Index row = t * tile / pieces * rows, column = t * tile % pieces * columns;
    for (Index b = t * tile; b < end; ++b) {
      const Block block{row, column, static_cast<int>(all_rows - row < rows ? all_rows - row : rows),
                        static_cast<int>(length - column < columns ? length - column : columns)};
      reader.load(block);
      bool stored = false;
      if constexpr (std::is_same_v<T, C>) {
        if (block.rows == 1 ? to[S - 1] == 1 || block.columns == 1 : dense && block.columns == length) {
          T* address = target.data();
          if (dense)
            address += row * length + column;
          else
            for_each_run(target.data(), to, space, Block{row, column, 1, block.columns},
                         [&](T* run, int, int) { address = run; });
          compute<C>(reader.cursor(), block.size(), address);
          stored = true;
        }
      }
      if (!stored) {
        compute<C>(reader.cursor(), block.size(), values);
        scatter(target.data(), values, to, space, block);
      }
      column += columns;
      if (column >= length) {
        column = 0;
        row += rows;
      }
    }
  });
}

template <class E>
auto value_of(const E& expression) {
  static_assert(E::rank == 0,
                "diffmamba: only an expression of one element is a number; reduce it with sum, mean, max or min");
  using T = typename E::value_type;
  static_assert(!std::is_same_v<typename E::device_type, cuda>,
                "diffmamba: this value is on a GPU; copy it with to<cpu>(...)");
  T result{};
  evaluate_blocks(View<T, 0, cpu>(&result, {}), expression);
  return result;
}

}  // namespace detail

/// What assigning an expression to a tensor does: target and expression have the same shape. Throws Error else.
template <class T, int Rank, class DeviceType, class E>
requires(is_expression<E>) void evaluate_into(const View<T, Rank, DeviceType>& target, const E& expression) {
  using Where = typename E::device_type;
  static_assert(std::is_same_v<Where, DeviceType> || std::is_same_v<Where, detail::AnyDevice>,
                "diffmamba: operands live on different devices; copy one with to<cpu>(...) or to<cuda>(...)");
  static_assert(std::is_same_v<DeviceType, cpu> || detail::compiled_for_gpu, DIFFMAMBA_EXPRESSION_ON_GPU);
  static_assert(E::rank == Rank, DIFFMAMBA_OTHER_RANK);
  detail::check_target<T, E>();
  require(target.extents() == expression.extents(), "assignment: the target has the shape ", target.extents(),
          ", the expression ", expression.extents());
  evaluate_blocks(target, expression);  // in detail, for either device
}

/// Writes an expression, tensor, view or number to the elements of a tensor or view, broadcast to its shape.
template <class Target, OperandOrScalar X>
void assign(Target&& target, X&& x) {
  const auto view = as_view(target);
  const auto node = detail::as_node(std::forward<X>(x));
  using To = std::remove_cvref_t<decltype(view)>;
  using From = std::remove_cvref_t<decltype(node)>;
  using Where = typename From::device_type;
  static_assert(std::is_same_v<Where, typename To::device_type> || std::is_same_v<Where, detail::AnyDevice>,
                "diffmamba: operands live on different devices; copy one with to<cpu>(...) or to<cuda>(...)");
  static_assert(std::is_same_v<typename To::device_type, cpu> || detail::compiled_for_gpu, DIFFMAMBA_EXPRESSION_ON_GPU);
  static_assert(From::rank <= To::rank, "diffmamba: the expression has more axes than the target of the assignment");
  detail::check_target<typename To::element_type, From>();
  for (int i = 1; i <= From::rank; ++i) {
    const Index size = node.extents().sizes[From::rank - i];
    require(size == 1 || size == view.extents().sizes[To::rank - i], "assignment: the target has the shape ",
            view.extents(), ", the expression ", node.extents());
  }
  evaluate_blocks(view, node);
}

// target op= x is assign(target, target op x); the target is a tensor or a view.
#define DIFFMAMBA_COMPOUND(op)                                                    \
  template <class T, int Rank, class D, OperandOrScalar X>                        \
  Tensor<T, Rank, D>& operator op##=(Tensor<T, Rank, D>& target, X&& x) {         \
    assign(target.view(), target.view() op std::forward<X>(x));                   \
    return target;                                                                \
  }                                                                               \
  template <class T, int Rank, class D, OperandOrScalar X>                        \
  const View<T, Rank, D>& operator op##=(const View<T, Rank, D>& target, X&& x) { \
    assign(target, target op std::forward<X>(x));                                 \
    return target;                                                                \
  }
DIFFMAMBA_COMPOUND(+)
DIFFMAMBA_COMPOUND(-)
DIFFMAMBA_COMPOUND(*)
DIFFMAMBA_COMPOUND(/)
#undef DIFFMAMBA_COMPOUND

}  // namespace diffmamba
