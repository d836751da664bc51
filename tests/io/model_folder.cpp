// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/io/model_folder.hpp"

#include <doctest/doctest.h>

#include "diffmamba/expr/expr.hpp"
#include "diffmamba/io/hub_layouts.hpp"
#include "diffmamba/model/language_model.hpp"
#include "support/temporary_folder.hpp"

using namespace diffmamba;

namespace {

using Model = LanguageModel<cpu, float, float, Mamba2<float>, Differential<Mamba2<float>>>;

ModelConfig tiny() {
  return {.d_model = 16,
          .vocab_size = 11,
          .layers = {"mamba2", {"diff_mamba2", {{"expand", 1.0}, {"headdim", 8.0}}}, "mamba2", "mamba2"},
          .mixer = {{"d_state", 4.0}, {"headdim", 16.0}, {"chunk_size", 8.0}},
          .tie_embeddings = false};
}

template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

const Json mamba2_json = {{"model_type", "mamba2"}, {"vocab_size", 11},
                          {"hidden_size", 16},      {"num_hidden_layers", 4},
                          {"num_heads", 2},         {"head_dim", 16},
                          {"state_size", 4},        {"expand", 2},
                          {"n_groups", 1},          {"tie_word_embeddings", false}};

Tensor<std::int32_t, 2> some_tokens() {
  Tensor<std::int32_t, 2> tokens({2, 9});
  for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = static_cast<std::int32_t>((i * i + 3) % 11);
  return tokens;
}

}  // namespace

TEST_CASE("model folder: a model and its tokenizer come back bit for bit, also in another precision") {
  test::TemporaryFolder folder;
  Model model(tiny());
  initialize(model, Philox{1});
  save_model(folder / "m", model, TextTokenizer::of_characters("abcdefghijk"));
  const auto again = load_model<Model>(folder / "m");
  const auto a = model.flat().values(), b = again.flat().values();
  REQUIRE(a.size() == b.size());
  for (Index i = 0; i < a.size(); ++i) REQUIRE(a(i) == b(i));
  CHECK(describe_model(folder / "m").tokenizer.characters() == "abcdefghijk");
  SafetensorsFile file(folder / "m" / "model.safetensors");
  CHECK(file.info("backbone.layers.1.mixer.m2.in_proj.weight").shape == std::vector<Index>{2 * 16 + 2 * 4 + 2, 16});
  CHECK(file.info("backbone.layers.0.mixer.conv1d.weight").shape == std::vector<Index>{40, 1, 4});
}

TEST_CASE("model folder: a file that does not fit the model changes nothing and says why") {
  test::TemporaryFolder folder;
  Model model(tiny());
  initialize(model, Philox{1});
  save_model(folder / "m", model, {});
  const std::string path = (folder / "m" / "model.safetensors").string();
  const auto load_with = [&](auto&& change) {
    auto tensors = named_parameters(model);
    change(tensors);
    save_safetensors(path, tensors);
    Model target(tiny());
    initialize(target, Philox{2});
    const auto before = to_tensor(std::as_const(target).flat().values());
    const std::string message = message_of([&] {
      SafetensorsFile file(path);
      load_parameters(file, target);
    });
    for (Index i = 0; i < before.size(); ++i) REQUIRE((message.empty() || before(i) == target.flat().values()(i)));
    return message;
  };
  const auto erase = [](std::vector<NamedTensor>& tensors, const std::string& name) {
    std::erase_if(tensors, [&](const NamedTensor& tensor) { return tensor.name == name; });
  };
  CHECK(load_with([](auto&) {}).empty());
  CHECK(load_with([&](auto& tensors) { erase(tensors, "lm_head.weight"); }) ==
        path + ": there is no tensor lm_head.weight");
  const Tensor<float, 1> wrong({3});
  CHECK(load_with([&](auto& tensors) { tensors.emplace_back("more", wrong); }) ==
        path + ": the model has no parameter for the tensor more");
  CHECK(load_with([&](auto& tensors) {
          erase(tensors, "backbone.norm_f.weight");
          tensors.emplace_back("backbone.norm_f.weight", wrong);
        }) == path + ": tensor backbone.norm_f.weight has the shape (3), the model expects (16)");
  write_json(folder / "m" / "config.json", {{"model", to_json(model.config())}});
  CHECK(message_of([&] { load_model<Model>(folder / "m"); }) ==
        (folder / "m" / "config.json").string() + ": the key \"tokenizer\" is missing");
}

