// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>  // std::filesystem::path

#include "diffmamba/data/corpus.hpp"  // TextTokenizer and its JSON
#include "diffmamba/io/model_config_json.hpp"
#include "diffmamba/io/parameters_file.hpp"

namespace diffmamba {

/// A model on disk is a folder: config.json with the configuration and the tokenizer, model.safetensors with the
/// weights under their official names.
struct ModelDescription {
  ModelConfig config;
  TextTokenizer tokenizer;
};

/// Each file is whole or the old one.
template <class Model>
void save_model(const std::filesystem::path& folder, const Model& model, const TextTokenizer& tokenizer) {
  create_folder(folder);
  save_safetensors(folder / "model.safetensors", named_parameters(model), {{"format", "pt"}});
  write_json(folder / "config.json", {{"model", to_json(model.config())}, {"tokenizer", to_json(tokenizer)}});
}

inline ModelDescription describe_model(const std::filesystem::path& folder) {
  const auto path = folder / "config.json";
  const Json json = read_json(path);
  detail::JsonReader reader(json, path.string());
  ModelDescription result{model_config_from_json(reader.at("model"), path.string()),
                          tokenizer_from_json(reader.at("tokenizer"), path.string())};
  reader.finish();
  require(result.tokenizer.vocab_size() <= result.config.vocab_size, path.string(), ": the tokenizer has ",
          result.tokenizer.vocab_size(), " tokens, the model knows ", result.config.vocab_size.get());
  return result;
}

/// auto model = load_model<LanguageModel<cpu>>("runs/shakespeare/best");
template <class Model>
Model load_model(const std::filesystem::path& folder) {
  Model model(describe_model(folder).config);
  SafetensorsFile file(folder / "model.safetensors");
  load_parameters(file, model);
  return model;
}

}  // namespace diffmamba
