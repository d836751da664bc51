// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::is_convertible_v
#include <utility>      // std::forward

#include "diffmamba/tensor/view.hpp"

namespace diffmamba {

/// Activations (batch, length, channels) whose channels lie in one piece or in several equal ones, given as
/// (batch, length, paths, channels / paths): the two paths of a differential block in the output of their common input
/// projection. Made from a tensor or view of either rank. The last axis is dense, the others have any strides.
template <class T, Device DeviceType = cpu>
class ChannelView {
 public:
  using element_type = T;
  using Pieces = View<T, 4, DeviceType>;
  using Whole = View<T, 3, DeviceType>;

  /// Absent.
  ChannelView() = default;
  template <class Source>
  requires(std::is_convertible_v<Source, Whole> || std::is_convertible_v<Source, Pieces>) ChannelView(Source&& source) {
    if constexpr (std::is_convertible_v<Source, Pieces>) {
      view_ = std::forward<Source>(source);
    } else {
      const Whole view = std::forward<Source>(source);
      view_ = Pieces(view.data(), {view.extent(0), view.extent(1), Index{1}, view.extent(2)},
                     {view.stride(0), view.stride(1), view.extent(2), view.stride(2)});
    }
  }
  /// Reading view of a writable one.
  template <class Writable>
  requires(std::is_same_v<const Writable, T> && !std::is_const_v<Writable>)
      ChannelView(const ChannelView<Writable, DeviceType>& other)
      : view_(other.pieces()) {}

  explicit operator bool() const { return static_cast<bool>(view_); }
  /// (batch, length, paths, channels / paths)
  const Pieces& pieces() const { return view_; }
  /// The same cut into `count` pieces, a multiple of its own number that divides the channels.
  Pieces pieces(Index count) const {
    if (count == paths()) return view_;
    const Index size = channels() / count;
    require(paths() == 1 && size * count == channels(), "channels: ", paths(), " pieces of ", view_.extent(3),
            " channels cannot be cut into ", count);
    return {view_.data(),
            {view_.extent(0), view_.extent(1), count, size},
            {view_.stride(0), view_.stride(1), size, view_.stride(3)}};
  }
  /// (batch, length, channels)
  Extents<3> extents() const { return {view_.extent(0), view_.extent(1), channels()}; }
  Index extent(int axis) const { return extents()[axis]; }
  Index paths() const { return view_.extent(2); }
  Index channels() const { return view_.extent(2) * view_.extent(3); }

 private:
  Pieces view_;
};

/// A ChannelView that cannot be left out.
template <class T, Device DeviceType = cpu>
class RequiredChannelView : public ChannelView<T, DeviceType> {
 public:
  using Base = ChannelView<T, DeviceType>;
  RequiredChannelView() = delete;
  template <class Source>
  requires(std::is_convertible_v<Source&&, Base> &&
           !std::is_base_of_v<RequiredChannelView, std::remove_cvref_t<Source>>) RequiredChannelView(Source&& source)
      : Base(std::forward<Source>(source)) {}
};

}  // namespace diffmamba
