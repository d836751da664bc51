// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tuple>        // std::tuple
#include <type_traits>  // std::bool_constant

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/expr/node.hpp"
#include "diffmamba/expr/overlap.hpp"
#include "diffmamba/expr/packing.hpp"
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
///   Cursor   addresses in registers. at(i, plain) is the register of elements i, i + 1, ... of the block.
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

/// use(cursor, plain) with a constant that says whether no operand is one repeated number: then its loops address
/// memory directly. Costs one test for a block.
template <class Cursor, class Use>
inline void addressed(const Cursor& cursor, Use&& use) {
  if (cursor.plain())
    use(std::true_type{});
  else
    use(std::false_type{});
}

/// to[0, count) = the cursor's elements. A register's worth that does not come out even is taken from the end, over the
/// one before it, and computed before anything is written, so that `to` may be where an operand lies.
template <class C, class Cursor>
inline void compute(const Cursor cursor, Index count, C* to) {
  constexpr int size = Lanes<C>::size;
  addressed(cursor, [&](auto plain) {
    const bool even = count % size == 0;
    const Index last = even ? count : count > size ? count - size : 0;
    Lanes<C> end;
    if (!even) end = as_lanes(cursor.at(last, plain));
    for (Index i = 0; i < last; i += size) as_lanes(cursor.at(i, plain)).store(to + i);
    if (even) return;
    if (count > size) return end.store(to + last);
    C lane[size];
    end.store(lane);
    for (Index i = 0; i < count; ++i) to[i] = lane[i];
  });
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
  Index row_offset(Index row) const {
    Index offset = 0;
    if constexpr (S > 1) {
      for (int a = S - 2; a > 0; --a) {
        offset += row % space[a] * strides[a];
        row /= space[a];
      }
      offset += row * strides[0];
    }
    return offset;
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
    Index step;  // all ones; zero for one element that is repeated
    bool plain() const { return step != 0; }
    template <bool Plain>
    auto at(Index i, std::bool_constant<Plain>) const {
      const Lanes<C> lanes = Lanes<C>::load(from + (Plain ? i : i & step));
      if constexpr (is_mask)
        return lanes != Lanes<C>(0.0);
      else
        return lanes;
    }
  };

  struct Reader {
    const BoundLeaf* leaf;
    const C* from = nullptr;
    Index step = -1;
    const T* packed = nullptr;  // what the buffer holds: the address of its first element, rows, columns
    int packed_rows = 0, packed_columns = 0;
    alignas(64) C buffer[block_size];

    explicit Reader(const BoundLeaf& bound) : leaf(&bound) {}

    void load(const Block& block) {
      const Strides<S>& s = leaf->strides;
      const int size = block.size();
      const T* first = leaf->data + block.column * s[S - 1];
      if (leaf->dense)
        first += block.row * leaf->space[S - 1];
      else if (!leaf->outer_fixed)
        first += leaf->row_offset(block.row);
      step = -1;
      if constexpr (std::is_same_v<T, C>) {
        const bool side_by_side = block.rows == 1 ? s[S - 1] == 1 : leaf->dense && block.columns == leaf->space[S - 1];
        if (side_by_side && size >= Lanes<C>::size) {
          from = first;
          return;
        }
      }
      from = buffer;
      if (s[S - 1] == 0 && (block.rows == 1 || leaf->outer_fixed)) return hold(convert<C>(*first));
      if (first == packed && block.columns == packed_columns && (block.rows == 1 || leaf->outer_fixed) &&
          block.rows <= packed_rows)
        return;
      pack(block, first);
    }
    /// Apart from load, which stays short enough to be inlined.
    EIGEN_DONT_INLINE void pack(const Block& block, const T* first) {
      const Strides<S>& s = leaf->strides;
      const int size = block.size();
      if (leaf->outer_fixed && block.rows > 1) {  // one row, again and again
        Block row = block;
        row.rows = 1;
        gather(buffer, leaf->data, s, leaf->space, row);
        for (int filled = block.columns; filled < size; filled *= 2)
          std::memcpy(buffer + filled, buffer,
                      static_cast<std::size_t>(filled < size - filled ? filled : size - filled) * sizeof(C));
      } else {
        gather(buffer, leaf->data, s, leaf->space, block);
      }
      pad(buffer, size);
      packed = first;
      packed_rows = block.rows;
      packed_columns = block.columns;
    }
    /// The whole block is one number.
    void hold(C value) {
      Lanes<C>(static_cast<double>(value)).store(buffer);
      from = buffer;
      step = 0;
      packed = nullptr;
    }
    bool constant() const { return step == 0; }
    Cursor cursor() const { return {from, step}; }
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
    bool plain() const { return true; }
    template <class Plain>
    Lanes<C> at(Index, Plain) const {
      return lanes;
    }
  };
  struct Reader {
    Lanes<C> lanes;
    explicit Reader(const Bound& bound) : lanes(bound.number) {}
    void load(const Block&) {}
    bool constant() const { return true; }
    Cursor cursor() const { return {lanes}; }
  };
};

