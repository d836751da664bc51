// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::max
#include <cmath>        // std::abs, std::isfinite
#include <filesystem>   // std::filesystem::path
#include <map>          // std::map
#include <optional>     // std::optional
#include <random>       // std::mt19937, std::seed_seq
#include <set>          // std::set
#include <string>       // std::string
#include <type_traits>  // std::conditional_t, std::is_same_v
#include <vector>       // std::vector

#include "diffmamba/io/json.hpp"
#include "diffmamba/io/safetensors.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// Golden cases (../goldens/FORMAT.md): what one file says, and how a result is held against it.
namespace diffmamba::conformance {

/// How one tensor came out. `fraction` is the largest |got - want| / (atol * s + rtol * |want|): at most 1 to pass.
struct Comparison {
  std::string name;
  double fraction = 0, error = 0, allowed = 0;
  std::string mistake = {};  // a wrong shape, an integer that differs, a missing -inf; empty otherwise

  bool passed() const { return mistake.empty() && fraction <= 1; }
};

/// What an adapter computed, on the host and in double: kept instead of compared where there is no file to compare with
/// but another run.
struct Kept {
  std::vector<Index> shape;
  std::vector<double> values;
  bool rounded = false;  // a 16-bit type
};

/// The tensor on a device; an absent one stays absent.
template <Device D, class T, int Rank>
Tensor<T, Rank, D> on(Tensor<T, Rank> tensor) {
  if constexpr (std::is_same_v<D, cpu>)
    return tensor;
  else
    return tensor ? to<D>(tensor) : Tensor<T, Rank, D>();
}

/// One case. It keeps book: whatever the file gives (a tensor, an attribute) must be read, and whatever it expects must
/// be checked, so that an option that an adapter does not know is a failure and cannot be overlooked.
class Case {
 public:
  Case(std::filesystem::path file, std::string name) : name_(std::move(name)), file_(std::move(file)) {
    op_ = metadata("op");
    attributes_ = parse_json(metadata("attrs"), file_.path().string() + ": attrs");
    require(attributes_.is_object(), name_, ": attrs is not an object");
  }

  const std::string& name() const { return name_; }
  const std::string& op() const { return op_; }
  const Json& attributes() const { return attributes_; }
  std::filesystem::path folder() const { return file_.path().parent_path(); }

  /// Cases that exist in float32 only are computed in whatever type is asked for, and held to their float32 tolerance.
  void tolerance_of(const std::string& dtype) {
    const bool own = dtype == "float64" && file_.metadata().contains("rtol_f64");
    relative_ = std::stod(metadata(own ? "rtol_f64" : "rtol_f32"));
    absolute_ = std::stod(metadata(own ? "atol_f64" : "atol_f32"));
  }

  /// Nothing is compared with the file: what is checked is kept, and the inputs that are named in `rounded` are rounded
  /// to bfloat16 whatever type they are read as. A variation other than 0 multiplies every number that is read by
  /// something between 1 - 2^-8 and 1 + 2^-8, drawn from the variation, the name and the place: a problem of the same
  /// kind, whose roundings fall otherwise.
  void keep(std::set<std::string> rounded = {}, unsigned variation = 0) {
    keeps_ = true;
    round_ = std::move(rounded);
    variation_ = variation;
  }
  const std::map<std::string, Kept>& kept() const { return kept_; }
  /// The inputs that were read as bfloat16.
  const std::set<std::string>& read_rounded() const { return read_rounded_; }