TEST_CASE("conversion: which layers, and what their weights become") {
  CHECK(converts(Conversion::quarter, 7, 9) == true);
  CHECK(converts(Conversion::quarter, 6, 9) == false);
  CHECK(converts(Conversion::alternate, 2, 9) == true);
  auto config = tiny();
  config.layers = all("mamba2", 4);
  config.mixer.set("bias", true);
  Model before(config);
  initialize(before, Philox{1});
  const Model after = to_differential(before, Conversion::alternate, Philox{5});
  CHECK(after.config().layers[0].mixer == "diff_mamba2");
  CHECK(after.config().layers[1].mixer == "mamba2");
  std::map<std::string, std::vector<float>> old, made;
  const auto collect = [](const Model& model, auto& into) {
    model.visit([&](std::string_view name, auto& parameter) {
      const auto values = parameter.to_tensor();
      into[std::string(name)].assign(values.begin(), values.end());
    });
  };
  collect(before, old);
  collect(after, made);
  const std::string at = "backbone.layers.2.mixer.";
  const auto &whole = old[at + "in_proj.weight"], &one = made[at + "m1.in_proj.weight"],
             &two = made[at + "m2.in_proj.weight"];
  REQUIRE(one.size() == (2 * 16 + 2 * 4 + 2) * 16);
  CHECK(std::equal(one.begin(), one.end(), whole.begin()));
  CHECK(std::equal(two.rbegin(), two.rend(), whole.rbegin()));
  const auto &bias = old[at + "in_proj.bias"], &bias2 = made[at + "m2.in_proj.bias"];  // the original leaves it random
  CHECK(std::equal(bias2.rbegin(), bias2.rend(), bias.rbegin()));
  const auto &out = old[at + "out_proj.weight"], &out2 = made[at + "m2.out_proj.weight"];
  for (std::size_t row = 0; row < 16; ++row)
    for (std::size_t column = 0; column < 16; ++column) REQUIRE(out2[row * 16 + column] == out[row * 32 + 16 + column]);
  CHECK(made[at + "m1.A_log"] == old[at + "A_log"]);
  CHECK(made[at + "m2.dt_bias"] == old[at + "dt_bias"]);
  CHECK(made["backbone.layers.2.norm.weight"] == old["backbone.layers.2.norm.weight"]);
  CHECK(made["backbone.layers.1.mixer.in_proj.weight"] == old["backbone.layers.1.mixer.in_proj.weight"]);
  CHECK(made[at + "subln.weight"] == std::vector<float>(16, 1.0f));
  CHECK(message_of([&] { to_differential(after, Conversion::all); }) ==
        "conversion: layer 0 is diff_mamba2, expected mamba2");
}

TEST_CASE("hub layouts: a folder of transformers is the model that its names say") {
  test::TemporaryFolder folder;
  Model model(model_config_from_hugging_face(mamba2_json, "json"));
  initialize(model, Philox{1});
  CHECK(model.config().padded_vocab_size() == 11);
  create_folder(folder / "hf");
  auto tensors = named_parameters(model);
  for (auto& tensor : tensors) tensor.name = hugging_face_name(tensor.name);
  save_safetensors(folder / "hf" / "model.safetensors", tensors);
  write_json(folder / "hf" / "config.json", mamba2_json);
  const auto again = load_hugging_face<Model>(folder / "hf");
  const auto tokens = some_tokens();
  const auto a = model.forward(tokens), b = again.forward(tokens);
  for (Index i = 0; i < a.size(); ++i) REQUIRE(a.data()[i] == b.data()[i]);
  CHECK(hugging_face_name("backbone.layers.3.mixer.m2.in_proj.weight") == "backbone.layers.3.mixer_2.in_proj.weight");
  CHECK(hugging_face_name("backbone.layers.3.mixer.lambda_q1") == "backbone.layers.3.lambda_q1");
  CHECK(hugging_face_name("backbone.embedding.weight") == "backbone.embeddings.weight");
}

TEST_CASE("hub layouts: layer_norm_epsilon holds for every norm of the model") {
  Json json = mamba2_json;
  json["layer_norm_epsilon"] = 1e-2;
  const auto outer = [&] {
    auto config = model_config_from_hugging_face(json, "json");
    for (auto& layer : config.layers) layer.options.set("norm_eps", 1e-5);
    return config;
  }();
  const auto tokens = some_tokens();
  const auto logits = [&](const ModelConfig& config) {
    Model model(config);
    initialize(model, Philox{1});
    return model.forward(tokens);
  };
  const auto all = logits(model_config_from_hugging_face(json, "json")), blocks = logits(outer),
             none = logits(model_config_from_hugging_face(mamba2_json, "json"));
  CHECK(max(abs(all - blocks)).value() > 1e-4f);
  CHECK(max(abs(blocks - none)).value() > 1e-4f);
}

TEST_CASE("hub layouts: what is not implemented says so") {
  const auto message = [](const char* key, const Json& value) {
    Json json = mamba2_json;
    json[key] = value;
    return message_of([&] { model_config_from_hugging_face(json, "config.json"); });
  };
  CHECK(message("model_type", "mamba2").empty());
  CHECK(message("model_type", "bamba").find("config.json: \"model_type\" must be \"mamba2\"") == 0);
  CHECK(message("hidden_act", "gelu").find("config.json: \"hidden_act\" must be \"silu\"") == 0);
  CHECK(message("layer_norm_epsilon", -1.0) == "model: norm_epsilon is -1, expected 0 or more");
  CHECK(message("num_heads", 3) == "config.json: num_heads 3 times head_dim 16 is not expand 2 times hidden_size 16");
  CHECK(message("num_hidden_layers", 0) == "config.json: \"num_hidden_layers\" is 0, expected 1 or more");
  CHECK(message("hidden_size", "wide") == "config.json: \"hidden_size\" is not a number");
}
