// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tuple>  // std::tuple, unpack

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/expr/block.hpp"
#include "diffmamba/expr/node.hpp"
#include "diffmamba/expr/overlap.hpp"
#include "diffmamba/math/lanes.hpp"

/// How nodes become a loop on the CPU. Each node type has three companions:
///
///   Bound    the node laid over the index space of the assignment: an address and strides for every leaf, 0 where it
///   is
///            broadcast. Made once, shared by all threads.
///   Reader   one thread's hold on it. load(block) makes the elements of a block ready: a leaf of the computing type
///   that lies
///            densely is read in place, every other one is packed into the reader's buffer (and stays there while
///            blocks ask for the same, as a broadcast row does).
///   Cursor   addresses in registers. at(i) is the register of elements i, i + 1, ... of the block.
///
/// So an assignment is, for each block of at most 1024 elements, one loop whose body is the whole formula in registers.
/// Why not an Eigen array expression per block: its loops treat elements apart according to the address of the
/// result, so the bits of an element would depend on where it lies; it computes an operand that occurs twice twice; and
/// its comparisons are not vectorised.
namespace diffmamba::detail {

/// A node in an index space of rank S, computing in C.
template <class Node, class C, int S>
struct Bound;

/// f(of every element of a tuple). Unlike std::apply it costs the compiler almost nothing.
template <class F, class Tuple, std::size_t... I>
inline decltype(auto) unpack(F&& f, Tuple& tuple, std::index_sequence<I...>) {
  return f(std::get<I>(tuple)...);
}
template <class F, class Tuple>
inline decltype(auto) unpack(F&& f, Tuple& tuple) {
  return unpack(f, tuple, std::make_index_sequence<std::tuple_size_v<std::remove_const_t<Tuple>>>{});
}

template <class C>
inline Lanes<C> as_lanes(Lanes<C> x) {
  return x;
}
template <class C>
inline Lanes<C> as_lanes(Mask<C> x) {
  return select(x, Lanes<C>(1.0), Lanes<C>(0.0));
}

/// Fills a buffer up to one register, so that a block shorter than that can be computed without reading what is not
/// there.
template <class C>
inline void pad(C* buffer, int count) {
  for (; count < Lanes<C>::size; ++count) buffer[count] = C(1);
}

/// to[0, count) = the cursor's elements. The last register may overlap the one before it; it is computed before
/// anything is written, so that `to` may be where an operand lies.
template <class C, class Cursor>
inline void compute(const Cursor cursor, int count, C* to) {
  constexpr int size = Lanes<C>::size;
  const int last = count > size ? count - size : 0;
  const Lanes<C> end = as_lanes(cursor.at(last));
  for (int i = 0; i < last; i += size) as_lanes(cursor.at(i)).store(to + i);
  if (count >= size) {
    end.store(to + last);
  } else {
    C lane[size];
    end.store(lane);
    for (int i = 0; i < count; ++i) to[i] = lane[i];
  }
}

/// Strides of something of the given sizes in a space of rank S: matched from the last axis, 0 where it has one
/// element.
template <int S, int Rank>
Strides<S> strides_in(const Extents<Rank>& extents, const Strides<Rank>& strides) {
  Strides<S> result;
  for (int i = 1; i <= Rank; ++i) result.sizes[S - i] = extents.sizes[Rank - i] == 1 ? 0 : strides.sizes[Rank - i];
  return result;
}

template <int S>
bool same_strides(const Strides<S>& a, const Strides<S>& b, const Extents<S>& extents) {
  for (int i = 0; i < S; ++i)
    if (extents[i] > 1 && a[i] != b[i]) return false;
  return true;
}

template <int S>
bool is_dense(const Strides<S>& strides, const Extents<S>& extents) {
  return same_strides(strides, row_major(extents), extents);
}

/// Whether the last axis steps over memory that the axis before it walks along.
template <int S>
bool is_transposed(const Strides<S>& strides) {
  const Index row = row_step(strides) < 0 ? -row_step(strides) : row_step(strides);
  const Index column = strides[S - 1] < 0 ? -strides[S - 1] : strides[S - 1];
  return 0 < row && row < column;
}

/// Where the results of an assignment go.
template <int S>
struct Target {
  const void* data;
  std::size_t item;
  Strides<S> strides;
  Footprint footprint;
};

// --- Tensors and views ---

template <class T, class C, int S>
struct BoundLeaf {
  static constexpr bool is_mask = std::is_same_v<T, bool>;

  const T* data = nullptr;
  Strides<S> strides;
  Extents<S> space;
  bool dense = false, outer_fixed = false;

  BoundLeaf(const T* address, const Strides<S>& steps) : data(address), strides(steps) {}

