// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/model/model_config.hpp"

#include <doctest/doctest.h>

#include <limits>

#include "diffmamba/io/model_config_json.hpp"

using namespace diffmamba;

namespace {
enum class Color { red, green };
struct FakeMixer {
  static constexpr std::string_view name() { return "fake"; }
  struct Options {
    Required<Index> d_model;
    Index d_state = 4;
    bool bias = false;
    double eps = 0.5;
    Color color = Color::red;
    std::array<double, 2> limit = {0, 1};
    template <class Self, class F>
    static void fields(Self& o, F&& f) {
      f("d_state", o.d_state), f("bias", o.bias), f("eps", o.eps), f("color", o.color), f("limit", o.limit);
    }
  };
};
std::string names(const Layers& layers) {
  std::string text;
  for (const auto& layer : layers) text += layer.mixer;
  return text;
}
}  // namespace
template <>
struct diffmamba::EnumNames<Color> {
  static constexpr std::array<std::string_view, 2> values{"red", "green"};
};

TEST_CASE("config: which mixer stands where") {
  CHECK(names(all("a", 3)) == "aaa");
  CHECK(names(alternating("a", "b", 5)) == "ababa");
  CHECK(names(last_quarter("a", "b", 9)) == "aaaaaaabb");
  CHECK(names(last_quarter("a", "b", 3)) == "aaa");
  CHECK(all("a", 0).empty());
}

TEST_CASE("config: layers and options as a command line names them") {
  CHECK(names(parse_layers("a", 3)) == "aaa");
  CHECK(names(parse_layers("alternating:a,b", 3)) == "aba");
  CHECK(names(parse_layers("last_quarter:a,b", 4)) == "aaab");
  CHECK(names(parse_layers("a,b,c", 3)) == "abc");
  CHECK_THROWS_WITH_AS(parse_layers("a,b", 3), "layers \"a,b\": 2 names for 3 layers", Error);
  CHECK_THROWS_WITH_AS(parse_layers("each:a,b", 3),
                       "layers \"each:a,b\": expected alternating: or last_quarter: before two names", Error);
  CHECK_THROWS_WITH_AS(parse_layers("alternating:a", 3),
                       "layers \"alternating:a\": expected two names behind alternating:", Error);
  CHECK(parse_option_value("true") == OptionValue(true));
  CHECK(parse_option_value("64") == OptionValue(64.0));
  CHECK(parse_option_value("1e-3:inf") == OptionValue(std::array<double, 2>{1e-3, HUGE_VAL}));
  CHECK(parse_option_value("after") == OptionValue(std::string("after")));
}

TEST_CASE("config: options reach the mixer that has them, the layer's own last") {
  ModelConfig config{
      .d_model = 8,
      .vocab_size = 5,
      .layers = {"fake", {"fake", {{"bias", true}, {"d_state", 32.0}}}},
      .mixer = {{"d_state", 16.0}, {"color", "green"}, {"limit", std::array<double, 2>{1, 2}}, {"elsewhere", 1.0}}};
  const auto first = layer_options<FakeMixer>(config, 0), second = layer_options<FakeMixer>(config, 1);
  CHECK(first.d_model == 8);
  CHECK(first.d_state == 16);
  CHECK(first.color == Color::green);
  CHECK(first.limit[1] == 2);
  CHECK_FALSE(first.bias);
  CHECK(second.d_state == 32);
  CHECK(second.bias);
  const auto message = [&](const char* name, OptionValue value) -> std::string {
    config.layers[0].options = {{name, value}};
    try {
      layer_options<FakeMixer>(config, 0);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message("d_stat", 1.0) ==
        "layer 0: the mixer fake has no option d_stat; it has d_state, bias, eps, color, limit");
  CHECK(message("d_state", true) == "fake: the option d_state is a switch, expected a whole number");
  CHECK(message("d_state", 1.5) == "fake: the option d_state is a number, expected a whole number");
  CHECK(message("color", "blue") == "fake: the option color: \"blue\" is none of red, green");
  CHECK(message("limit", 1.0) == "fake: the option limit is a number, expected a pair of numbers");
}

TEST_CASE("config: through JSON and back, and mistakes in one sentence") {
  const double inf = std::numeric_limits<double>::infinity();
  ModelConfig config{.d_model = 8,
                     .vocab_size = 5,
                     .layers = {"a", {"b", {{"norm", "before"}}}},
                     .mixer = {{"limit", std::array<double, 2>{0, inf}}, {"bias", true}, {"d_state", 16.0}},
                     .tie_embeddings = false};
  config.dropout = 0.25;
  const Json json = parse_json(to_json(config).dump(), "test");
  const ModelConfig again = model_config_from_json(json, "test");
  CHECK(to_json(again) == to_json(config));
  CHECK(again.layers == config.layers);
  CHECK(again.mixer == config.mixer);
  CHECK(config.padded_vocab_size() == 8);
  const auto message = [&](auto&& change) -> std::string {
    Json changed = json;
    change(changed);
    try {
      model_config_from_json(changed, "config.json");
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message([](Json& j) { j["d_modell"] = 3; }) == "config.json: unknown key \"d_modell\"");
  CHECK(message([](Json& j) { j.erase("d_model"); }) == "config.json: the key \"d_model\" is missing");
  CHECK(message([](Json& j) { j["d_model"] = "8"; }) == "config.json: \"d_model\" is not a number");
  CHECK(message([](Json& j) { j["d_model"] = 8.5; }) == "config.json: \"d_model\" is not a whole number");
  CHECK(message([](Json& j) { j["tie_embeddings"] = 1; }) ==
        "config.json: \"tie_embeddings\" is neither true nor false");
  CHECK(message([](Json& j) { j["layers"] = Json::array(); }) == "model: there are no layers");
  CHECK(message([](Json& j) { j["d_model"] = 0; }) == "model: d_model is 0, expected 1 or more");
  CHECK(message([](Json& j) { j["dropout"] = 1.0; }) == "model: dropout is 1, expected 0 to below 1");
  CHECK(message([](Json& j) { j["layers"][0] = 3; }) == "config.json: layers: expected an object");
}
