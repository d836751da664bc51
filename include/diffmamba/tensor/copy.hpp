// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::copy_n

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// Copies elements between views of equal shape, any strides; converts between element types, rounding once.
/// Threaded over rows of the last axis. Throws Error if the shapes differ.
template <class From, class To, int Rank>
void copy(const View<From, Rank, cpu>& from, const View<To, Rank, cpu>& to) {
  static_assert(!std::is_const_v<To>, "copy: the target cannot be written");
  require(from.extents() == to.extents(), "copy: from ", from.extents(), " to ", to.extents());
  using Source = std::remove_const_t<From>;
  const auto convert = [](Source value) {
    if constexpr (std::is_same_v<Source, To>)
      return value;
    else if constexpr (std::is_same_v<To, bfloat16> || std::is_same_v<To, half>)
      return To(static_cast<float>(value));
    else
      return static_cast<To>(value);
  };
  if (from.size() == 0) return;
  if constexpr (Rank == 0) {
    *to.data() = convert(*from.data());
  } else {
    Index length = from.extent(Rank - 1), rows = from.size() / length;
    Extents<Rank> extents = from.extents();
    if (from.contiguous() && to.contiguous()) {  // one long row, cut evenly
      constexpr Index tile = 1 << 14;
      const Index size = from.size();
      parallel_for(tiles_of(size, tile), [&](Index t) {
        const Index begin = t * tile, end = begin + tile < size ? begin + tile : size;
        for (Index i = begin; i < end; ++i) to.data()[i] = convert(from.data()[i]);
      });
      return;
    }
    const Index rows_per_tile = length >= (1 << 14) ? 1 : (1 << 14) / length;
    parallel_for(tiles_of(rows, rows_per_tile), [&](Index t) {
      const Index last = (t + 1) * rows_per_tile < rows ? (t + 1) * rows_per_tile : rows;
      for (Index row = t * rows_per_tile; row < last; ++row) {
        Index rest = row, source = 0, target = 0;
        for (int axis = Rank - 2; axis >= 0; --axis) {
          const Index index = rest % extents[axis];
          rest /= extents[axis];
          source += index * from.stride(axis);
          target += index * to.stride(axis);
        }
        const From* a = from.data() + source;
        To* b = to.data() + target;
        const Index sa = from.stride(Rank - 1), sb = to.stride(Rank - 1);
        for (Index i = 0; i < length; ++i) b[i * sb] = convert(a[i * sa]);
      }
    });
  }
}

/// The same between views on one GPU, in the order of the current stream. Defined in tensor/copy.cuh.
template <class From, class To, int Rank>
void copy(const View<From, Rank, cuda>& from, const View<To, Rank, cuda>& to);

/// Between the host and a GPU. What is not dense, or changes its type, is first made dense where it comes from, or
/// written through a dense copy where it goes. Returns when the host's side is done with.
template <class From, class To, int Rank, Device FromDevice, Device ToDevice>
requires(!std::is_same_v<FromDevice, ToDevice>) void copy(const View<From, Rank, FromDevice>& from,
                                                          const View<To, Rank, ToDevice>& to) {
  static_assert(!std::is_const_v<To>, "copy: the target cannot be written");
  require(from.extents() == to.extents(), "copy: from ", from.extents(), " to ", to.extents());
  if (from.size() == 0) return;
  if (std::is_same_v<std::remove_const_t<From>, To> && from.contiguous()) {
    if (to.contiguous()) {
      cuda_runtime::copy_bytes(from.data(), to.data(), static_cast<std::size_t>(from.size()) * sizeof(To));
    } else {
      auto arrived = Tensor<To, Rank, ToDevice>::uninitialized(from.extents());
      cuda_runtime::copy_bytes(from.data(), arrived.data(), static_cast<std::size_t>(from.size()) * sizeof(To));
      copy(arrived.view(), to);
    }
    return;
  }
  auto dense = Tensor<To, Rank, FromDevice>::uninitialized(from.extents());
  copy(from, dense.view());
  copy(View<const To, Rank, FromDevice>(dense.view()), to);
}

/// Copies anything that converts to views: copy(tensor, other_tensor), copy(view, tensor).
template <class From, class To>
requires requires(From& from, To& to) {
  from.extents();
  to.extents();
  typename std::remove_cvref_t<To>::device_type;
}
void copy(From&& from, To&& to) {
  using FromView = std::remove_cvref_t<From>;
  using ToView = std::remove_cvref_t<To>;
  constexpr bool from_is_view = requires {
    typename FromView::element_type;
  };
  constexpr bool to_is_view = requires {
    typename ToView::element_type;
  };
  if constexpr (from_is_view && to_is_view)
    copy<typename FromView::element_type, typename ToView::element_type, FromView::rank>(from, to);
  else if constexpr (from_is_view)
    copy(from, to.view());
  else if constexpr (to_is_view)
    copy(from.view(), to);
  else
    copy(from.view(), to.view());
}

/// A dense tensor with the elements of a view, of the same or another element type, on the same device.
template <class To, class From, int Rank, Device D>
Tensor<To, Rank, D> to_tensor(const View<From, Rank, D>& from) {
  auto result = Tensor<To, Rank, D>::uninitialized(from.extents());
  copy(from, result.view());
  return result;
}
template <int Rank, class From, Device D>  // Rank first: to_tensor<float>(view) can only mean the one above
Tensor<std::remove_const_t<From>, Rank, D> to_tensor(const View<From, Rank, D>& from) {
  return to_tensor<std::remove_const_t<From>>(from);
}

/// The same tensor on another device: to<cuda>(x), to<cpu>(y).
template <Device To, class T, int Rank, Device From>
Tensor<std::remove_const_t<T>, Rank, To> to(const View<T, Rank, From>& from) {
  auto result = Tensor<std::remove_const_t<T>, Rank, To>::uninitialized(from.extents());
  copy(from, result.view());
  return result;
}
template <Device To, class T, int Rank, Device From>
Tensor<T, Rank, To> to(const Tensor<T, Rank, From>& from) {
  return to<To>(from.view());
}

}  // namespace diffmamba
