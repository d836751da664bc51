// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::copy_n, std::find
#include <array>        // std::array
#include <memory>       // std::shared_ptr
#include <string>       // std::string
#include <string_view>  // std::string_view
#include <vector>       // std::vector

#include "diffmamba/tensor/copy.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// Whether AdamW's weight decay applies: not to A_log, D, dt_bias, norms, biases and lambda.
enum class Decay { yes, no };

/// The memory of a parameter whatever its rank: values, gradients, and who owns them. It has none before it is asked
/// for, so that a model which binds its parameters into one flat arena allocates only that, and a model which only
/// infers never has gradients. Not thread-safe until both exist.
template <class T, Device DeviceType = cpu>
class ParameterMemory {
 public:
  using value_type = T;
  using device_type = DeviceType;

  ParameterMemory() = default;
  ParameterMemory(Index size, Decay decay) : size_(size), decay_(decay) {}
  /// Copies are deep and stand alone; they take the values, not the gradients.
  ParameterMemory(const ParameterMemory& other) : size_(other.size_), decay_(other.decay_) {
    if (other.value_ != nullptr) std::copy_n(other.value_, size_, value_data());
  }
  ParameterMemory(ParameterMemory&&) noexcept = default;
  ParameterMemory& operator=(const ParameterMemory& other) { return *this = ParameterMemory(other); }
  ParameterMemory& operator=(ParameterMemory&&) noexcept = default;

  Index size() const { return size_; }
  Decay decay() const { return decay_; }
  void set_decay(Decay decay) { decay_ = decay; }

  bool has_value() const { return value_ != nullptr; }
  bool has_gradient() const { return gradient_ != nullptr; }

  /// The values; zeros of its own if there were none.
  T* value_data() {
    if (value_ == nullptr) allocate(value_owner_, value_);
    return value_;
  }
  /// Throws Error where nothing was ever written: a module that was not initialised or loaded.
  const T* value_data() const {
    require(value_ != nullptr, "parameter: it has no values yet; initialize(module, Philox{seed}) or load them first");
    return value_;
  }
  /// The gradients; zeros of its own if there were none.
  T* gradient_data() {
    if (gradient_ == nullptr) allocate(gradient_owner_, gradient_);
    return gradient_;
  }
  /// Null if there are none.
  const T* gradient_data() const { return gradient_; }

  /// Moves the values (if there are any) into memory that `owner` keeps alive.
  void bind_value(T* data, std::shared_ptr<void> owner) { move_to(data, std::move(owner), value_owner_, value_); }
  void bind_gradient(T* data, std::shared_ptr<void> owner) {
    move_to(data, std::move(owner), gradient_owner_, gradient_);
  }

 private:
  void allocate(std::shared_ptr<void>& owner, T*& data) const {
    auto tensor = std::make_shared<Tensor<T, 1, DeviceType>>(Extents<1>(size_));
    data = tensor->data();
    owner = std::move(tensor);
  }
  void move_to(T* data, std::shared_ptr<void> owner, std::shared_ptr<void>& old_owner, T*& old_data) const {
    if (old_data != nullptr && old_data != data) std::copy_n(old_data, size_, data);
    old_data = data;
    old_owner = std::move(owner);
  }

  T* value_ = nullptr;
  T* gradient_ = nullptr;
  std::shared_ptr<void> value_owner_, gradient_owner_;
  Index size_ = 0;
  Decay decay_ = Decay::yes;
};

/// A weight and its gradient, dense and row-major. A default-constructed one is absent (a bias that is switched off).
///
///   dm::Parameter<float, 2> weight({64, 256});
///   weight.value()(3, 5) = 1.0f;                     // View<float, 2>
///   weight.gradient();                               // the same shape, zero until a backward pass adds to it
template <class T, int Rank, Device DeviceType = cpu>
class Parameter : public ParameterMemory<T, DeviceType> {
  using Memory = ParameterMemory<T, DeviceType>;

 public:
  static constexpr int rank = Rank;

