// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::is_const_v, std::is_convertible_v
#include <utility>      // std::forward

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/error.hpp"
#include "diffmamba/device/device.hpp"
#include "diffmamba/tensor/extents.hpp"

namespace diffmamba {

/// Memory of somebody else, seen as a strided tensor: a pointer, sizes and strides. Trivially copyable; copying or
/// assigning a view makes it look elsewhere and moves no element (`assign` writes elements). A default-constructed view
/// is absent: false in a condition, which is how optional operator inputs are left out. A view of an empty tensor is
/// present. `View<const T, Rank>` reads only; a View<T> converts to it.
///
///   View<float, 2> mine(pointer, {64, 256});            // your memory, no copy
///   auto right = mine.template slice<1>(128, 256);      // (64, 128), strided
template <class T, int Rank, Device DeviceType = cpu>
class View {
 public:
  using value_type = std::remove_const_t<T>;
  using element_type = T;
  using device_type = DeviceType;
  static constexpr int rank = Rank;

  View() = default;
  /// Dense row-major memory.
  DIFFMAMBA_HOST_DEVICE View(T* data, const Extents<Rank>& extents)
      : data_(data), extents_(extents), strides_(row_major(extents)) {}
  DIFFMAMBA_HOST_DEVICE View(T* data, const Extents<Rank>& extents, const Strides<Rank>& strides)
      : data_(data), extents_(extents), strides_(strides) {}
  /// Reading view of a writable one.
  template <class Writable>
    requires(std::is_same_v<const Writable, T> && !std::is_const_v<Writable>)
  DIFFMAMBA_HOST_DEVICE View(const View<Writable, Rank, DeviceType>& other)
      : data_(other.data()), extents_(other.extents()), strides_(other.strides()) {}

  DIFFMAMBA_HOST_DEVICE explicit operator bool() const { return data_ != nullptr; }
  DIFFMAMBA_HOST_DEVICE T* data() const { return data_; }
  DIFFMAMBA_HOST_DEVICE const Extents<Rank>& extents() const { return extents_; }
  DIFFMAMBA_HOST_DEVICE const Strides<Rank>& strides() const { return strides_; }
  DIFFMAMBA_HOST_DEVICE Index extent(int axis) const { return extents_[axis]; }
  DIFFMAMBA_HOST_DEVICE Index stride(int axis) const { return strides_[axis]; }
  DIFFMAMBA_HOST_DEVICE Index size() const { return extents_.size(); }

  /// Whether the elements lie densely in row-major order (axes of one element may have any stride).
  DIFFMAMBA_HOST_DEVICE bool contiguous() const {
    Index step = 1;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      if (extents_[axis] != 1 && strides_[axis] != step) return false;
      step *= extents_[axis];
    }
    return true;
  }

  /// One element; the index is not checked. On the host only for tensors in host memory.
  template <class... Indices>
    requires(sizeof...(Indices) == Rank)
  DIFFMAMBA_HOST_DEVICE T& operator()(Indices... index) const {
    return *pointer(index...);
  }
  /// Address of an element, or with fewer indices of a sub-tensor.
  template <class... Indices>
    requires(sizeof...(Indices) <= Rank)
  DIFFMAMBA_HOST_DEVICE T* pointer(Indices... index) const {
    [[maybe_unused]] int axis = 0;
    Index offset = 0;
    ((offset += static_cast<Index>(index) * strides_[axis++]), ...);
    return data_ + offset;
  }

  /// Indices [begin, end) of an axis.
  template <int Axis>
  View slice(Index begin, Index end) const {
    static_assert(0 <= Axis && Axis < Rank, "slice: the tensor has no such axis");
    require(0 <= begin && begin <= end && end <= extents_[Axis], "slice: [", begin, ", ", end, ") of axis ", Axis,
            " of a tensor ", extents_);
    View result = *this;
    result.data_ += begin * strides_[Axis];
    result.extents_[Axis] = end - begin;
    return result;
  }
  /// One index of an axis, which disappears.
  template <int Axis>
  View<T, Rank - 1, DeviceType> select(Index index) const {
    static_assert(0 <= Axis && Axis < Rank, "select: the tensor has no such axis");
    require(0 <= index && index < extents_[Axis], "select: index ", index, " of axis ", Axis, " of a tensor ", extents_);
    Extents<Rank - 1> extents;
    Strides<Rank - 1> strides;
    for (int axis = 0, kept = 0; axis < Rank; ++axis) {
      if (axis == Axis) continue;
      extents[kept] = extents_[axis];
      strides[kept++] = strides_[axis];
    }
    return {data_ + index * strides_[Axis], extents, strides};
  }
  /// The same elements with the axes in another order: permute<1, 0>() is the transpose.
  template <int... Axes>
  View permute() const {
    static_assert(sizeof...(Axes) == Rank, "permute: name every axis once");
    View result = *this;
    int to = 0;
    ((result.extents_[to] = extents_[Axes], result.strides_[to] = strides_[Axes], ++to), ...);
    return result;
  }
  /// The same elements with other sizes, in row-major order. Axes may be split and, where they lie densely behind one
  /// another, merged; throws where that would need a copy.
  template <int NewRank>
  View<T, NewRank, DeviceType> reshape(const Extents<NewRank>& extents) const {
    require(extents.size() == size(), "reshape: a tensor ", extents_, " cannot have the sizes ", extents);
    if (size() == 0 || contiguous()) return {data_, extents};
    Strides<NewRank> strides;
    int from = Rank - 1, to = NewRank - 1;
    while (from >= 0 || to >= 0) {
      // Grow a group of old axes and a group of new axes until they hold the same number of elements.
      while (from >= 0 && extents_[from] == 1) --from;
      if (from < 0) {
        while (to >= 0) strides[to--] = 1;  // only axes of one element are left
        break;
      }
      Index have = extents_[from], want = 1, step = strides_[from];
      int first = from;
      Index new_step = step;
      while (to >= 0 && want < have) {
        strides[to] = new_step;
        new_step *= extents[to];
        want *= extents[to--];
        while (have < want) {
          const int next = first - 1;
          require(next >= 0 && (extents_[next] == 1 || strides_[next] == strides_[first] * extents_[first]),
                  "reshape: a strided tensor ", extents_, " cannot be seen as ", extents, " without a copy");
          have *= extents_[next];
          first = next;
        }
      }
      require(want == have, "reshape: a strided tensor ", extents_, " cannot be seen as ", extents, " without a copy");
      while (to >= 0 && extents[to] == 1) strides[to--] = 1;
      from = first - 1;
    }
    return {data_, extents, strides};
  }

 private:
  T* data_ = nullptr;
  Extents<Rank> extents_;
  Strides<Rank> strides_;
};

/// An operator input that cannot be left out: a View without a default constructor, so that an Inputs aggregate which
/// does not name it does not compile.
template <class T, int Rank, Device DeviceType = cpu>
class RequiredView : public View<T, Rank, DeviceType> {
 public:
  using Base = View<T, Rank, DeviceType>;
  RequiredView() = delete;
  RequiredView(const Base& view) : Base(view) {}
  /// Whatever converts to the view: a tensor, a view of writable elements.
  template <class Source>
    requires(std::is_convertible_v<Source &&, Base> && !std::is_base_of_v<RequiredView, std::remove_cvref_t<Source>>)
  RequiredView(Source&& source) : Base(std::forward<Source>(source)) {}
};

}  // namespace diffmamba
