// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>   // std::filesystem::path
#include <string>       // std::string
#include <string_view>  // std::string_view

#include "diffmamba/io/model_config_json.hpp"
#include "diffmamba/io/parameters_file.hpp"
#include "diffmamba/model/conversion.hpp"

/// Folders as Hugging Face transformers writes them, `config.json` and `model.safetensors`, of Mamba-2 models and of
/// those that the Diff-Mamba authors made of them ("diffmamba": true), with tensors of any floating type. Other model
/// types, sharded checkpoints and the layout of mamba_ssm are not implemented in this version and say so.
namespace diffmamba {

/// Our name of a parameter, which is that of mamba_ssm, as transformers calls it: backbone.embeddings.weight; and as
/// the Diff-Mamba authors do: layers.3.mixer_1.*, layers.3.lambda_q1, layers.3.subln.weight for mixer.m1.*,
/// mixer.lambda_q1, mixer.subln.weight.
inline std::string hugging_face_name(std::string_view name) {
  std::string result(name);
  const auto replace = [&](std::string_view from, std::string_view to) {
    const auto at = result.find(from);
    if (at != std::string::npos) result.replace(at, from.size(), to);
  };
  replace("backbone.embedding.", "backbone.embeddings.");
  replace(".mixer.m1.", ".mixer_1.");
  replace(".mixer.m2.", ".mixer_2.");
  replace(".mixer.lambda_", ".lambda_");
  replace(".mixer.subln.", ".subln.");
  return result;
}

namespace detail {
/// "model_type" of the field that is read, and what the code below relies on.
inline void require_supported(JsonReader& reader) {
  const auto expect = [&](const char* key, bool ok, const char* what) {
    require(ok, reader.source(), ": \"", key, "\" must be ", what,
            "; anything else is not implemented in this version");
  };
  expect("model_type", reader.text("model_type") == "mamba2", "\"mamba2\"");
  if (reader.has("hidden_act")) expect("hidden_act", reader.text("hidden_act") == "silu", "\"silu\"");
  if (reader.has("rms_norm")) expect("rms_norm", reader.flag("rms_norm"), "true");
}
}  // namespace detail

/// The configuration of a model from the config.json of transformers. `source` names the file.
inline ModelConfig model_config_from_hugging_face(const Json& json, const std::string& source) {
  detail::JsonReader reader(json, source);
  detail::require_supported(reader);
  const Index d_model = reader.whole("hidden_size"), layers = reader.whole("num_hidden_layers");
  require(layers >= 1, source, ": \"num_hidden_layers\" is ", layers, ", expected 1 or more");
  const Index heads = reader.whole("num_heads"), headdim = reader.whole("head_dim");
  double expand = 2;
  reader.read("expand", expand);
  require(static_cast<double>(heads * headdim) == expand * static_cast<double>(d_model), source, ": num_heads ", heads,
          " times head_dim ", headdim, " is not expand ", expand, " times hidden_size ", d_model);
  MixerOptions mixer;
  const auto take = [&](const char* theirs, const char* ours) {
    if (reader.has(theirs)) mixer.set(ours, detail::option_from_json(reader.at(theirs), source, theirs));
  };
  take("state_size", "d_state");
  take("conv_kernel", "d_conv");
  take("n_groups", "ngroups");
  take("chunk_size", "chunk_size");
  take("use_bias", "bias");
  take("use_conv_bias", "conv_bias");
  take("time_step_limit", "dt_limit");
  take("time_step_min", "dt_min");
  take("time_step_max", "dt_max");
  take("time_step_floor", "dt_init_floor");
  take("layer_norm_epsilon", "norm_eps");          // of the gated norm too; that of subln is always 1e-5
  mixer.set("norm_groups", std::string("whole"));  // transformers ignores n_groups there
  mixer.set("expand", expand);
  mixer.set("headdim", static_cast<double>(headdim));
  Layers stack = all({"mamba2", mixer}, layers);
  bool differential = false;
  reader.read("diffmamba", differential);
  if (differential) {
    std::string settings = "alternate";
    reader.read("diffmamba_settings", settings);
    stack = differential_layers(stack, d_model, parse_enum<Conversion>(settings));
  }

  ModelConfig config{.d_model = d_model, .vocab_size = reader.whole("vocab_size"), .layers = std::move(stack)};
  config.pad_vocab_size_multiple = 1;
  reader.read("layer_norm_epsilon", config.norm_epsilon);
  reader.read("residual_in_fp32", config.residual_in_fp32);
  config.tie_embeddings = false;
  reader.read("tie_word_embeddings", config.tie_embeddings);
  reader.read("initializer_range", config.initializer_range);
  reader.read("rescale_prenorm_residual", config.rescale_prenorm_residual);
  check(config);
  return config;
}

/// Loads such a folder: auto model = load_hugging_face<LanguageModel<cpu>>("mamba2-370m/");
template <class Model>
Model load_hugging_face(const std::filesystem::path& folder) {
  const auto config_path = folder / "config.json";
  Model model(model_config_from_hugging_face(read_json(config_path), config_path.string()));
  require(!std::filesystem::exists(folder / "model.safetensors.index.json"), folder.string(),
          ": sharded checkpoints are not implemented in this version");
  SafetensorsFile file(folder / "model.safetensors");
  load_parameters(file, model, hugging_face_name);
  return model;
}

}  // namespace diffmamba
