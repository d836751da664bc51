// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>  // std::unique_ptr

#include "diffmamba/device/memory.hpp"
#include "diffmamba/expr/bound.hpp"
#include "diffmamba/expr/reduce.hpp"

// A reduction stands in an expression like a dense tensor of its results. Where the results come from:
//
//   - up to 256 of them are computed before the assignment's pass (threaded, even a single one over all elements) and
//   kept on the stack;
//   - more, if the pass meets each result in one stretch, as a reduction over the last axes does, are computed when the
//     pass comes to them: y = x / sqrt(mean(x * x, axis<1>, keepdims)) reads a row of x from memory once;
//   - else (a sum over the first axis that is broadcast back along it) they are computed before, in memory of their own
//     size from the arena. The same happens where results read what the assignment overwrites.
//
// The order of additions follows from shapes alone: a row is added in 4 registers side by side, 32 blocks to a partial
// sum; columns are added register by register, row after row.
namespace diffmamba::detail {

struct ReturnToArena {
  void operator()(void* memory) const { arena<cpu>().deallocate(memory); }
};

template <class Op, bool Keep, class Arg, bool... Reduced, class C, int S>
struct Bound<ReductionNode<Op, Keep, Arg, Reduced...>, C, S> {
  using Node = ReductionNode<Op, Keep, Arg, Reduced...>;
  static constexpr int rank = Arg::rank;
  static constexpr int inner_rank = rank > 0 ? rank : 1;
  using ArgBound = Bound<Arg, C, inner_rank>;
  using L = Lanes<C>;
  /// Along the last axis of the operand (its elements are added to one another), or across it (rows are added).
  static constexpr bool along = rank == 0 || Node::reduced[rank > 0 ? rank - 1 : 0];
  static constexpr int few = 256;

  Extents<inner_rank> inner;  // (kept..., reduced...) along; (kept..., reduced..., last) across
  ArgBound arg;
  Strides<S> strides;          // of the results, counted densely, in the space of the assignment
  Index total = 1, count = 1;  // results; elements in each
  Index rows_each = 1;         // rows of the inner space in one result
  Extents<S> space;
  bool broadcast_rows = false;  // results change from row to row only
  const C* results = nullptr;   // if computed before
  C small[few] = {};
  std::unique_ptr<C, ReturnToArena> memory;

  Bound(const Node& node, const Extents<S>&)
      : inner(inner_extents(node)),
        arg(node.arg, inner),
        strides(strides_in<S>(node.extents(), row_major(node.extents()))) {
    int order[inner_rank] = {}, group[inner_rank] = {};
    int next = 0;
    for (int pass = 0; pass < 3; ++pass)
      for (int i = 0; i < rank; ++i) {
        const int which = !along && i == rank - 1 ? 2 : Node::reduced[i] ? 1 : 0;
        if (which != pass) continue;
        order[next] = i;
        group[next++] = which;
        (which == 1 ? count : total) *= inner[i];
      }
    const auto reorder = [&](Extents<inner_rank>& values) {
      const Extents<inner_rank> before = values;
      for (int i = 0; i < rank; ++i) values[i] = before[order[i]];
    };
    reorder(inner);
    arg.each_layout(reorder);
    collapse(inner, group, [&](auto&& visit) { arg.each_layout(visit); });
    rows_each = along && inner[inner_rank - 1] > 0 ? count / inner[inner_rank - 1] : count;
  }

  static Extents<inner_rank> inner_extents(const Node& node) {
    Extents<inner_rank> result;
    for (int i = 0; i < inner_rank; ++i) result[i] = rank == 0 ? 1 : node.arg.extents().sizes[i];
    return result;
  }

  template <class Visit>
  void each_layout(Visit&& visit) {
    visit(strides);
  }
  bool overlaps(const Footprint& target) const { return arg.overlaps(target); }
  bool aligned(const Target<S>& target) const { return !overlaps(target.footprint); }

  void prepare(const Extents<S>& extents, const Target<S>* target) {
    space = extents;
    arg.prepare(inner, nullptr);
    if (total > few && each_in_one_stretch() &&
        (target == nullptr || !arg.overlaps(target->footprint) || row_by_row(*target)))
      return;
    C* to = small;
    if (total > few) {
      memory.reset(static_cast<C*>(arena<cpu>().allocate(static_cast<std::size_t>(total) * sizeof(C))));
      to = memory.get();
    }
    const Index elements = 16 * block_size;
    const Index tile = elements / (count > 0 ? count : 1) > grain() ? elements / (count > 0 ? count : 1) : grain();
    parallel_for(tiles_of(total, tile), [&](Index t) {
      typename ArgBound::Reader reader(arg);
      const Index begin = t * tile, size = total - begin < tile ? total - begin : tile;
      compute_results(reader, begin, size, to + begin);
    });
    results = to;
  }
  /// Whether the results are met densely: one after another, each for one element or for one whole row.
  bool each_in_one_stretch() {
    Index expected = 1;
    broadcast_rows = space[S - 1] > 1 && strides[S - 1] == 0;
    for (int i = S - 1; i >= 0; --i) {
      if (space[i] == 1 || (i == S - 1 && broadcast_rows)) continue;
      if (strides[i] != expected) return false;
      expected *= space[i];
    }
    return true;
  }
  /// Whether a result reads no element of the target but of its own row, x = x / sum(x, axis<1>, keepdims).
  bool row_by_row(const Target<S>& target) const {
    if constexpr (inner_rank == S && along)
      return broadcast_rows && rows_each == 1 && inner == space && arg.aligned(target);
    else
      return false;
  }
  bool transposed() const { return false; }
  bool whole_rows() const { return results == nullptr && broadcast_rows; }
  Index weight() const { return results == nullptr && !broadcast_rows ? count : 1; }
  Index grain() const { return along ? 1 : block_size; }