  // --- Attributes. null stands for "not used", like an absent key.
  // -------------------------------------------------------
  bool given(const std::string& key) {
    known_.insert(key);
    return attributes_.contains(key) && !attributes_[key].is_null();
  }
  bool flag(const std::string& key, bool otherwise) {
    if (!given(key)) return otherwise;
    require(attributes_[key].is_boolean(), "attribute ", key, " is ", attributes_[key].dump(), ", not true or false");
    return attributes_[key].get<bool>();
  }
  Index integer(const std::string& key, Index otherwise) {
    if (!given(key)) return otherwise;
    require(attributes_[key].is_number_integer(), "attribute ", key, " is ", attributes_[key].dump(),
            ", not an integer");
    return attributes_[key].get<Index>();
  }
  double number(const std::string& key, double otherwise) {
    if (!given(key)) return otherwise;
    const auto value = json_number(attributes_[key]);
    require(value.has_value(), "attribute ", key, " is ", attributes_[key].dump(), ", not a number");
    return *value;
  }
  std::string text(const std::string& key, const std::string& otherwise) {
    if (!given(key)) return otherwise;
    require(attributes_[key].is_string(), "attribute ", key, " is ", attributes_[key].dump(), ", not a string");
    return attributes_[key].get<std::string>();
  }
  /// A list of `count` numbers.
  std::vector<double> numbers(const std::string& key, const std::vector<double>& otherwise) {
    if (!given(key)) return otherwise;
    require(attributes_[key].is_array() && attributes_[key].size() == otherwise.size(), "attribute ", key, " is ",
            attributes_[key].dump(), ", not ", otherwise.size(), " numbers");
    std::vector<double> values;
    for (const auto& entry : attributes_[key]) {
      const auto value = json_number(entry);
      require(value.has_value(), "attribute ", key, " is ", attributes_[key].dump(), ", not a list of numbers");
      values.push_back(*value);
    }
    return values;
  }
  const Json& json(const std::string& key) {
    require(given(key), "attribute ", key, " is missing");
    return attributes_[key];
  }
  /// For an attribute that only says what the tensors say already: throws unless it says that.
  template <class Value>
  void expect(const std::string& key, const Value& value) {
    if (given(key))
      require(attributes_[key] == Json(value), "attribute ", key, " is ", attributes_[key].dump(),
              ", but the tensors say ", Json(value).dump());
  }
  void expect_number(const std::string& key, double value) {
    require(std::abs(number(key, value) - value) <= 1e-12 * std::abs(value), "attribute ", key, " is ",
            number(key, value), ", but the formula gives ", value);
  }

  // --- Given tensors
  // ---------------------------------------------------------------------------------------------------
  bool has(const std::string& name) const { return file_.contains(name); }
  const std::vector<Index>& shape(const std::string& name) const { return file_.info(name).shape; }
  int rank(const std::string& name) const { return static_cast<int>(shape(name).size()); }
  /// Names that begin with a prefix, in alphabetical order, without it.
  std::vector<std::string> names(const std::string& prefix) const {
    std::vector<std::string> result;
    for (const auto& [name, info] : file_.tensors())
      if (name.starts_with(prefix)) result.push_back(name.substr(prefix.size()));
    return result;
  }

  template <class T, int Rank, Device D = cpu>
  Tensor<T, Rank, D> tensor(const std::string& name) {
    return on<D>(read(name, file_.tensor<T, Rank>(name)));
  }
  /// Absent (an empty tensor, as a view absent too) if the file does not have it.
  template <class T, int Rank, Device D = cpu>
  Tensor<T, Rank, D> optional(const std::string& name) {
    return has(name) ? tensor<T, Rank, D>(name) : Tensor<T, Rank, D>();
  }
  /// The same elements with other sizes.
  template <class T, int Rank, Device D = cpu>
  Tensor<T, Rank, D> tensor(const std::string& name, const Extents<Rank>& extents) {
    auto result = Tensor<T, Rank>::uninitialized(extents);
    const std::vector<T> values = file_.values<T>(name);
    require(static_cast<Index>(values.size()) == result.size(), name, " has ", values.size(), " elements, expected ",
            extents);
    std::copy(values.begin(), values.end(), result.data());
    return on<D>(read(name, std::move(result)));
  }
  template <class T, int Rank, Device D = cpu>
  Tensor<T, Rank, D> optional(const std::string& name, const Extents<Rank>& extents) {
    return has(name) ? tensor<T, Rank, D>(name, extents) : Tensor<T, Rank, D>();
  }
  template <class T>
  std::vector<T> values(const std::string& name) {
    known_.insert(name);
    return file_.values<T>(name);
  }

