// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::find
#include <array>        // std::array
#include <memory>       // std::shared_ptr
#include <optional>     // std::optional
#include <string>       // std::string
#include <string_view>  // std::string_view
#include <type_traits>  // std::conditional_t
#include <utility>      // std::as_const
#include <vector>       // std::vector

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// Whether AdamW's weight decay applies: not to A_log, D, dt_bias, norms, biases and lambda.
enum class Decay { yes, no };

/// The memory of a parameter whatever its rank. T is the type of sums, in which parameters are trained: the masters and
/// their gradients have it. Where operators read a 16-bit type instead there is a `shadow` too, the masters rounded,
/// which whoever writes masters renews (copy_from does, and the optimizer, in the same launch).
///
/// It has no memory before it is asked for, so that a model which binds its parameters into one flat arena allocates
/// only that, and a model which only infers never has gradients. Not thread-safe until all exist.
template <class T, Device DeviceType = cpu>
class ParameterMemory {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "parameters are trained in float or double");

 public:
  using value_type = T;
  using device_type = DeviceType;

  ParameterMemory() = default;
  /// `shadow`: the 16-bit type that operators read, or nothing where they read the masters.
  ParameterMemory(Index size, Decay decay, std::optional<Dtype> shadow = {})
      : size_(size), decay_(decay), shadow_dtype_(shadow) {}
  /// Copies are deep and stand alone; they take the values, not the gradients.
  ParameterMemory(const ParameterMemory& other)
      : size_(other.size_),
        decay_(other.decay_),
        shadow_dtype_(other.shadow_dtype_),
        released_(other.released_),
        written_whole_(other.written_whole_) {
    if (other.master_ != nullptr) {
      allocate<T>(master_owner_, master_);
      copy_elements(DeviceType{}, other.master_, master_, size_);
    }
    if (other.shadow_ != nullptr) copy_shadow(other, allocate_shadow());
  }
  ParameterMemory(ParameterMemory&&) noexcept = default;
  ParameterMemory& operator=(const ParameterMemory& other) { return *this = ParameterMemory(other); }
  ParameterMemory& operator=(ParameterMemory&&) noexcept = default;

  Index size() const { return size_; }
  Decay decay() const { return decay_; }
  void set_decay(Decay decay) { decay_ = decay; }
  std::optional<Dtype> shadow_dtype() const { return shadow_dtype_; }

  bool has_value() const { return master_ != nullptr || (released_ && shadow_ != nullptr); }
  bool has_gradient() const { return gradient_ != nullptr; }

  /// The masters; zeros of its own (shadow included) if there were none. Who writes here calls refresh_shadow.
  T* value_data() {
    require_masters();
    if (master_ == nullptr) {
      allocate<T>(master_owner_, master_);
      if (shadow_dtype_) allocate_shadow();
    }
    return master_;
  }
  /// Throws Error where nothing was ever written: a module that was not initialised or loaded.
  const T* value_data() const {
    require_masters();
    require(master_ != nullptr, no_values);
    return master_;
  }
  /// What operators of the 16-bit type S read.
  template <class S>
  const S* shadow_data() const {
    require(shadow_dtype_ == dtype_of<S>, "parameter: it has no shadow of this type");
    require(shadow_ != nullptr, no_values);
    return static_cast<const S*>(shadow_);
  }
  /// The gradients; zeros of its own if there were none.
  T* gradient_data() {
    require_masters();
    if (gradient_ == nullptr) allocate<T>(gradient_owner_, gradient_);
    if (discarded_) fill_elements(DeviceType{}, gradient_, size_, T{});
    discarded_ = false;
    return gradient_;
  }
  /// Null if there are none.
  const T* gradient_data() const { return gradient_; }

  // A gradient that whoever computes it writes as a whole (a product's) need not be set to zero first: a discarded one
  // is zero by word alone, and the first who asks how to write it assigns.

  /// Says that every write of the gradient is of all of it, after asking gradient_mode or diffmamba::gradient_mode.
  void set_written_whole() { written_whole_ = true; }
  bool written_whole() const { return written_whole_; }
  /// Makes the gradient zero without writing it. Who reads it without gradient_data() must not before settle_gradient.
  void discard_gradient() { discarded_ = gradient_ != nullptr; }
  bool gradient_discarded() const { return discarded_; }
  /// How the next write has to be: it assigns where the gradient was discarded. The caller writes all of it.
  GradientMode gradient_mode() { return std::exchange(discarded_, false) ? GradientMode::assign : GradientMode::add; }
  /// Zeros where nobody has written since discard_gradient.
  void settle_gradient() {
    if (discarded_) (void)gradient_data();
  }

  /// Takes elements from `offset` on, of any type and from any device, and renews the shadow.
  template <class U, int Rank, Device From>
  void write(const View<U, Rank, From>& from, Index offset) {
    if (released_) {
      with_shadow(*this, [&](auto* shadow) {
        copy(from, View<std::remove_pointer_t<decltype(shadow)>, Rank, DeviceType>(shadow + offset, from.extents()));
      });
      return;
    }
    copy(from, View<T, Rank, DeviceType>(value_data() + offset, from.extents()));
    refresh_shadow(offset, from.size());
  }
  /// Elements from `offset` on, on the host. Without masters those of the shadow, widened.
  template <int Rank>
  void read(Index offset, const View<T, Rank, cpu>& to) const {
    if (released_)
      with_shadow(*this, [&](const auto* shadow) {
        using S = std::remove_cvref_t<decltype(*shadow)>;
        copy(View<const S, Rank, DeviceType>(shadow + offset, to.extents()), to);
      });
    else
      copy(View<const T, Rank, DeviceType>(value_data() + offset, to.extents()), to);
  }
  template <int Rank>
  void read_gradient(Index offset, const View<T, Rank, cpu>& to) const {
    copy(View<const T, Rank, DeviceType>(gradient_ + offset, to.extents()), to);
  }
  /// Rounds masters into the shadow, where there is one.
  void refresh_shadow() { refresh_shadow(0, size_); }

  /// Moves the values (if there are any) into memory that `owner` keeps alive.
  void bind_value(T* data, std::shared_ptr<void> owner) { move_to(data, std::move(owner), master_owner_, master_); }
  void bind_gradient(T* data, std::shared_ptr<void> owner) {
    move_to(data, std::move(owner), gradient_owner_, gradient_);
  }
  template <class S>
  void bind_shadow(S* data, std::shared_ptr<void> owner) {
    if (shadow_dtype_ != dtype_of<S>) return;
    S* before = static_cast<S*>(shadow_);
    move_to(data, std::move(owner), shadow_owner_, before);
    shadow_ = data;
  }
  /// For a model that only infers: no gradients, and no masters where there is a shadow; other values move to memory of
  /// their own. It cannot be trained any more.
  void release_masters() {
    gradient_ = nullptr;
    gradient_owner_.reset();
    if (shadow_dtype_) {
      require(shadow_ != nullptr, no_values);
      released_ = true;
      master_ = nullptr;
      master_owner_.reset();
    } else if (master_ != nullptr) {
      auto own = std::make_shared<Tensor<T, 1, DeviceType>>(Tensor<T, 1, DeviceType>::uninitialized(Extents<1>(size_)));
      T* data = own->data();
      bind_value(data, std::move(own));
    }
  }
  bool masters_released() const { return released_; }

 private:
  static constexpr const char* no_values =
      "parameter: it has no values yet; initialize(module, Philox{seed}) or load them first";

  void require_masters() const {
    require(!released_, "parameter: its masters were released for inference; it cannot be trained any more");
  }
  template <class E>
  void allocate(std::shared_ptr<void>& owner, E*& data) const {
    auto tensor = std::make_shared<Tensor<E, 1, DeviceType>>(Extents<1>(size_));
    data = tensor->data();
    owner = std::move(tensor);
  }
  template <class E>
  void move_to(E* data, std::shared_ptr<void> owner, std::shared_ptr<void>& old_owner, E*& old_data) const {
    if (old_data != nullptr && old_data != data) copy_elements(DeviceType{}, old_data, data, size_);
    old_data = data;
    old_owner = std::move(owner);
  }
  /// f(pointer) with the shadow's type, const or not as `self` is; nothing without a shadow. Only float has one.
  template <class Self, class F>
  static void with_shadow(Self& self, F&& f) {
    if constexpr (std::is_same_v<T, float>) {
      using Bfloat16 = std::conditional_t<std::is_const_v<Self>, const bfloat16, bfloat16>;
      using Half = std::conditional_t<std::is_const_v<Self>, const half, half>;
      if (self.shadow_dtype_ == Dtype::bfloat16)
        f(static_cast<Bfloat16*>(self.shadow_));
      else if (self.shadow_dtype_ == Dtype::float16)
        f(static_cast<Half*>(self.shadow_));
    }
  }
  void* allocate_shadow() {
    with_shadow(*this, [&](auto* data) {
      allocate(shadow_owner_, data);
      shadow_ = data;
    });
    return shadow_;
  }
  static void copy_shadow(const ParameterMemory& from, void* to) {
    with_shadow(from, [&](const auto* data) {
      copy_elements(DeviceType{}, data, static_cast<std::remove_cvref_t<decltype(*data)>*>(to), from.size_);
    });
  }
  void refresh_shadow(Index offset, Index count) {
    with_shadow(*this, [&](auto* shadow) {
      using S = std::remove_pointer_t<decltype(shadow)>;
      copy(View<const T, 1, DeviceType>(value_data() + offset, Extents<1>{count}),
           View<S, 1, DeviceType>(shadow + offset, Extents<1>{count}));
    });
  }

  T* master_ = nullptr;
  T* gradient_ = nullptr;
  void* shadow_ = nullptr;
  std::shared_ptr<void> master_owner_, gradient_owner_, shadow_owner_;
  Index size_ = 0;
  Decay decay_ = Decay::yes;
  std::optional<Dtype> shadow_dtype_;
  bool released_ = false, written_whole_ = false, discarded_ = false;
};