// --- Functions ---

template <class F, class C, int S, class... Args>
struct BoundMap {
  F function;
  std::tuple<Bound<Args, C, S>...> args;

  BoundMap(const MapNode<F, Args...>& node, const Extents<S>& space)
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
    bool plain() const {
      return unpack([](const auto&... arg) { return (arg.plain() && ...); }, args);
    }
    template <class Plain>
    auto at(Index i, Plain plain) const {
      return unpack([&](const auto&... arg) { return function(arg.at(i, plain)...); }, args);
    }
  };
  struct Reader {
    [[no_unique_address]] F function;
    std::tuple<typename Bound<Args, C, S>::Reader...> args;

    explicit Reader(const BoundMap& bound)
        : Reader(bound, std::make_integer_sequence<int, static_cast<int>(sizeof...(Args))>{}) {}
    template <int... I>
    Reader(const BoundMap& bound, std::integer_sequence<int, I...>)
        : function(bound.function), args(std::get<static_cast<std::size_t>(I)>(bound.args)...) {}
    void load(const Block& block) {
      unpack([&](auto&... arg) { (arg.load(block), ...); }, args);
    }
    bool constant() const {
      return unpack([](const auto&... arg) { return (arg.constant() && ...); }, args);
    }
    Cursor cursor() const {
      return unpack([&](const auto&... arg) { return Cursor{function, {arg.cursor()...}}; }, args);
    }
  };
};

/// Whether a formula is the same along a row because it is made of numbers and reductions of rows: the 1 / sqrt(...) in
/// x * rsqrt(mean(x * x, axis<1>, keepdims) + 1e-5f).
template <class Node>
inline constexpr bool row_function = false;
template <class Op, class Arg, bool... Reduced>
inline constexpr bool row_function<ReductionNode<Op, true, Arg, Reduced...>> =
    sizeof...(Reduced) > 0 && ReductionNode<Op, true, Arg, Reduced...>::reduced[sizeof...(Reduced) - 1];
template <class F, class... Args>
inline constexpr bool row_function<MapNode<F, Args...>> = (row_function<Args> || ...) &&
                                                          ((row_function<Args> ||
                                                            std::is_same_v<Args, ScalarNode>)&&...);

template <class F, class... Args, class C, int S>
struct Bound<MapNode<F, Args...>, C, S> : BoundMap<F, C, S, Args...> {
  using BoundMap<F, C, S, Args...>::BoundMap;
};

/// A row function is computed once for a block that lies in one row.
template <class F, class... Args, class C, int S>
requires(row_function<MapNode<F, Args...>> && !F::gives_mask) struct Bound<MapNode<F, Args...>, C, S>
    : BoundMap<F, C, S, Args...> {
  using Base = BoundMap<F, C, S, Args...>;
  using Base::Base;
  using Cursor = typename BoundLeaf<C, C, S>::Cursor;

  struct Reader {
    typename Base::Reader inner;
    Index step = -1;
    alignas(64) C buffer[block_size];

    explicit Reader(const Bound& bound) : inner(bound) {}
    void load(const Block& block) {
      inner.load(block);
      step = inner.constant() ? 0 : -1;
      if (step == 0)
        inner.cursor().at(0, std::false_type{}).store(buffer);
      else
        compute<C>(inner.cursor(), block.size(), buffer);
      if (step != 0) pad(buffer, block.size());
    }
    bool constant() const { return step == 0; }
    Cursor cursor() const { return {buffer, step}; }
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
    bool plain() const { return inner.plain(); }
    template <class Plain>
    auto at(Index i, Plain plain) const {
      return as_lanes(inner.at(i, plain));
    }
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
    bool constant() const { return std::is_same_v<To, From> && inner.constant(); }
    Cursor cursor() const {
      if constexpr (std::is_same_v<To, From>)
        return {inner.cursor()};
      else
        return {buffer, -1};
    }
  };
};

}  // namespace diffmamba::detail
