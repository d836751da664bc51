// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>       // HUGE_VAL
#include <filesystem>  // std::filesystem::path
#include <fstream>     // std::ifstream
#include <limits>      // std::numeric_limits
#include <optional>    // std::optional
#include <set>         // std::set
#include <string>      // std::string
#include <vector>      // std::vector

#include <nlohmann/json.hpp>

#include "diffmamba/core/error.hpp"
#include "diffmamba/io/atomic_file.hpp"

namespace diffmamba {

/// JSON whose keys keep their order.
using Json = nlohmann::ordered_json;

/// The whole file as bytes. Throws Error naming the file and the reason.
inline std::string read_file(const std::filesystem::path& path) {
  std::error_code error;
  require(std::filesystem::exists(path, error), path.string(), ": no such file");
  require(std::filesystem::is_regular_file(path, error), path.string(), ": not a file");
  std::ifstream file(path, std::ios::binary);
  require(file.is_open(), path.string(), ": the file cannot be opened");
  std::string bytes(static_cast<std::size_t>(std::filesystem::file_size(path)), '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  require(static_cast<std::size_t>(file.gcount()) == bytes.size(), path.string(),
          ": the file cannot be read to its end");
  return bytes;
}

namespace detail {
/// Python writes Infinity and NaN into JSON files, which JSON does not know: they become strings here.
inline std::string quote_bare_constants(const std::string& text) {
  std::string result;
  result.reserve(text.size() + 16);
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (in_string) {
      result += text[i];
      if (text[i] == '\\' && i + 1 < text.size())
        result += text[++i];
      else if (text[i] == '"')
        in_string = false;
      continue;
    }
    bool replaced = false;
    for (const std::string constant : {"-Infinity", "Infinity", "NaN"}) {
      if (text.compare(i, constant.size(), constant) != 0) continue;
      result += '"' + constant + '"';
      i += constant.size() - 1;
      replaced = true;
      break;
    }
    if (replaced) continue;
    in_string = text[i] == '"';
    result += text[i];
  }
  return result;
}
}  // namespace detail

/// Strict parsing of text that somebody else wrote: a key may stand only once, nesting is limited. `source` names the
/// text in the message of the Error.
inline Json parse_json(const std::string& text, const std::string& source, int max_depth = 32) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, nlohmann::detail::parse_event_t event, Json& value) {
    using Event = nlohmann::detail::parse_event_t;
    if (event == Event::object_start || event == Event::array_start)
      require(depth < max_depth, source, ": nested more than ", max_depth, " deep");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = value.get_ref<const std::string&>();
      require(keys.back().insert(key).second, source, ": the key \"", key.substr(0, 200), "\" stands twice");
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const nlohmann::json::exception& error) {
    fail(source, ": not valid JSON: ", error.what());
  }
}

inline Json read_json(const std::filesystem::path& path) {
  return parse_json(detail::quote_bare_constants(read_file(path)), path.string());
}

/// Atomically: the file is whole or the old one.
inline void write_json(const std::filesystem::path& path, const Json& json) {
  AtomicFile file(path);
  file.write(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  file.commit();
}

/// A number, or one of the ways in which files write infinity: "Infinity", {"__float__": "Infinity"}.
inline std::optional<double> json_number(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (value.is_object() && value.size() == 1 && value.contains("__float__")) return json_number(value["__float__"]);
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (text == "Infinity" || text == "inf") return HUGE_VAL;
    if (text == "-Infinity" || text == "-inf") return -HUGE_VAL;
    if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  }
  return std::nullopt;
}

}  // namespace diffmamba