  template <class Visit>
  void each_layout(Visit&& visit) {
    visit(strides);
  }
  bool overlaps(const Footprint& target) const {
    return share_memory(Footprint(data, space, strides, sizeof(T)), target);
  }
  bool aligned(const Target<S>& target) const {
    return (data == target.data && sizeof(T) == target.item && same_strides(strides, target.strides, space)) ||
           !overlaps(target.footprint);
  }
  /// After all axes have their final order. `target` is where the results go, if anywhere.
  void prepare(const Extents<S>& extents, const Target<S>* target) {
    settle(extents);
    if (target != nullptr && !aligned(*target))
      fail(
          "assignment: an operand shares memory with the target, but not element by element (it is shifted, transposed "
          "or "
          "broadcast); assign to another tensor first");
  }
  void settle(const Extents<S>& extents) {
    space = extents;
    dense = is_dense(strides, space);
    outer_fixed = true;
    for (int i = 0; i < S - 1; ++i) outer_fixed = outer_fixed && (space[i] == 1 || strides[i] == 0);
  }
  bool transposed() const { return is_transposed(strides); }
  bool whole_rows() const { return false; }
  Index weight() const { return 1; }
  Index grain() const { return 1; }

  struct Cursor {
    const C* from;
    auto at(int i) const {
      if constexpr (is_mask)
        return Lanes<C>::load(from + i) != Lanes<C>(0.0);
      else
        return Lanes<C>::load(from + i);
    }
  };

  struct Reader {
    const BoundLeaf* leaf;
    const C* from = nullptr;
    const T* packed = nullptr;  // what the buffer holds: the address of its first element, rows, columns
    int packed_rows = 0, packed_columns = 0;
    alignas(64) C buffer[block_size];

    explicit Reader(const BoundLeaf& bound) : leaf(&bound) {}

    void load(const Block& block) {
      const Strides<S>& s = leaf->strides;
      const int size = block.size();
      const T* first = leaf->data + block.column * s[S - 1];
      if constexpr (S > 1) {
        if (!leaf->outer_fixed) {
          Index rest = block.row;
          for (int a = S - 2; a > 0; --a) {
            first += rest % leaf->space[a] * s[a];
            rest /= leaf->space[a];
          }
          first += rest * s[0];
        }
      }
      if constexpr (std::is_same_v<T, C>) {
        const bool side_by_side = block.rows == 1 ? s[S - 1] == 1 : leaf->dense && block.columns == leaf->space[S - 1];
        if (side_by_side && size >= Lanes<C>::size) {
          from = first;
          return;
        }
      }
      from = buffer;
      if (first == packed && block.columns == packed_columns &&
          (block.rows == packed_rows || (leaf->outer_fixed && block.rows < packed_rows)))
        if (block.rows == 1 || leaf->outer_fixed) return;
      gather(buffer, leaf->data, s, leaf->space, block);
      pad(buffer, size);
      packed = first;
      packed_rows = block.rows;
      packed_columns = block.columns;
    }
    Cursor cursor() const { return {from}; }
  };
};

template <class T, int Rank, class D, class C, int S>
struct Bound<ViewNode<T, Rank, D>, C, S> : BoundLeaf<T, C, S> {
  Bound(const ViewNode<T, Rank, D>& node, const Extents<S>&)
      : BoundLeaf<T, C, S>(node.view().data(), strides_in<S>(node.extents(), node.view().strides())) {}
};
template <class T, int Rank, class D, class C, int S>
struct Bound<TensorNode<T, Rank, D>, C, S> : BoundLeaf<T, C, S> {
  Bound(const TensorNode<T, Rank, D>& node, const Extents<S>&)
      : BoundLeaf<T, C, S>(node.view().data(), strides_in<S>(node.extents(), node.view().strides())) {}
};

// --- Numbers ---

template <class C, int S>
struct Bound<ScalarNode, C, S> {
  double number;

  Bound(const ScalarNode& node, const Extents<S>&) : number(node.number) {}
  template <class Visit>
  void each_layout(Visit&&) {}
  bool overlaps(const Footprint&) const { return false; }
  bool aligned(const Target<S>&) const { return true; }
  void prepare(const Extents<S>&, const Target<S>*) {}
  bool transposed() const { return false; }
  bool whole_rows() const { return false; }
  Index weight() const { return 1; }
  Index grain() const { return 1; }

  struct Cursor {
    Lanes<C> lanes;
    Lanes<C> at(int) const { return lanes; }
  };
  struct Reader {
    Lanes<C> lanes;
    explicit Reader(const Bound& bound) : lanes(bound.number) {}
    void load(const Block&) {}
    Cursor cursor() const { return {lanes}; }
  };
};

// --- Functions ---

template <class F, class... Args, class C, int S>
struct Bound<MapNode<F, Args...>, C, S> {
  F function;
  std::tuple<Bound<Args, C, S>...> args;

  Bound(const MapNode<F, Args...>& node, const Extents<S>& space)
      : function(node.function),
        args(unpack(
            [&](const auto&... arg) { return std::tuple<Bound<Args, C, S>...>(Bound<Args, C, S>(arg, space)...); },
            node.args)) {}

