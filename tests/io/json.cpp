// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/io/json.hpp"

#include <doctest/doctest.h>

#include "support/temporary_folder.hpp"

using namespace diffmamba;

TEST_CASE("json: bare infinities of Python files are read, inside strings nothing changes") {
  test::TemporaryFolder folder;
  std::ofstream(folder / "a.json")
      << R"({"limit": [0.0, Infinity], "low": -Infinity, "text": "Infinity \" NaN", "f": {"__float__": "Infinity"}})";
  const Json json = read_json(folder / "a.json");
  CHECK(json_number(json["limit"][1]) == HUGE_VAL);
  CHECK(json_number(json["low"]) == -HUGE_VAL);
  CHECK(json_number(json["f"]) == HUGE_VAL);
  CHECK(json["text"] == "Infinity \" NaN");
  CHECK_FALSE(json_number(json["text"]).has_value());
}

TEST_CASE("json: errors name the file") {
  test::TemporaryFolder folder;
  const std::string path = (folder / "b.json").string();
  const auto message = [&](const std::string& text) -> std::string {
    std::ofstream(path) << text;
    try {
      read_json(path);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message("{}").empty());
  CHECK(message(R"({"a": 1, "a": 2})") == path + ": the key \"a\" stands twice");
  CHECK(message("{").find(path + ": not valid JSON: ") == 0);
  CHECK(message(std::string(1000, '[')).find("nested more than 32 deep") != std::string::npos);
  CHECK_THROWS_WITH_AS(read_json(folder / "none"), ((folder / "none").string() + ": no such file").c_str(), Error);
}

TEST_CASE("json: written files are read again") {
  test::TemporaryFolder folder;
  write_json(folder / "c.json", {{"z", 1}, {"a", {1.5, "x"}}});
  const Json json = read_json(folder / "c.json");
  CHECK(json.begin().key() == "z");
  CHECK(json["a"][0] == 1.5);
}
