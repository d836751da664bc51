// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>   // std::isinf
#include <string>  // std::string

#include "diffmamba/io/json.hpp"
#include "diffmamba/model/model_config.hpp"

namespace diffmamba {

namespace detail {

inline Json number_to_json(double value) {
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  if (value == std::floor(value) && std::abs(value) < 0x1p53) return static_cast<std::int64_t>(value);
  return value;
}

inline Json options_to_json(const MixerOptions& options) {
  Json json = Json::object();
  for (const auto& [name, value] : options) {
    if (const auto* flag = std::get_if<bool>(&value)) json[name] = *flag;
    if (const auto* number = std::get_if<double>(&value)) json[name] = number_to_json(*number);
    if (const auto* text = std::get_if<std::string>(&value)) json[name] = *text;
    if (const auto* pair = std::get_if<std::array<double, 2>>(&value))
      json[name] = {number_to_json((*pair)[0]), number_to_json((*pair)[1])};
  }
  return json;
}

inline OptionValue option_from_json(const Json& json, const std::string& source, const std::string& name) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_array() && json.size() == 2) {
    const auto low = json_number(json[0]), high = json_number(json[1]);
    if (low && high) return std::array<double, 2>{*low, *high};
  }
  if (const auto number = json_number(json)) return *number;
  require(json.is_string(), source, ": the option ", name,
          " is neither a switch, a number, a name nor a pair of numbers");
  return json.get<std::string>();
}

inline MixerOptions options_from_json(const Json& json, const std::string& source) {
  require(json.is_object(), source, ": the options of a mixer are not an object");
  MixerOptions options;
  for (const auto& [name, value] : json.items()) options.set(name, option_from_json(value, source, name));
  return options;
}

/// Reads the keys of a JSON object into fields; `finish` throws for a key that nobody asked for.
class JsonReader {
 public:
  JsonReader(const Json& json, std::string source) : json_(json), source_(std::move(source)) {
    require(json.is_object(), source_, ": expected an object");
  }
  const std::string& source() const { return source_; }
  bool has(const std::string& key) const { return json_.contains(key); }
  const Json& at(const std::string& key) {
    require(has(key), source_, ": the key \"", key, "\" is missing");
    seen_.insert(key);
    return json_[key];
  }
  double number(const std::string& key) {
    const auto value = json_number(at(key));
    require(value.has_value(), source_, ": \"", key, "\" is not a number");
    return *value;
  }
  Index whole(const std::string& key) {
    const double value = number(key);
    require(value == std::floor(value) && std::abs(value) <= 0x1p53, source_, ": \"", key, "\" is not a whole number");
    return static_cast<Index>(value);
  }
  bool flag(const std::string& key) {
    const Json& value = at(key);
    require(value.is_boolean(), source_, ": \"", key, "\" is neither true nor false");
    return value.get<bool>();
  }
  std::string text(const std::string& key) {
    const Json& value = at(key);
    require(value.is_string(), source_, ": \"", key, "\" is not a string");
    return value.get<std::string>();
  }
  // The same where the key may be missing.
  void read(const std::string& key, double& field) {
    if (has(key)) field = number(key);
  }
  void read(const std::string& key, Index& field) {
    if (has(key)) field = whole(key);
  }
  void read(const std::string& key, bool& field) {
    if (has(key)) field = flag(key);
  }
  void read(const std::string& key, std::string& field) {
    if (has(key)) field = text(key);
  }
  void finish() const {
    for (const auto& [key, value] : json_.items()) require(seen_.contains(key), source_, ": unknown key \"", key, "\"");
  }

 private:
  const Json& json_;
  std::string source_;
  std::set<std::string> seen_;
};

}  // namespace detail

/// {"d_model": 256, "vocab_size": 256, "layers": ["mamba2", {"mixer": "diff_mamba2", "options": {"norm": "before"}}],
/// ...}
inline Json to_json(const ModelConfig& config) {
  Json layers = Json::array();
  for (const auto& layer : config.layers) {
    if (layer.options.empty())
      layers.push_back(layer.mixer);
    else
      layers.push_back({{"mixer", layer.mixer}, {"options", detail::options_to_json(layer.options)}});
  }
  return {{"d_model", config.d_model.get()},
          {"vocab_size", config.vocab_size.get()},
          {"layers", layers},
          {"mixer", detail::options_to_json(config.mixer)},
          {"rms_norm", config.rms_norm},
          {"norm_epsilon", config.norm_epsilon},
          {"residual_in_fp32", config.residual_in_fp32},
          {"tie_embeddings", config.tie_embeddings},
          {"pad_vocab_size_multiple", config.pad_vocab_size_multiple},
          {"dropout", config.dropout},
          {"initializer_range", config.initializer_range},
          {"rescale_prenorm_residual", config.rescale_prenorm_residual}};
}

/// Unknown keys and values of the wrong kind are errors; `source` names the file.
inline ModelConfig model_config_from_json(const Json& json, const std::string& source) {
  detail::JsonReader reader(json, source);
  ModelConfig config{.d_model = reader.whole("d_model"), .vocab_size = reader.whole("vocab_size"), .layers = {}};
  const Json& layers = reader.at("layers");
  require(layers.is_array(), source, ": \"layers\" is not a list");
  for (const auto& layer : layers) {
    if (layer.is_string()) {
      config.layers.emplace_back(layer.get<std::string>());
      continue;
    }
    detail::JsonReader one(layer, source + ": layers");
    config.layers.emplace_back(one.text("mixer"));
    if (one.has("options")) config.layers.back().options = detail::options_from_json(one.at("options"), source);
    one.finish();
  }
  if (reader.has("mixer")) config.mixer = detail::options_from_json(reader.at("mixer"), source);
  reader.read("rms_norm", config.rms_norm);
  reader.read("norm_epsilon", config.norm_epsilon);
  reader.read("residual_in_fp32", config.residual_in_fp32);
  reader.read("tie_embeddings", config.tie_embeddings);
  reader.read("pad_vocab_size_multiple", config.pad_vocab_size_multiple);
  reader.read("dropout", config.dropout);
  reader.read("initializer_range", config.initializer_range);
  reader.read("rescale_prenorm_residual", config.rescale_prenorm_residual);
  reader.finish();
  check(config);
  return config;
}

}  // namespace diffmamba