  // --- Expected tensors
  // -----------------------------------------------------------------------------------------------
  template <class T, int Rank, class D>
  void check(const std::string& name, const View<T, Rank, D>& got) {
    Comparison result{.name = name};
    known_.insert(name);
    std::vector<Index> have;
    for (int axis = 0; axis < Rank; ++axis) have.push_back(got.extent(axis));
    if (!has(name))
      result.mistake = "was computed but is not in the file";
    else if (shape(name) != have)
      result.mistake =
          "has the shape " + detail::print_shape(shape(name)) + ", computed was " + detail::print_shape(have);
    else
      compare(result, on_host(got));
    comparisons_.push_back(result);
  }
  template <class T, int Rank, class D>
  void check(const std::string& name, const Tensor<T, Rank, D>& got) {
    check(name, got.view());
  }
  /// Only the number of elements must agree; they follow one another in the same order.
  template <class T, int Rank, class D>
  void check_elements(const std::string& name, const View<T, Rank, D>& got) {
    Comparison result{.name = name};
    known_.insert(name);
    if (!has(name))
      result.mistake = "was computed but is not in the file";
    else if (file_.info(name).size() != got.size())
      result.mistake = "has the shape " + detail::print_shape(shape(name)) + ", computed were " +
                       std::to_string(got.size()) + " elements";
    else
      compare(result, on_host(got));
    comparisons_.push_back(result);
  }
  template <class T, int Rank, class D>
  void check_elements(const std::string& name, const Tensor<T, Rank, D>& got) {
    check_elements(name, got.view());
  }
  template <class T>
  void check(const std::string& name, T got) requires(std::is_arithmetic_v<T>) {
    Tensor<T, 0> scalar = Tensor<T, 0>::uninitialized({});
    *scalar.data() = got;
    check_elements(name, scalar);
  }
  /// A gradient, if the file expects it: it does not for an absent input, and for some that are constants.
  template <class Value>
  void gradient(const std::string& argument, const Value& got) {
    if (has("grad." + argument)) check("grad." + argument, got);
  }
  template <class T, int Rank, class D>
  void gradient_elements(const std::string& argument, const Tensor<T, Rank, D>& got) {
    if (has("grad." + argument)) check_elements("grad." + argument, got);
  }
  void mistake(const std::string& name, const std::string& what) {
    comparisons_.push_back({.name = name, .mistake = what});
  }

  /// Everything that came out, and a mistake for whatever nobody looked at.
  std::vector<Comparison> finish() {
    std::vector<Comparison> result = comparisons_;
    for (const auto& [name, info] : file_.tensors())
      if (!known_.contains(name))
        result.push_back({.name = name,
                          .mistake = name.starts_with("out.") || name.starts_with("grad.")
                                         ? "is expected but was not computed"
                                         : "is given, but this operator takes no such tensor"});
    for (const auto& [key, value] : attributes_.items())
      if (!known_.contains(key))
        result.push_back({.name = "attribute " + key, .mistake = value.dump() + " is not known to this operator"});
    if (comparisons_.empty()) result.push_back({.name = op_, .mistake = "nothing was compared"});
    return result;
  }