namespace detail {
/// What stands between an operator and the masters: nothing, or a shadow of its 16-bit type.
template <class T>
std::optional<Dtype> shadow_of() {
  if constexpr (std::is_same_v<T, accumulate_t<T>>)
    return std::nullopt;
  else
    return dtype_of<T>;
}
}  // namespace detail

/// A weight and its gradient, dense and row-major. A default-constructed one is absent (a bias that is switched off).
///
///   dm::Parameter<float, 2> weight({64, 256});
///   weight.value()(3, 5) = 1.0f;                     // View<float, 2>
///   weight.gradient();                               // the same shape, zero until a backward pass adds to it
///
/// T is the type that operators read: value() has it. Masters and gradients are of the type of sums, so that with a
/// 16-bit T value() is read-only, `master()` what is trained, and refresh_shadow() makes the one of the other.
template <class T, int Rank, Device DeviceType = cpu>
class Parameter : public ParameterMemory<accumulate_t<T>, DeviceType> {
  using R = accumulate_t<T>;
  using Memory = ParameterMemory<R, DeviceType>;
  static constexpr bool shadowed = !std::is_same_v<T, R>;

 public:
  using compute_type = T;  // value_type is that of the masters
  static constexpr int rank = Rank;

  Parameter() = default;
  explicit Parameter(const Extents<Rank>& extents, Decay decay = Decay::yes)
      : Memory(extents.size(), decay, detail::shadow_of<T>()), extents_(extents), present_(true) {}

