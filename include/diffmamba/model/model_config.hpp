// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::min
#include <array>        // std::array
#include <cmath>        // std::floor
#include <cstdlib>      // std::strtod
#include <map>          // std::map
#include <optional>     // std::optional
#include <string>       // std::string
#include <string_view>  // std::string_view
#include <utility>      // std::pair
#include <variant>      // std::variant
#include <vector>       // std::vector

#include "diffmamba/core/error.hpp"
#include "diffmamba/nn/mixer.hpp"  // visit_options, Required

namespace diffmamba {

/// The value of a mixer's option as files and command lines give it: a switch, a number, a name, a pair.
using OptionValue = std::variant<bool, double, std::string, std::array<double, 2>>;

/// Options by their names in the mixer's Options: {{"d_state", 64.0}, {"norm", "after"}}. Ordered by name.
class MixerOptions {
 public:
  MixerOptions() = default;
  MixerOptions(std::initializer_list<std::pair<const char*, OptionValue>> options) {
    for (const auto& [name, value] : options) set(name, value);
  }
  void set(const std::string& name, OptionValue value) { values_[name] = std::move(value); }
  bool contains(const std::string& name) const { return values_.contains(name); }
  const OptionValue& at(const std::string& name) const { return values_.at(name); }
  auto begin() const { return values_.begin(); }
  auto end() const { return values_.end(); }
  bool empty() const { return values_.empty(); }
  friend bool operator==(const MixerOptions&, const MixerOptions&) = default;

 private:
  std::map<std::string, OptionValue> values_;
};

/// One layer: the mixer's name and what is special about it here.
struct LayerConfig {
  std::string mixer;
  MixerOptions options = {};