  // --- the sums ---

  struct Accumulator {
    L lanes[4] = {L(Op::identity), L(Op::identity), L(Op::identity), L(Op::identity)};

    template <class Cursor, class Plain>
    void add(const Cursor& cursor, Plain plain, Index begin, Index size) {
      const Index end = begin + size;
      Index i = begin;
      for (; i + 4 * L::size <= end; i += 4 * L::size)
        for (int k = 0; k < 4; ++k) lanes[k] = Op::combine(lanes[k], L(as_lanes(cursor.at(i + k * L::size, plain))));
      for (; i + L::size <= end; i += L::size) lanes[0] = Op::combine(lanes[0], L(as_lanes(cursor.at(i, plain))));
      if (i == end) return;
      const L number = L::counting_from(C(0));
      const double rest = static_cast<double>(end - i);
      if (size >= L::size) {  // the last register again, without what was added already
        const L value = as_lanes(cursor.at(end - L::size, plain));
        lanes[1] = Op::combine(lanes[1], select(number < L(L::size - rest), L(Op::identity), value));
      } else {
        const L value = as_lanes(cursor.at(begin, plain));
        lanes[1] = Op::combine(lanes[1], select(number < L(rest), value, L(Op::identity)));
      }
    }
    C result() const {
      return Op::across(Op::combine(Op::combine(lanes[0], lanes[1]), Op::combine(lanes[2], lanes[3])));
    }
  };

  template <class Reader>
  EIGEN_DONT_INLINE void compute_results(Reader& reader, Index first, Index size, C* to) const {
    if (count == 0) {
      for (Index i = 0; i < size; ++i) to[i] = Op::finish(C(Op::identity), Index{0});
      return;
    }
    const Index length = inner[inner_rank - 1];
    if constexpr (along) {
      if (rows_each == 1 && length <= block_size / 2) {  // short rows: several at a time
        const int many = static_cast<int>(block_size / length), columns = static_cast<int>(length);
        for (Index i = 0; i < size; i += many) {
          const int rows = static_cast<int>(size - i < many ? size - i : many);
          const Block block{first + i, 0, rows, columns};
          reader.load(block);
          const auto cursor = reader.cursor();
          if (columns >= L::size) {
            addressed(cursor, [&](auto plain) {
              for (int r = 0; r < rows; ++r) {
                Accumulator sum;
                sum.add(cursor, plain, r * columns, columns);
                to[i + r] = Op::finish(sum.result(), count);
              }
            });
          } else {
            alignas(64) C values[block_size];
            compute<C>(cursor, block.size(), values);
            for (int r = 0; r < rows; ++r) to[i + r] = Op::finish(of_short_row(values + r * columns, columns), count);
          }
        }
      } else {
        for (Index i = 0; i < size; ++i) to[i] = Op::finish(of_rows(reader, first + i), count);
      }
    } else {
      while (size > 0) {
        const Index outer = first / length, column = first % length;
        Index columns = length - column < size ? length - column : size;
        if (columns > block_size) columns = block_size;
        of_columns(reader, outer, column, static_cast<int>(columns), to);
        first += columns;
        size -= columns;
        to += columns;
      }
    }
  }

  static C of_short_row(const C* values, int columns) {
    C sum = values[0];
    for (int c = 1; c < columns; ++c) sum = Op::combine(sum, values[c]);
    return sum;
  }

  /// One result from its rows, in blocks; 32 and more blocks are a partial sum of their own, so that threads can share
  /// them.
  template <class Reader>
  C of_rows(Reader& reader, Index result) const {
    const Index length = inner[inner_rank - 1];
    const Index rows_a_block = length <= block_size / 2 ? block_size / length : 1;
    const Index pieces = tiles_of(length, block_size);
    const Index blocks = rows_a_block > 1 ? tiles_of(rows_each, rows_a_block) : rows_each * pieces;
    const auto add = [&](auto& from, Index begin, Index end) {
      Accumulator sum;
      Index row = rows_a_block > 1 ? begin * rows_a_block : begin / pieces;
      Index column = rows_a_block > 1 ? 0 : begin % pieces * block_size;
      for (Index b = begin; b < end; ++b) {
        const Index rows_left = rows_each - row, columns_left = length - column;
        const Block block{result * rows_each + row, column,
                          static_cast<int>(rows_left < rows_a_block ? rows_left : rows_a_block),
                          static_cast<int>(columns_left < block_size ? columns_left : block_size)};
        column += block_size;
        if (column >= length) {
          column = 0;
          row += rows_a_block;
        }
        from.load(block);
        const auto cursor = from.cursor();
        addressed(cursor, [&](auto plain) { sum.add(cursor, plain, 0, block.size()); });
      }
      return sum.result();
    };
    const Index chunk = tiles_of(blocks, few) > 32 ? tiles_of(blocks, few) : 32;
    const Index chunks = tiles_of(blocks, chunk);
    if (chunks == 1 || arg.whole_rows()) return add(reader, 0, blocks);
    C partial[few] = {};
    parallel_for(chunks, [&](Index k) {
      Reader own(arg);
      partial[k] = add(own, k * chunk, (k + 1) * chunk < blocks ? (k + 1) * chunk : blocks);
    });
    C sum = partial[0];
    for (Index k = 1; k < chunks; ++k) sum = Op::combine(sum, partial[k]);
    return sum;
  }

