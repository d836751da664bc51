// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "diffmamba/io/json.hpp"

/// --config FILE for a program with CLI11: a JSON object whose keys are the flags without their dashes, {"d-model":
/// 256, "resume": true, "mixer-option": ["d_state=64"]}. An unknown key is an error, as an unknown flag is.
class JsonConfig : public CLI::Config {
 public:
  explicit JsonConfig(const CLI::App& app) : app_(&app) {}

  /// Adds --config. With --resume the options with which the run in --out was begun come first (its options.json).
  static void attach(CLI::App& app, int argc, char** argv) {
    app.config_formatter(std::make_shared<JsonConfig>(app));
    app.allow_config_extras(CLI::config_extras_mode::error);
    std::string out;
    bool resume = false;
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      resume = resume || argument == "--resume";
      if (argument == "--out" && i + 1 < argc) out = argv[i + 1];
      if (argument.starts_with("--out=")) out = argument.substr(6);
    }
    if (out.empty())
      if (const auto* option = app.get_option_no_throw("--out")) out = option->get_default_str();
    const auto begun = std::filesystem::path(out) / "options.json";
    app.set_config("--config", resume && std::filesystem::exists(begun) ? begun.string() : "",
                   "a JSON file with any of these options");
  }

  /// Everything that was given, by flag or by file, but --config and --resume themselves.
  static diffmamba::Json given(const CLI::App& app) {
    diffmamba::Json json = diffmamba::Json::object();
    for (const auto* option : app.get_options()) {
      const std::string name = option->get_single_name();
      if (option->count() == 0 || name == "config" || name == "resume" || name == "help") continue;
      const auto results = option->reduced_results();
      if (option->get_items_expected_max() > 1)
        json[name] = option->results();
      else
        json[name] = typed(results.front());
    }
    return json;
  }

  std::vector<CLI::ConfigItem> from_config(std::istream& in) const override {
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    std::vector<CLI::ConfigItem> found;
    try {
      const auto json = diffmamba::parse_json(text, "--config");
      diffmamba::require(json.is_object(), "--config: expected an object of options");
      for (const auto& [key, value] : json.items()) {
        diffmamba::require(key != "config" && app_->get_option_no_throw("--" + key) != nullptr,
                           "--config: there is no option \"", key, "\"");
        CLI::ConfigItem item;
        item.name = key;
        for (const auto& one : value.is_array() ? value : diffmamba::Json::array({value}))
          item.inputs.push_back(one.is_string() ? one.get<std::string>() : one.dump());
        found.push_back(std::move(item));
      }
    } catch (const diffmamba::Error& error) {
      throw CLI::ConfigError(error.what());
    }
    return found;
  }
  std::string to_config(const CLI::App* app, bool, bool, std::string) const override { return given(*app).dump(2); }

 private:
  static diffmamba::Json typed(const std::string& text) {
    const auto json = diffmamba::Json::parse(text, nullptr, false);
    return json.is_number() || json.is_boolean() ? json : diffmamba::Json(text);
  }

  const CLI::App* app_;
};