  explicit operator bool() const { return present_; }
  const Extents<Rank>& extents() const { return extents_; }
  Index extent(int axis) const { return extents_[axis]; }

  /// An absent parameter gives an absent view, which is how operators take what may be left out.
  View<std::conditional_t<shadowed, const T, T>, Rank, DeviceType> value() {
    if (!present_) return {};
    if constexpr (shadowed) {
      if (!this->has_value()) this->value_data();
      return std::as_const(*this).value();
    } else {
      return {this->value_data(), extents_};
    }
  }
  View<const T, Rank, DeviceType> value() const {
    if (!present_) return {};
    if constexpr (shadowed)
      return {this->template shadow_data<T>(), extents_};
    else
      return {this->value_data(), extents_};
  }
  View<R, Rank, DeviceType> master() {
    if (!present_) return {};
    return {this->value_data(), extents_};
  }
  View<R, Rank, DeviceType> gradient() {
    if (!present_) return {};
    return {this->gradient_data(), extents_};
  }
  View<const R, Rank, DeviceType> gradient() const {
    if (!present_ || !this->has_gradient()) return {};
    return {this->gradient_data(), extents_};
  }

  // What visit(f) hands out has these too, whether it is a Parameter or a ParameterPart.

  /// Takes the values of a tensor of this shape, of any element type, from the host or the same device. Throws Error if
  /// the shapes differ.
  template <class U, Device From>
  void copy_from(const View<U, Rank, From>& from) {
    require(from.extents() == extents_, "parameter: copy_from a tensor ", from.extents(), " to one ", extents_);
    this->write(from, 0);
  }
  template <class U, Device From>
  void copy_from(const Tensor<U, Rank, From>& from) {
    copy_from(from.view());
  }
  /// The masters, on the host.
  Tensor<R, Rank> to_tensor() const {
    auto result = Tensor<R, Rank>::uninitialized(extents_);
    this->read(0, result.view());
    return result;
  }
  /// Zeros if there is no gradient.
  Tensor<R, Rank> gradient_to_tensor() const {
    if (!this->has_gradient()) return Tensor<R, Rank>(extents_);
    auto result = Tensor<R, Rank>::uninitialized(extents_);
    this->read_gradient(0, result.view());
    return result;
  }
  Memory& memory() { return *this; }
  const Memory& memory() const { return *this; }