 private:
  const std::string& metadata(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    require(found != file_.metadata().end(), file_.path().string(), ": no metadata entry \"", key, "\"");
    return found->second;
  }
  /// Keeps book of an input that was read, and rounds it where that was asked for.
  template <class T, int Rank>
  Tensor<T, Rank> read(const std::string& name, Tensor<T, Rank> tensor) {
    known_.insert(name);
    constexpr bool is_rounded = std::is_same_v<T, bfloat16>;
    if constexpr (is_rounded) read_rounded_.insert(name);
    if constexpr (is_rounded || std::is_floating_point_v<T>) {
      if (variation_ != 0) {
        std::vector<unsigned> seed(name.begin(), name.end());
        seed.push_back(variation_);
        std::seed_seq sequence(seed.begin(), seed.end());
        std::mt19937 generator(sequence);
        const std::vector<double> values = file_.values<double>(name);
        for (std::size_t i = 0; i < values.size(); ++i) {
          const double factor = 1 + (static_cast<double>(generator()) * 0x1p-31 - 1) * 0x1p-8;
          tensor.data()[i] = T(static_cast<std::conditional_t<is_rounded, float, T>>(values[i] * factor));
        }
      }
      if (!is_rounded && round_.contains(name))
        for (T& value : tensor) value = static_cast<T>(bfloat16(static_cast<float>(value)));
    }
    return tensor;
  }
  template <class T, int Rank, class D>
  static auto on_host(const View<T, Rank, D>& got) {
    auto result = Tensor<std::remove_const_t<T>, Rank>::uninitialized(got.extents());
    copy(got, result.view());
    return result;
  }
  template <class T, int Rank>
  void compare(Comparison& result, const Tensor<T, Rank>& got) {
    if (keeps_) {
      Kept kept;
      kept.rounded = sizeof(T) == 2;
      for (int axis = 0; axis < Rank; ++axis) kept.shape.push_back(got.extent(axis));
      for (const T value : got) kept.values.push_back(static_cast<double>(value));
      kept_.insert_or_assign(result.name, std::move(kept));
      return;
    }
    const auto count = static_cast<std::size_t>(got.size());
    if constexpr (std::is_integral_v<T>) {
      const auto want = file_.values<std::int64_t>(result.name);
      for (std::size_t i = 0; i < count && result.mistake.empty(); ++i)
        if (static_cast<std::int64_t>(got.data()[i]) != want[i])
          result.mistake = "element " + std::to_string(i) + " is " + std::to_string(got.data()[i]) + ", expected " +
                           std::to_string(want[i]);
    } else {
      const auto want = file_.values<double>(result.name);
      double scale = 0;
      for (double w : want)
        if (std::isfinite(w)) scale = std::max(scale, std::abs(w));
      if (scale == 0) scale = 1;
      for (std::size_t i = 0; i < count; ++i) {
        const double w = want[i], g = static_cast<double>(got.data()[i]);
        if (!std::isfinite(w)) {
          if (g != w) {
            result.mistake =
                "element " + std::to_string(i) + " is " + std::to_string(g) + ", expected " + std::to_string(w);
            return;
          }
          continue;
        }
        const double error = std::abs(g - w), allowed = absolute_ * scale + relative_ * std::abs(w);
        const double fraction = std::isnan(error) ? HUGE_VAL : error == 0 ? 0 : error / allowed;
        if (fraction > result.fraction || result.allowed == 0) {
          result.fraction = fraction;
          result.error = error;
          result.allowed = allowed;
        }
      }
    }
  }

  std::string name_, op_;
  SafetensorsFile file_;
  Json attributes_;
  double relative_ = 0, absolute_ = 0;
  bool keeps_ = false;
  unsigned variation_ = 0;
  std::map<std::string, Kept> kept_;
  std::set<std::string> known_, round_, read_rounded_;
  std::vector<Comparison> comparisons_;
};

/// "silu" (or "swish", its other name) or null.
inline bool silu_activation(Case& golden, const char* key = "activation") {
  const std::string name = golden.text(key, "");
  require(name.empty() || name == "silu" || name == "swish", "attribute ", key, " is \"", name,
          "\", expected silu or null");
  return !name.empty();
}

/// A dense tensor of the same device, of a view with any strides.
template <class T, int Rank, class D>
Tensor<std::remove_const_t<T>, Rank, D> dense(const View<T, Rank, D>& view) {
  auto result = Tensor<std::remove_const_t<T>, Rank, D>::uninitialized(view.extents());
  copy(view, result.view());
  return result;
}

/// (batch, channels, length) of the golden files <-> (batch, length, channels) of the library.
template <class T, class D>
Tensor<T, 3, D> channel_last(const Tensor<T, 3, D>& x) {
  return x ? dense(x.view().template permute<0, 2, 1>()) : Tensor<T, 3, D>();
}
template <class T, class D>
View<const T, 3, D> channel_first(const Tensor<T, 3, D>& x) {
  return x.view().template permute<0, 2, 1>();
}

}  // namespace diffmamba::conformance