  template <class Visit>
  void each_layout(Visit&& visit) {
    unpack([&](auto&... arg) { (arg.each_layout(visit), ...); }, args);
  }
  bool overlaps(const Footprint& target) const {
    return unpack([&](const auto&... arg) { return (arg.overlaps(target) || ...); }, args);
  }
  bool aligned(const Target<S>& target) const {
    return unpack([&](const auto&... arg) { return (arg.aligned(target) && ...); }, args);
  }
  void prepare(const Extents<S>& space, const Target<S>* target) {
    unpack([&](auto&... arg) { (arg.prepare(space, target), ...); }, args);
  }
  bool transposed() const {
    return unpack([](const auto&... arg) { return (arg.transposed() || ...); }, args);
  }
  bool whole_rows() const {
    return unpack([](const auto&... arg) { return (arg.whole_rows() || ...); }, args);
  }
  Index weight() const {
    Index most = 1;
    unpack([&](const auto&... arg) { ((most = arg.weight() > most ? arg.weight() : most), ...); }, args);
    return most;
  }
  Index grain() const {
    Index most = 1;
    unpack([&](const auto&... arg) { ((most = arg.grain() > most ? arg.grain() : most), ...); }, args);
    return most;
  }

  struct Cursor {
    [[no_unique_address]] F function;
    std::tuple<typename Bound<Args, C, S>::Cursor...> args;
    auto at(int i) const {
      return unpack([&](const auto&... arg) { return function(arg.at(i)...); }, args);
    }
  };
  struct Reader {
    [[no_unique_address]] F function;
    std::tuple<typename Bound<Args, C, S>::Reader...> args;

    explicit Reader(const Bound& bound)
        : Reader(bound, std::make_integer_sequence<int, static_cast<int>(sizeof...(Args))>{}) {}
    template <int... I>
    Reader(const Bound& bound, std::integer_sequence<int, I...>)
        : function(bound.function), args(std::get<static_cast<std::size_t>(I)>(bound.args)...) {}
    void load(const Block& block) {
      unpack([&](auto&... arg) { (arg.load(block), ...); }, args);
    }
    Cursor cursor() const {
      return unpack([&](const auto&... arg) { return Cursor{function, {arg.cursor()...}}; }, args);
    }
  };
};

// --- Conversions ---

/// Of a tensor: as it is packed.
template <class To, class T, int Rank, class D, int S>
requires(!std::is_same_v<T, bool>) struct Bound<CastNode<To, ViewNode<T, Rank, D>>, To, S>
    : Bound<ViewNode<T, Rank, D>, To, S> {
  Bound(const CastNode<To, ViewNode<T, Rank, D>>& node, const Extents<S>& sizes)
      : Bound<ViewNode<T, Rank, D>, To, S>(node.arg, sizes) {}
};
template <class To, class T, int Rank, class D, int S>
requires(!std::is_same_v<T, bool>) struct Bound<CastNode<To, TensorNode<T, Rank, D>>, To, S>
    : Bound<TensorNode<T, Rank, D>, To, S> {
  Bound(const CastNode<To, TensorNode<T, Rank, D>>& node, const Extents<S>& sizes)
      : Bound<TensorNode<T, Rank, D>, To, S>(node.arg, sizes) {}
};

/// Of a formula that computes in another type: block by block. (One that computes in `To` already only turns from a
/// mask into numbers, if it is one.)
template <class To, class Arg, int S>
struct Bound<CastNode<To, Arg>, To, S>
    : Bound<Arg,
            std::conditional_t<std::is_same_v<typename Arg::compute_type, AnyType>, To, typename Arg::compute_type>,
            S> {
  using From = std::conditional_t<std::is_same_v<typename Arg::compute_type, AnyType>, To, typename Arg::compute_type>;
  using Base = Bound<Arg, From, S>;

  Bound(const CastNode<To, Arg>& node, const Extents<S>& sizes) : Base(node.arg, sizes) {}

  struct Same {
    typename Base::Cursor inner;
    auto at(int i) const { return as_lanes(inner.at(i)); }
  };
  using Cursor = std::conditional_t<std::is_same_v<To, From>, Same, typename BoundLeaf<To, To, S>::Cursor>;

  struct Reader {
    typename Base::Reader inner;
    alignas(64) To buffer[std::is_same_v<To, From> ? 1 : block_size];

    explicit Reader(const Bound& bound) : inner(bound) {}
    void load(const Block& block) {
      inner.load(block);
      if constexpr (!std::is_same_v<To, From>) {
        alignas(64) From values[block_size];
        compute<From>(inner.cursor(), block.size(), values);
        convert_row(buffer, values, block.size());
        pad(buffer, block.size());
      }
    }
    Cursor cursor() const {
      if constexpr (std::is_same_v<To, From>)
        return {inner.cursor()};
      else
        return {buffer};
    }
  };
};

}  // namespace diffmamba::detail
