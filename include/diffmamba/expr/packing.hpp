// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>      // std::memcpy
#include <type_traits>  // std::is_same_v

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/tensor/extents.hpp"

// How elements travel between strided memory and a block: at most 1024 elements, side by side in the L1 cache.

namespace diffmamba::detail {

inline constexpr int block_size = 1024;

/// A part of an index space: some columns (of the last axis) of some rows (all other axes, counted as one in row-major
/// order).
struct Block {
  Index row = 0, column = 0;
  int rows = 1, columns = 1;
  int size() const { return rows * columns; }
};

template <class To, class From>
inline To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<To, bfloat16> || std::is_same_v<To, half>)
    return To(static_cast<float>(x));
  else if constexpr (std::is_same_v<To, bool>)
    return x != From(0);
  else
    return static_cast<To>(x);
}

/// Elements that lie side by side on both ends. In pieces of a fixed length, which every compiler turns into SIMD code.
template <class To, class From>
inline void convert_row(To* to, const From* from, Index count) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(To));
  } else {
    Index i = 0;
    for (; i + 16 <= count; i += 16)
      for (int k = 0; k < 16; ++k) to[i + k] = convert<To>(from[i + k]);
    for (; i < count; ++i) to[i] = convert<To>(from[i]);
  }
}

/// `Columns` known when compiled: rows this short would otherwise cost more to loop over than to copy.
template <int Columns, class To, class From>
inline void convert_short_rows(To* to, Index to_step, const From* from, Index from_step, Index rows) {
  for (Index r = 0; r < rows; ++r, to += to_step, from += from_step)
    for (int c = 0; c < Columns; ++c) to[c] = convert<To>(from[c]);
}
template <int Columns, class To, class From>
inline void repeat_short_rows(To* to, const From* from, Index from_step, Index rows) {
  for (Index r = 0; r < rows; ++r, to += Columns, from += from_step) {
    const To value = convert<To>(*from);
    for (int c = 0; c < Columns; ++c) to[c] = value;
  }
}

/// rows x columns from anywhere to anywhere.
template <class To, class From>
inline void convert_box(To* to, Index to_row, Index to_column, const From* from, Index from_row, Index from_column,
                        Index rows, Index columns) {
  if (to_column == 1 && from_column == 1) {
    if (rows == 1 || (to_row == columns && from_row == columns)) return convert_row(to, from, rows * columns);
    switch (columns) {
      case 1:
        break;
      case 2:
        return convert_short_rows<2>(to, to_row, from, from_row, rows);
      case 4:
        return convert_short_rows<4>(to, to_row, from, from_row, rows);
      case 8:
        return convert_short_rows<8>(to, to_row, from, from_row, rows);
      case 16:
        return convert_short_rows<16>(to, to_row, from, from_row, rows);
      default:
        for (Index r = 0; r < rows; ++r) convert_row(to + r * to_row, from + r * from_row, columns);
        return;
    }
  }
  if (to_column == 1 && to_row == columns && from_column == 0) {  // one element per row, repeated
    switch (columns) {
      case 2:
        return repeat_short_rows<2>(to, from, from_row, rows);
      case 4:
        return repeat_short_rows<4>(to, from, from_row, rows);
      case 8:
        return repeat_short_rows<8>(to, from, from_row, rows);
      case 16:
        return repeat_short_rows<16>(to, from, from_row, rows);
      case 32:
        return repeat_short_rows<32>(to, from, from_row, rows);
      default:
        for (Index r = 0; r < rows; ++r, to += columns) {
          const To value = convert<To>(from[r * from_row]);
          for (Index c = 0; c < columns; ++c) to[c] = value;
        }
        return;
    }
  }
  if (from_row == 1 && rows > 1) {  // a transposed operand: read along its memory
    for (Index c = 0; c < columns; ++c)
      for (Index r = 0; r < rows; ++r) to[r * to_row + c * to_column] = convert<To>(from[r + c * from_column]);
    return;
  }
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < columns; ++c)
      to[r * to_row + c * to_column] = convert<To>(from[r * from_row + c * from_column]);
}

/// Calls visit(address, position, rows) for runs of rows of a block that are `strides[Rank - 2]` apart in memory;
/// position counts rows from the block's first.
template <int Rank, class T, class Visit>
inline void for_each_run(T* data, const Strides<Rank>& strides, const Extents<Rank>& extents, const Block& block,
                         Visit&& visit) {
  data += block.column * strides[Rank - 1];
  if constexpr (Rank == 1) {
    visit(data, 0, block.rows);
  } else {
    Index index[Rank - 1], rest = block.row;
    for (int a = Rank - 2; a > 0; --a) {
      index[a] = rest % extents[a];
      rest /= extents[a];
      data += index[a] * strides[a];
    }
    index[0] = rest;
    data += rest * strides[0];
    for (int position = 0;;) {
      const Index until_wrap = extents[Rank - 2] - index[Rank - 2];
      const int run = until_wrap < block.rows - position ? static_cast<int>(until_wrap) : block.rows - position;
      visit(data, position, run);
      position += run;
      if (position == block.rows) return;
      index[Rank - 2] += run;
      data += run * strides[Rank - 2];
      for (int a = Rank - 2; a > 0 && index[a] == extents[a]; --a) {
        index[a] = 0;
        data += strides[a - 1] - extents[a] * strides[a];
        ++index[a - 1];
      }
    }
  }
}

template <int Rank>
inline Index row_step(const Strides<Rank>& strides) {
  if constexpr (Rank > 1)
    return strides[Rank - 2];
  else
    return 0;
}

/// A block of strided memory, packed.
template <int Rank, class To, class From>
inline void gather(To* to, const From* from, const Strides<Rank>& strides, const Extents<Rank>& extents,
                   const Block& block) {
  for_each_run(from, strides, extents, block, [&](const From* run, int position, int rows) {
    convert_box(to + position * block.columns, block.columns, 1, run, row_step(strides), strides[Rank - 1], rows,
                block.columns);
  });
}

/// A packed block into strided memory.
template <int Rank, class To, class From>
inline void scatter(To* to, const From* from, const Strides<Rank>& strides, const Extents<Rank>& extents,
                    const Block& block) {
  for_each_run(to, strides, extents, block, [&](To* run, int position, int rows) {
    convert_box(run, row_step(strides), strides[Rank - 1], from + position * block.columns, block.columns, 1, rows,
                block.columns);
  });
}

/// Merges axes that lie behind one another in every layout (and drops those of one element), so that most tensors end
/// up with one or two axes, at the back. Axes merge only within a group (kept and reduced axes of a reduction stay
/// apart). `each` calls its argument with the strides of every layout.
template <int Rank, class Each>
void collapse(Extents<Rank>& extents, int (&group)[Rank], Each&& each) {
  int to = Rank - 1;
  for (int a = Rank - 2; a >= 0; --a) {
    if (extents[a] == 1) continue;
    bool mergeable = group[a] == group[to];
    if (mergeable && extents[to] > 1)
      each([&](const Strides<Rank>& s) { mergeable = mergeable && s[a] == s[to] * extents[to]; });
    if (mergeable) {
      if (extents[to] == 1) each([&](Strides<Rank>& s) { s[to] = s[a]; });
      extents[to] *= extents[a];
    } else {
      --to;
      extents[to] = extents[a];
      group[to] = group[a];
      if (to != a) each([&](Strides<Rank>& s) { s[to] = s[a]; });
    }
  }
  for (int a = 0; a < to; ++a) {
    extents[a] = 1;
    group[a] = group[to];
    each([&](Strides<Rank>& s) { s[a] = 0; });
  }
}

}  // namespace diffmamba::detail