  Parameter() = default;
  explicit Parameter(const Extents<Rank>& extents, Decay decay = Decay::yes)
      : Memory(extents.size(), decay), extents_(extents), present_(true) {}

  explicit operator bool() const { return present_; }
  const Extents<Rank>& extents() const { return extents_; }
  Index extent(int axis) const { return extents_[axis]; }

  /// An absent parameter gives an absent view, which is how operators take what may be left out.
  View<T, Rank, DeviceType> value() {
    if (!present_) return {};
    return {this->value_data(), extents_};
  }
  View<const T, Rank, DeviceType> value() const {
    if (!present_) return {};
    return {this->value_data(), extents_};
  }
  View<T, Rank, DeviceType> gradient() {
    if (!present_) return {};
    return {this->gradient_data(), extents_};
  }
  View<const T, Rank, DeviceType> gradient() const {
    if (!present_ || !this->has_gradient()) return {};
    return {this->gradient_data(), extents_};
  }

  // What visit(f) hands out has these too, whether it is a Parameter or a ParameterPart.

  /// Takes the values of a tensor of this shape, of any element type. Throws Error if the shapes differ.
  template <class U>
  void copy_from(const View<U, Rank, DeviceType>& from) {
    copy(from, value());
  }
  template <class U>
  void copy_from(const Tensor<U, Rank, DeviceType>& from) {
    copy_from(from.view());
  }
  Tensor<T, Rank, DeviceType> to_tensor() const { return diffmamba::to_tensor(value()); }
  /// Zeros if there is no gradient.
  Tensor<T, Rank, DeviceType> gradient_to_tensor() const {
    if (!this->has_gradient()) return Tensor<T, Rank, DeviceType>(extents_);
    return diffmamba::to_tensor(gradient());
  }
  Memory& memory() { return *this; }
  const Memory& memory() const { return *this; }

 private:
  Extents<Rank> extents_;
  bool present_ = false;
};

/// A run of rows of an official tensor and where the first of them lies in the stored one.
struct RowBlock {
  Index rows = 0;
  Index offset = 0;  // in elements
};

/// A tensor of the official checkpoints that lies in blocks of rows inside a larger stored parameter. The two paths of
/// a differential mixer are stored stacked by role (all z, then all x, then all B, ...), so that one matrix product
/// computes both and every operator reads its result with plain strides; m1.in_proj.weight is then a list of row
/// blocks. Exists only while visit(f) runs; offers what Parameter offers there.
template <class Memory, int Rank>
class ParameterPart {
 public:
  using value_type = typename Memory::value_type;
  using device_type = typename Memory::device_type;
  using T = value_type;
  static constexpr int rank = Rank;
  static constexpr int max_blocks = 8;

  /// A part of one block of consecutive rows.
  ParameterPart(Memory& memory, const Extents<Rank>& extents, Index offset)
      : ParameterPart(memory, extents, std::array<RowBlock, 1>{{{Rank > 0 ? extents[0] : 1, offset}}}) {}
  template <std::size_t Count>
  ParameterPart(Memory& memory, const Extents<Rank>& extents, const std::array<RowBlock, Count>& blocks)
      : memory_(&memory), extents_(extents), block_count_(static_cast<int>(Count)) {
    static_assert(Count <= max_blocks, "ParameterPart: more blocks than it can hold");
    for (std::size_t i = 0; i < Count; ++i) blocks_[i] = blocks[i];
  }

  const Extents<Rank>& extents() const { return extents_; }
  Index size() const { return extents_.size(); }
  Decay decay() const { return memory_->decay(); }
  Memory& memory() const { return *memory_; }