 private:
  Extents<Rank> extents_;
  bool present_ = false;
};

/// How the next write of a weight's gradient and its bias's, which may be absent, has to be; both are written whole.
template <class Weight, class Bias>
GradientMode gradient_mode(Weight& weight, Bias& bias) {
  if (weight.gradient_discarded() && (!bias || bias.gradient_discarded())) {
    (void)bias.gradient_mode();
    return weight.gradient_mode();
  }
  weight.settle_gradient();
  bias.settle_gradient();
  return GradientMode::add;
}

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

  template <class U, Device From>
  void copy_from(const View<U, Rank, From>& from) {
    require(from.extents() == extents_, "parameter: copy_from a tensor ", from.extents(), " to one ", extents_);
    Index row = 0;
    for_each_block([&](const RowBlock& block, const Extents<Rank>&) {
      memory_->write(from.template slice<0>(row, row + block.rows), block.offset);
      row += block.rows;
    });
  }
  template <class U, Device From>
  void copy_from(const Tensor<U, Rank, From>& from) {
    copy_from(from.view());
  }
  Tensor<T, Rank> to_tensor() const {
    return gather([&](Index offset, const View<T, Rank>& to) { std::as_const(*memory_).read(offset, to); });
  }
  Tensor<T, Rank> gradient_to_tensor() const {
    if (!memory_->has_gradient()) return Tensor<T, Rank>(extents_);
    return gather([&](Index offset, const View<T, Rank>& to) { memory_->read_gradient(offset, to); });
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
  template <class Read>
  Tensor<T, Rank> gather(Read&& read) const {
    auto result = Tensor<T, Rank>::uninitialized(extents_);
    Index row = 0;
    for_each_block([&](const RowBlock& block, const Extents<Rank>&) {
      read(block.offset, result.template slice<0>(row, row + block.rows));
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

/// Whatever visit(f) hands out, as a part: something that can be kept while the module lives.
template <class T, int Rank, Device DeviceType>
auto part_of(const Parameter<T, Rank, DeviceType>& parameter) {
  using Memory = const ParameterMemory<accumulate_t<T>, DeviceType>;
  return ParameterPart<Memory, Rank>(parameter.memory(), parameter.extents(), 0);
}
template <class Memory, int Rank>
auto part_of(const ParameterPart<Memory, Rank>& part) {
  return part;
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
      using Memory = std::remove_cvref_t<decltype(parameter.memory())>;
      if (auto& memory = parameter.memory(); memory.has_gradient())
        fill_elements(typename Memory::device_type{}, memory.gradient_data(), memory.size(),
                      typename Memory::value_type{});
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

/// Elements [begin, end) of a flat array.
struct ElementRun {
  Index begin = 0, end = 0;
};

/// Sets runs of an array to zero: on a GPU (defined in nn/parameter.cuh) by one launch.
template <class R>
void zero_runs(const View<R, 1, cpu>& array, const View<const ElementRun, 1, cpu>& runs) {
  for (Index i = 0; i < runs.size(); ++i)
    fill_elements(cpu{}, array.data() + runs(i).begin, runs(i).end - runs(i).begin, R{});
}
template <class R>
void zero_runs(const View<R, 1, cuda>& array, const View<const ElementRun, 1, cuda>& runs);

/// All parameters of a module in one dense array of values and one of gradients, each parameter aligned to 64 bytes,
/// what lies between them zero: for the optimizer, the global norm, checkpoints and all-reduce. T is the type of
/// activations; with a 16-bit one, values and gradients are float and a third array of the same layout holds the
/// shadows, of those parameters that have one. The module's parameters keep the arrays alive.
template <class T, Device DeviceType = cpu>
struct FlatParameters {
  using R = accumulate_t<T>;
  struct Segment {
    Index offset, size;  // in elements
    Decay decay;
  };
  std::vector<Segment> segments;
  Index size = 0;
  std::shared_ptr<Tensor<R, 1, DeviceType>> value_memory, gradient_memory;
  std::shared_ptr<Tensor<ElementRun, 1, DeviceType>> added_memory;  // gradients not written whole, with the gradients
  std::shared_ptr<Tensor<T, 1, DeviceType>> shadow_memory;

  /// The masters. Absent once they were released.
  View<R, 1, DeviceType> values() const { return value_memory ? value_memory->view() : View<R, 1, DeviceType>{}; }
  /// Absent before bind_gradients.
  View<R, 1, DeviceType> gradients() const {
    return gradient_memory ? gradient_memory->view() : View<R, 1, DeviceType>{};
  }
  /// The masters rounded, for operators of a 16-bit T; else absent.
  View<T, 1, DeviceType> shadows() const { return shadow_memory ? shadow_memory->view() : View<T, 1, DeviceType>{}; }
  /// After the masters were written: one pass over all of them.
  void refresh_shadows() const {
    if (shadow_memory && value_memory) copy(View<const R, 1, DeviceType>(values()), shadows());
  }
};

namespace detail {
/// Every stored parameter once, in the order of its first name: a parameter that is visited under several names (the
/// paths of a differential mixer, a tied weight) is one piece of memory.
template <class ModuleType>
auto stored_parameters(ModuleType& of) {
  using R = accumulate_t<typename ModuleType::value_type>;
  std::vector<ParameterMemory<R, typename ModuleType::device_type>*> found;
  of.visit([&](std::string_view, auto& parameter) {
    auto* memory = &parameter.memory();
    if (std::find(found.begin(), found.end(), memory) == found.end()) found.push_back(memory);
  });
  return found;
}
}  // namespace detail

/// Moves all parameters of a module into one flat array of values (and one of shadows): the first visit adds up the
/// sizes, the second moves the values there.
template <class ModuleType>
auto bind(ModuleType& module) {
  using T = typename ModuleType::value_type;
  using D = typename ModuleType::device_type;
  using R = accumulate_t<T>;
  constexpr Index unit = static_cast<Index>(64 / sizeof(R));
  const auto parameters = detail::stored_parameters(module);
  FlatParameters<T, D> flat;
  bool released = false;
  for (const auto* parameter : parameters) {
    flat.segments.push_back({flat.size, parameter->size(), parameter->decay()});
    flat.size += tiles_of(parameter->size(), unit) * unit;
    released |= parameter->masters_released();
  }
  if (released) return flat;  // a model that only infers: its parameters stay where they are
  flat.value_memory = std::make_shared<Tensor<R, 1, D>>(Extents<1>(flat.size));
  if constexpr (!std::is_same_v<T, R>) flat.shadow_memory = std::make_shared<Tensor<T, 1, D>>(Extents<1>(flat.size));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    parameters[i]->bind_value(flat.value_memory->data() + flat.segments[i].offset, flat.value_memory);
    if constexpr (!std::is_same_v<T, R>)
      parameters[i]->bind_shadow(flat.shadow_memory->data() + flat.segments[i].offset, flat.shadow_memory);
  }
  return flat;
}

/// Gives the same module, bound before, one flat array of gradients: zero, or what its parameters held.
template <class ModuleType, class T, Device DeviceType>
void bind_gradients(ModuleType& module, FlatParameters<T, DeviceType>& flat) {
  if (flat.gradient_memory) return;
  const auto parameters = detail::stored_parameters(module);
  require(parameters.size() == flat.segments.size(), "bind_gradients: the module has ", parameters.size(),
          " parameters, bind saw ", flat.segments.size());
  require(bool(flat.value_memory),
          "bind_gradients: the masters were released for inference; the module cannot be "
          "trained any more");
  flat.gradient_memory = std::make_shared<Tensor<accumulate_t<T>, 1, DeviceType>>(Extents<1>(flat.size));
  std::vector<ElementRun> runs;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& segment = flat.segments[i];
    parameters[i]->bind_gradient(flat.gradient_memory->data() + segment.offset, flat.gradient_memory);
    if (parameters[i]->written_whole()) continue;
    if (i > 0 && !parameters[i - 1]->written_whole())
      runs.back().end = segment.offset + segment.size;
    else
      runs.push_back({segment.offset, segment.offset + segment.size});
  }
  flat.added_memory = std::make_shared<Tensor<ElementRun, 1, DeviceType>>(
      Tensor<ElementRun, 1, DeviceType>::uninitialized(Extents<1>(static_cast<Index>(runs.size()))));
  copy_elements(DeviceType{}, runs.data(), flat.added_memory->data(), flat.added_memory->size());
}

/// Makes all gradients of a module that has some zero; those that are written as a whole by word alone, so that a
/// backward pass and settle_gradients must follow before anyone else reads them.
template <class ModuleType, class T, Device DeviceType>
void discard_gradients(ModuleType& module, FlatParameters<T, DeviceType>& flat) {
  for (auto* parameter : detail::stored_parameters(module))
    if (parameter->written_whole()) parameter->discard_gradient();
  zero_runs(flat.gradients(), View<const ElementRun, 1, DeviceType>(flat.added_memory->view()));
}
template <class ModuleType>
void settle_gradients(ModuleType& module) {
  for (auto* parameter : detail::stored_parameters(module)) parameter->settle_gradient();
}

/// For a model that only infers: gives up gradients, and the masters of all parameters that have a 16-bit shadow.
/// Training it any further throws; to_tensor widens the shadow.
template <class ModuleType, class T, Device DeviceType>
void release_masters(ModuleType& module, FlatParameters<T, DeviceType>& flat) {
  if constexpr (!std::is_same_v<T, accumulate_t<T>>) {
    for (auto* parameter : detail::stored_parameters(module)) parameter->release_masters();
    flat.value_memory.reset();
    flat.gradient_memory.reset();
    flat.added_memory.reset();
  }
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