  /// Results side by side: rows are added in registers, narrow ones several at a time.
  template <class Reader>
  void of_columns(Reader& reader, Index outer, Index column, int columns, C* to) const {
    const bool narrow = columns == inner[inner_rank - 1] && columns <= block_size / 4;
    const Index rows_a_block = narrow ? block_size / columns : 1;
    const Index blocks = tiles_of(rows_each, rows_a_block);
    const auto add = [&](auto& from, Index begin, Index end, C* sums) {
      alignas(64) C sum[block_size];
      for (C& value : sum) value = C(Op::identity);
      for (Index b = begin; b < end; ++b) {
        const Index row = b * rows_a_block, rest = rows_each - row;
        const Block block{outer * rows_each + row, column, static_cast<int>(rest < rows_a_block ? rest : rows_a_block),
                          columns};
        from.load(block);
        const auto cursor = from.cursor();
        const int size = block.size();
        addressed(cursor, [&](auto plain) {
          int i = 0;
          for (; i + L::size <= size; i += L::size)
            Op::combine(L::load(sum + i), L(as_lanes(cursor.at(i, plain)))).store(sum + i);
          if (i == size) return;
          C lane[L::size];
          const int start = size >= L::size ? size - L::size : 0;
          as_lanes(cursor.at(start, plain)).store(lane);
          for (; i < size; ++i) sum[i] = Op::combine(sum[i], lane[i - start]);
        });
      }
      for (int c = 0; c < columns; ++c) {
        C value = sum[c];
        for (Index r = 1; r < rows_a_block; ++r) value = Op::combine(value, sum[r * columns + c]);
        sums[c] = value;
      }
    };
    constexpr Index most = 16;
    const Index chunk = tiles_of(blocks, most) > 64 ? tiles_of(blocks, most) : 64;
    const Index chunks = tiles_of(blocks, chunk);
    if (chunks == 1) {
      add(reader, 0, blocks, to);
    } else {
      C partial[most * block_size];
      parallel_for(chunks, [&](Index k) {
        Reader own(arg);
        add(own, k * chunk, (k + 1) * chunk < blocks ? (k + 1) * chunk : blocks, partial + k * columns);
      });
      for (int c = 0; c < columns; ++c) {
        C value = partial[c];
        for (Index k = 1; k < chunks; ++k) value = Op::combine(value, partial[k * columns + c]);
        to[c] = value;
      }
    }
    for (int c = 0; c < columns; ++c) to[c] = Op::finish(to[c], count);
  }

  // --- as an operand ---

  using Leaf = BoundLeaf<C, C, S>;
  using Cursor = typename Leaf::Cursor;

  struct Reader {
    const Bound* bound;
    Leaf leaf;
    typename Leaf::Reader values;
    typename ArgBound::Reader arg;
    Index row = -1;

    explicit Reader(const Bound& reduction)
        : bound(&reduction), leaf(reduction.results, reduction.strides), values(leaf), arg(reduction.arg) {
      leaf.settle(reduction.space);
    }
    Reader(const Reader&) = delete;

    void load(const Block& block) {
      if (bound->results != nullptr) return values.load(block);
      values.from = values.buffer;
      const Index length = bound->space[S - 1];
      if (!bound->broadcast_rows) {
        values.step = -1;
        for (int r = 0; r < block.rows; ++r) {
          const bool whole = block.columns == length;
          bound->compute_results(arg, (block.row + r) * length + block.column, whole ? block.size() : block.columns,
                                 values.buffer + r * block.columns);
          if (whole) break;
        }
      } else if (block.rows == 1) {
        if (block.row == row) return;
        C value;
        bound->compute_results(arg, block.row, 1, &value);
        values.hold(value);
        row = block.row;
      } else {
        values.step = -1;
        C value[block_size];
        bound->compute_results(arg, block.row, block.rows, value);
        convert_box(values.buffer, block.columns, 1, value, 1, 0, block.rows, block.columns);
        row = -1;
      }
      pad(values.buffer, block.size());
    }
    bool constant() const { return values.step == 0; }
    Cursor cursor() const { return values.cursor(); }
  };
};

}  // namespace diffmamba::detail