  template <class U>
  void copy_from(const View<U, Rank, device_type>& from) {
    require(from.extents() == extents_, "parameter: copy_from a tensor ", from.extents(), " to one ", extents_);
    Index row = 0;
    for_each_block([&](const RowBlock& block, const Extents<Rank>& shape) {
      copy(from.template slice<0>(row, row + block.rows),
           View<T, Rank, device_type>(memory_->value_data() + block.offset, shape));
      row += block.rows;
    });
  }
  template <class U>
  void copy_from(const Tensor<U, Rank, device_type>& from) {
    copy_from(from.view());
  }
  Tensor<T, Rank, device_type> to_tensor() const { return gather(std::as_const(*memory_).value_data()); }
  Tensor<T, Rank, device_type> gradient_to_tensor() const {
    if (!memory_->has_gradient()) return Tensor<T, Rank, device_type>(extents_);
    return gather(std::as_const(*memory_).gradient_data());
  }

 private:
  template <class F>
  void for_each_block(F&& f) const {
    for (int i = 0; i < block_count_; ++i) {
      Extents<Rank> shape = extents_;
      shape[0] = blocks_[static_cast<std::size_t>(i)].rows;
      f(blocks_[static_cast<std::size_t>(i)], shape);
    }
  }
  Tensor<T, Rank, device_type> gather(const T* data) const {
    auto result = Tensor<T, Rank, device_type>::uninitialized(extents_);
    Index row = 0;
    for_each_block([&](const RowBlock& block, const Extents<Rank>& shape) {
      copy(View<const T, Rank, device_type>(data + block.offset, shape),
           result.template slice<0>(row, row + block.rows));
      row += block.rows;
    });
    return result;
  }

  Memory* memory_;
  Extents<Rank> extents_;
  std::array<RowBlock, max_blocks> blocks_;
  int block_count_;
};

/// The part of a parameter that a path owns: `parameter` stacks `paths` tensors of the given official shape.
template <class ParameterType, int Rank>
auto path_of(ParameterType& parameter, Index path, const Extents<Rank>& extents) {
  using Memory = std::remove_reference_t<decltype(parameter.memory())>;
  return ParameterPart<Memory, Rank>(parameter.memory(), extents, path * extents.size());
}

/// The same where the paths are stacked role by role: `roles` are the numbers of rows of each role in one path.
template <class ParameterType, int Rank, std::size_t Roles>
auto path_of(ParameterType& parameter, Index path, Index paths, const Extents<Rank>& extents,
             const std::array<Index, Roles>& roles) {
  using Memory = std::remove_reference_t<decltype(parameter.memory())>;
  const Index row_size = extents[0] > 0 ? extents.size() / extents[0] : 0;
  std::array<RowBlock, Roles> blocks;
  Index before = 0;  // rows of one path in the roles before
  for (std::size_t role = 0; role < Roles; ++role) {
    blocks[role] = {roles[role], (paths * before + path * roles[role]) * row_size};
    before += roles[role];
  }
  return ParameterPart<Memory, Rank>(parameter.memory(), extents, blocks);
}

/// What every module inherits, `struct MyMixer : Module<MyMixer>`: it names its parameters once, in
///
///   template <class Self, class F>
///   static void parameters(Self& self, F&& f) { f("in_proj.weight", self.in_proj.weight); ... }
///
/// which serves const and non-const modules.
template <class Derived>
class Module {
 public:
  /// Calls f(std::string_view name, auto& parameter) for every parameter, under the names of the official checkpoints.
  /// `parameter` is a Parameter or a ParameterPart: extents(), size(), decay(), copy_from(), to_tensor(),
  /// gradient_to_tensor(), memory(). The name lives as long as the call.
  template <class F>
  void visit(F&& f) {
    Derived::parameters(static_cast<Derived&>(*this), f);
  }
  template <class F>
  void visit(F&& f) const {
    Derived::parameters(static_cast<const Derived&>(*this), f);
  }

  Index parameter_count() const {
    Index count = 0;
    visit([&](std::string_view, auto& parameter) { count += parameter.size(); });
    return count;
  }
  void zero_gradients() {
    visit([](std::string_view, auto& parameter) {
      if (auto& memory = parameter.memory(); memory.has_gradient())
        std::fill_n(memory.gradient_data(), memory.size(),
                    typename std::remove_cvref_t<decltype(memory)>::value_type{});
    });
  }
};

