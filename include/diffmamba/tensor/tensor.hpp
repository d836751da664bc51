// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::is_trivially_copyable_v
#include <utility>      // std::exchange

#include "diffmamba/device/memory.hpp"
#include "diffmamba/tensor/view.hpp"

namespace diffmamba {

/// True for the nodes of floor expr; tensors can be made of and assigned from them, which evaluates them in one pass
/// (expr/evaluate.hpp defines evaluate_into, found by argument-dependent lookup).
template <class E>
inline constexpr bool is_expression = false;

#define DIFFMAMBA_STORED_EXPRESSION                                                                                  \
  "diffmamba: this expression was stored in a variable, and its operands may be gone by now; write it where it is "  \
  "assigned, or std::move(it) if they all still live"
#define DIFFMAMBA_OTHER_RANK \
  "diffmamba: an expression is assigned to a tensor of its own rank; assign(target, expression) broadcasts"

/// Owns dense row-major memory of a device, aligned to 64 bytes, from the device's arena. Copies are deep; a moved-from
/// tensor is empty. Converts to a View wherever one is taken.
template <class T, int Rank, Device DeviceType = cpu>
class Tensor {
  static_assert(!std::is_const_v<T> && std::is_trivially_copyable_v<T>, "Tensor holds plain, writable elements");

 public:
  using value_type = T;
  using device_type = DeviceType;
  static constexpr int rank = Rank;

  /// No elements and no memory. As a view it is absent.
  Tensor() = default;
  /// Every element zero. (A template, so that in Tensor<float, 1> x({256}) the braces can only be sizes: as a plain
  /// function it would compete with the copy of a tensor that is itself made of {256}.)
  template <class Sizes = Extents<Rank>>
    requires(std::is_same_v<Sizes, Extents<Rank>>)
  explicit Tensor(const Sizes& extents) : Tensor(uninitialized(extents)) {
    fill(T{});
  }
  Tensor(const Extents<Rank>& extents, T value) : Tensor(uninitialized(extents)) { fill(value); }
  /// For memory that is written before it is read.
  static Tensor uninitialized(const Extents<Rank>& extents) {
    for (int axis = 0; axis < Rank; ++axis)
      require(extents[axis] >= 0, "tensor: negative size in ", extents);
    Tensor result;
    result.extents_ = extents;
    result.data_ = static_cast<T*>(arena<DeviceType>().allocate(static_cast<std::size_t>(extents.size()) * sizeof(T)));
    return result;
  }

  Tensor(const Tensor& other) : Tensor() {
    if (other.data_ == nullptr) return;
    *this = uninitialized(other.extents_);
    copy_elements(DeviceType{}, other.data_, data_, size());
  }
  Tensor(Tensor&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), extents_(std::exchange(other.extents_, {})) {}
  Tensor& operator=(Tensor other) noexcept {
    std::swap(data_, other.data_);
    std::swap(extents_, other.extents_);
    return *this;
  }
  ~Tensor() { arena<DeviceType>().deallocate(data_); }

  /// Evaluates an expression (floor expr) in one fused pass. The expression is written here: one that was stored in a
  /// variable is refused when compiled, because its operands may be gone (expr/node.hpp says more).
  template <class E>
    requires(is_expression<std::remove_cvref_t<E>>)
  Tensor(E&& expression) : Tensor(uninitialized(expression.extents())) {
    static_assert(!std::is_lvalue_reference_v<E>, DIFFMAMBA_STORED_EXPRESSION);
    static_assert(std::remove_cvref_t<E>::rank == Rank, DIFFMAMBA_OTHER_RANK);
    evaluate_into(view(), expression);
  }
  /// Keeps its memory; throws Error if the expression has another shape. An empty tensor takes the expression's shape.
  template <class E>
    requires(is_expression<std::remove_cvref_t<E>>)
  Tensor& operator=(E&& expression) {
    static_assert(!std::is_lvalue_reference_v<E>, DIFFMAMBA_STORED_EXPRESSION);
    static_assert(std::remove_cvref_t<E>::rank == Rank, DIFFMAMBA_OTHER_RANK);
    if (data_ == nullptr) *this = uninitialized(expression.extents());
    evaluate_into(view(), expression);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T* begin() { return data_; }
  T* end() { return data_ + (data_ ? size() : 0); }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + (data_ ? size() : 0); }
  const Extents<Rank>& extents() const { return extents_; }
  Index extent(int axis) const { return extents_[axis]; }
  Strides<Rank> strides() const { return row_major(extents_); }
  Index size() const { return data_ ? extents_.size() : 0; }
  explicit operator bool() const { return data_ != nullptr; }

  View<T, Rank, DeviceType> view() { return {data_, extents_}; }
  View<const T, Rank, DeviceType> view() const { return {data_, extents_}; }
  operator View<T, Rank, DeviceType>() { return view(); }
  operator View<const T, Rank, DeviceType>() const { return view(); }

  /// One element; the index is not checked.
  template <class... Indices>
    requires(sizeof...(Indices) == Rank)
  T& operator()(Indices... index) {
    return view()(index...);
  }
  template <class... Indices>
    requires(sizeof...(Indices) == Rank)
  const T& operator()(Indices... index) const {
    return view()(index...);
  }

  void fill(T value) { fill_elements(DeviceType{}, data_, size(), value); }

  template <int Axis>
  auto slice(Index begin, Index end) {
    return view().template slice<Axis>(begin, end);
  }
  template <int Axis>
  auto slice(Index begin, Index end) const {
    return view().template slice<Axis>(begin, end);
  }
  template <int Axis>
  auto select(Index index) {
    return view().template select<Axis>(index);
  }
  template <int Axis>
  auto select(Index index) const {
    return view().template select<Axis>(index);
  }
  template <int NewRank>
  auto reshape(const Extents<NewRank>& extents) {
    return view().reshape(extents);
  }
  template <int NewRank>
  auto reshape(const Extents<NewRank>& extents) const {
    return view().reshape(extents);
  }

 private:
  T* data_ = nullptr;
  Extents<Rank> extents_;
};

/// The view of a tensor, or a view itself: what a function does first that takes either.
template <class T, int Rank, class D>
View<T, Rank, D> as_view(const View<T, Rank, D>& view) {
  return view;
}
template <class T, int Rank, class D>
View<T, Rank, D> as_view(Tensor<T, Rank, D>& tensor) {
  return tensor.view();
}
template <class T, int Rank, class D>
View<const T, Rank, D> as_view(const Tensor<T, Rank, D>& tensor) {
  return tensor.view();
}

/// The sizes of a tensor or view.
template <class TensorLike>
auto shape(const TensorLike& tensor) {
  return tensor.extents();
}

/// Checks that an optional or required operand has the sizes it must have: "conv: weight is (4, 3), expected (4, 2)".
template <class T, int Rank, class D>
void require_shape(const char* op, const char* name, const View<T, Rank, D>& view, const Extents<Rank>& expected) {
  if (view.extents() == expected) [[likely]]
    return;
  fail(op, ": ", name, " has the shape ", view.extents(), ", expected ", expected);
}

}  // namespace diffmamba