  LayerConfig(std::string name, MixerOptions special = {}) : mixer(std::move(name)), options(std::move(special)) {}
  LayerConfig(const char* name) : mixer(name) {}
  friend bool operator==(const LayerConfig&, const LayerConfig&) = default;
};
using Layers = std::vector<LayerConfig>;

/// Every layer the same mixer.
inline Layers all(const LayerConfig& layer, Index layers) {
  return Layers(static_cast<std::size_t>(layers < 0 ? 0 : layers), layer);
}
/// `last` in the last quarter of the layers (layers / 4, rounded down), `first` before it: how the paper converts a
/// model.
inline Layers last_quarter(const LayerConfig& first, const LayerConfig& last, Index layers) {
  Layers result = all(first, layers);
  for (Index i = layers - layers / 4; i < layers; ++i) result[static_cast<std::size_t>(i)] = last;
  return result;
}
/// `even` in layers 0, 2, 4, ..., `odd` between them.
inline Layers alternating(const LayerConfig& even, const LayerConfig& odd, Index layers) {
  Layers result = all(even, layers);
  for (std::size_t i = 1; i < result.size(); i += 2) result[i] = odd;
  return result;
}

/// Layers as a command line names them: "mamba2" (all of them), "alternating:diff_mamba2,mamba2",
/// "last_quarter:mamba2,diff_mamba2", or a list of as many names as there are layers.
inline Layers parse_layers(const std::string& text, Index layers) {
  std::vector<std::string> names;
  const auto colon = text.find(':');
  for (std::size_t at = colon == std::string::npos ? 0 : colon + 1; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    names.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  if (colon != std::string::npos) {
    const std::string how = text.substr(0, colon);
    require(how == "alternating" || how == "last_quarter", "layers \"", text,
            "\": expected alternating: or last_quarter: before two names");
    require(names.size() == 2, "layers \"", text, "\": expected two names behind ", how, ":");
    return how == "alternating" ? alternating(names[0], names[1], layers) : last_quarter(names[0], names[1], layers);
  }
  if (names.size() == 1) return all(names[0], layers);
  require(static_cast<Index>(names.size()) == layers, "layers \"", text, "\": ", names.size(), " names for ", layers,
          " layers");
  return Layers(names.begin(), names.end());
}

/// A value of an option as a command line gives it: true or false, a number, two numbers with a colon, or a name.
inline OptionValue parse_option_value(const std::string& text) {
  if (text == "true" || text == "false") return text == "true";
  const auto number = [](const std::string& part) -> std::optional<double> {
    char* end = nullptr;
    const double value = std::strtod(part.c_str(), &end);
    if (part.empty() || *end != '\0') return std::nullopt;
    return value;
  };
  if (const auto value = number(text)) return *value;
  if (const auto colon = text.find(':'); colon != std::string::npos) {
    const auto low = number(text.substr(0, colon)), high = number(text.substr(colon + 1));
    if (low && high) return std::array<double, 2>{*low, *high};
  }
  return text;
}

/// A language model: what stands in config.json beside the weights. Names and defaults are those of the official
/// package; the layers are any list of mixers, named as their `name()` says.
struct ModelConfig {
  Required<Index> d_model;
  Required<Index> vocab_size;
  Layers layers;
  MixerOptions mixer = {};  // for every layer whose mixer has an option of that name
  bool rms_norm = true;     // of the blocks and at the end; false: LayerNorm
  double norm_epsilon = 1e-5;
  bool residual_in_fp32 = true;  // the residual stream keeps the type of sums
  bool tie_embeddings = true;    // the head is the embedding
  Index pad_vocab_size_multiple = 8;
  double dropout = 0;  // of the embedding and of what each block adds to the residual stream
  // Initialisation.
  double initializer_range = 0.02;       // standard deviation of the embedding
  bool rescale_prenorm_residual = true;  // out_proj is divided by sqrt(layers)

  /// Rows of the embedding: vocab_size rounded up.
  Index padded_vocab_size() const { return tiles_of(vocab_size, pad_vocab_size_multiple) * pad_vocab_size_multiple; }
};

/// Throws Error in one sentence.
inline void check(const ModelConfig& config) {
  require(config.d_model >= 1, "model: d_model is ", config.d_model.get(), ", expected 1 or more");
  require(config.vocab_size >= 1, "model: vocab_size is ", config.vocab_size.get(), ", expected 1 or more");
  require(!config.layers.empty(), "model: there are no layers");
  require(config.pad_vocab_size_multiple >= 1, "model: pad_vocab_size_multiple is ", config.pad_vocab_size_multiple,
          ", expected 1 or more");
  require(config.norm_epsilon >= 0, "model: norm_epsilon is ", config.norm_epsilon, ", expected 0 or more");
  require(config.dropout >= 0 && config.dropout < 1, "model: dropout is ", config.dropout, ", expected 0 to below 1");
  require(config.initializer_range >= 0, "model: initializer_range is ", config.initializer_range,
          ", expected 0 or more");
}

namespace detail {

inline const char* kind_of(const OptionValue& value) {
  constexpr std::array<const char*, 4> kinds{"a switch", "a number", "a name", "a pair of numbers"};
  return kinds[value.index()];
}

/// field = value, where the kinds agree.
template <class Field>
void assign_option(Field& field, const OptionValue& value, std::string_view mixer, const std::string& name) {
  const auto wrong = [&](const char* expected) {
    fail(mixer, ": the option ", name, " is ", kind_of(value), ", expected ", expected);
  };
  if constexpr (std::is_same_v<Field, bool>) {
    if (!std::holds_alternative<bool>(value)) wrong("a switch");
    field = std::get<bool>(value);
  } else if constexpr (std::is_integral_v<Field>) {
    const double* number = std::get_if<double>(&value);
    if (number == nullptr || *number != std::floor(*number) || std::abs(*number) > 0x1p53) wrong("a whole number");
    field = static_cast<Field>(*number);
  } else if constexpr (std::is_floating_point_v<Field>) {
    if (!std::holds_alternative<double>(value)) wrong("a number");
    field = static_cast<Field>(std::get<double>(value));
  } else if constexpr (NamedEnum<Field>) {
    if (!std::holds_alternative<std::string>(value)) wrong("a name");
    try {
      field = parse_enum<Field>(std::get<std::string>(value));
    } catch (const Error& error) {
      fail(mixer, ": the option ", name, ": ", error.what());
    }
  } else {
    static_assert(std::is_same_v<Field, std::array<double, 2>>,
                  "an option is a switch, a number, an enumeration or a pair");
    if (!std::holds_alternative<std::array<double, 2>>(value)) wrong("a pair of numbers");
    field = std::get<std::array<double, 2>>(value);
  }
}

/// Sets the options whose names the mixer knows; returns how many those were.
template <class Options>
std::size_t assign_options(Options& options, const MixerOptions& values, std::string_view mixer) {
  std::size_t known = 0;
  visit_options(options, [&](std::string_view name, auto& field) {
    const std::string key(name);
    if (!values.contains(key)) return;
    assign_option(field, values.at(key), mixer, key);
    ++known;
  });
  return known;
}

template <class Options>
std::string option_names(const Options& options) {
  std::string names;
  visit_options(options,
                [&](std::string_view name, auto&) { names += (names.empty() ? "" : ", ") + std::string(name); });
  return names.empty() ? "none" : names;
}

}  // namespace detail

/// The options of mixer M in a layer: its defaults, then those of the whole model, then those of the layer, which it
/// must know.
template <class M>
typename M::Options layer_options(const ModelConfig& config, Index layer) {
  auto options = mixer_options<M>(config.d_model, layer);
  const auto& special = config.layers[static_cast<std::size_t>(layer)].options;
  detail::assign_options(options, config.mixer, M::name());
  for (const auto& [name, value] : special) {
    MixerOptions one;
    one.set(name, value);
    require(detail::assign_options(options, one, M::name()) > 0, "layer ", layer, ": the mixer ", M::name(),
            " has no option ", name, "; it has ", detail::option_names(options));
  }
  return options;
}

}  // namespace diffmamba