/// A visitor for a module inside a module: visit(prefixed("mixer.", f)).
template <class F>
auto prefixed(std::string prefix, F& f) {
  return [prefix = std::move(prefix), &f](std::string_view name, auto& parameter) {
    std::string full = prefix;
    full += name;
    f(std::string_view(full), parameter);
  };
}

/// All parameters of a module in one dense array of values and one of gradients, each parameter aligned to 64 bytes,
/// what lies between them zero: for the optimizer, the global norm, checkpoints and all-reduce. The module's parameters
/// keep the arrays alive.
template <class T, Device DeviceType = cpu>
struct FlatParameters {
  struct Segment {
    Index offset, size;  // in elements
    Decay decay;
  };
  std::vector<Segment> segments;
  Index size = 0;
  std::shared_ptr<Tensor<T, 1, DeviceType>> value_memory, gradient_memory;

  View<T, 1, DeviceType> values() const { return value_memory->view(); }
  /// Absent before bind_gradients.
  View<T, 1, DeviceType> gradients() const {
    return gradient_memory ? gradient_memory->view() : View<T, 1, DeviceType>{};
  }
};

namespace detail {
/// Every stored parameter once, in the order of its first name: a parameter that is visited under several names (the
/// paths of a differential mixer, a tied weight) is one piece of memory.
template <class ModuleType>
auto stored_parameters(ModuleType& module) {
  std::vector<ParameterMemory<typename ModuleType::value_type, typename ModuleType::device_type>*> found;
  module.visit([&](std::string_view, auto& parameter) {
    auto* memory = &parameter.memory();
    if (std::find(found.begin(), found.end(), memory) == found.end()) found.push_back(memory);
  });
  return found;
}
}  // namespace detail

/// Moves all parameters of a module into one flat array of values: the first visit adds up the sizes, the second moves
/// the values there.
template <class ModuleType>
auto bind(ModuleType& module) {
  using T = typename ModuleType::value_type;
  using D = typename ModuleType::device_type;
  constexpr Index unit = static_cast<Index>(64 / sizeof(T));
  const auto parameters = detail::stored_parameters(module);
  FlatParameters<T, D> flat;
  for (const auto* parameter : parameters) {
    flat.segments.push_back({flat.size, parameter->size(), parameter->decay()});
    flat.size += tiles_of(parameter->size(), unit) * unit;
  }
  flat.value_memory = std::make_shared<Tensor<T, 1, D>>(Extents<1>(flat.size));
  for (std::size_t i = 0; i < parameters.size(); ++i)
    parameters[i]->bind_value(flat.value_memory->data() + flat.segments[i].offset, flat.value_memory);
  return flat;
}

/// Gives the same module, bound before, one flat array of gradients: zero, or what its parameters held.
template <class ModuleType, class T, Device DeviceType>
void bind_gradients(ModuleType& module, FlatParameters<T, DeviceType>& flat) {
  if (flat.gradient_memory) return;
  const auto parameters = detail::stored_parameters(module);
  require(parameters.size() == flat.segments.size(), "bind_gradients: the module has ", parameters.size(),
          " parameters, bind saw ", flat.segments.size());
  flat.gradient_memory = std::make_shared<Tensor<T, 1, DeviceType>>(Extents<1>(flat.size));
  for (std::size_t i = 0; i < parameters.size(); ++i)
    parameters[i]->bind_gradient(flat.gradient_memory->data() + flat.segments[i].offset, flat.gradient_memory);
}

/// A required option: leaving it out does not compile. `struct Options { Required<Index> d_model; ... };`
template <class T>
class Required {
 public:
  Required() = delete;
  template <class U>
  requires(std::is_convertible_v<U, T>) constexpr Required(U value) : value_(static_cast<T>(value)) {}
  constexpr operator T() const { return value_; }
  constexpr T get() const { return value_; }

 private:
  T value_;
};

}  // namespace diffmamba
