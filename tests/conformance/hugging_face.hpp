// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>          // std::set
#include <string>       // std::string
#include <string_view>  // std::string_view

#include "diffmamba/io/json.hpp"
#include "diffmamba/nn/mamba2.hpp"

// Mamba-2 models as transformers writes them: configuration and names. What the goldens of blocks, conversion and
// training need; the library itself does not read such folders in this version.
namespace diffmamba::conformance {

struct HuggingFaceConfig {
  Index d_model, layers, vocab_size;
  bool tied;
  double epsilon;
  Mamba2Options mixer;  // of a plain layer
};

inline HuggingFaceConfig read_hugging_face(const Json& json) {
  std::set<std::string> known = {"architectures",
                                 "time_step_rank",
                                 "time_step_min",
                                 "time_step_max",
                                 "time_step_floor",
                                 "use_cache",
                                 "initializer_range",
                                 "bos_token_id",
                                 "eos_token_id",
                                 "pad_token_id",
                                 "rescale_prenorm_residual",
                                 "verbose",
                                 "transformers_version",
                                 "dtype",
                                 "diffmamba",
                                 "diffmamba_settings",
                                 "residual_in_fp32"};  // what does not change what the model computes
  const auto value = [&](const char* key) -> const Json& {
    known.insert(key);
    require(json.contains(key), "config: ", key, " is missing");
    return json[key];
  };
  const auto integer = [&](const char* key) {
    require(value(key).is_number_integer(), "config: ", key, " is no integer");
    return value(key).get<Index>();
  };
  const auto flag = [&](const char* key) {
    require(value(key).is_boolean(), "config: ", key, " is neither true nor false");
    return value(key).get<bool>();
  };
  require(value("model_type") == "mamba2", "config: model_type is ", value("model_type").dump(), ", expected mamba2");
  require(value("hidden_act") == "silu", "config: hidden_act is ", value("hidden_act").dump(), ", expected silu");
  require(flag("rms_norm"), "config: rms_norm is false");
  HuggingFaceConfig config{.d_model = integer("hidden_size"),
                           .layers = integer("num_hidden_layers"),
                           .vocab_size = integer("vocab_size"),
                           .tied = flag("tie_word_embeddings"),
                           .epsilon = value("layer_norm_epsilon").get<double>(),
                           .mixer = {.d_model = integer("hidden_size")}};
  // The gated norms of these models have the model's epsilon, ours always the official 1e-5.
  require(config.epsilon == 1e-5, "config: layer_norm_epsilon is ", config.epsilon, ", expected 1e-5");
  auto& m = config.mixer;
  m.d_state = integer("state_size");
  m.d_conv = integer("conv_kernel");
  m.expand = integer("expand");
  m.headdim = integer("head_dim");
  m.ngroups = integer("n_groups");
  m.norm_groups = NormGroups::whole;
  m.bias = flag("use_bias");
  m.conv_bias = flag("use_conv_bias");
  m.chunk_size = integer("chunk_size");
  require(integer("num_heads") * m.headdim == m.expand * config.d_model, "config: ", integer("num_heads"), " heads of ",
          m.headdim, " channels are not expand * hidden_size = ", m.expand * config.d_model);
  const Json& limit = value("time_step_limit");
  require(limit.is_array() && limit.size() == 2 && json_number(limit[0]) && json_number(limit[1]),
          "config: time_step_limit is ", limit.dump(), ", expected two numbers");
  m.dt_limit = {*json_number(limit[0]), *json_number(limit[1])};
  for (const auto& [key, unused] : json.items()) require(known.contains(key), "config: the key ", key, " is not known");
  return config;
}

/// A plain layer's mixer as one path of the differential one: half as wide, as many heads.
inline Mamba2Options halved(const Mamba2Options& plain) {
  require(plain.expand % 2 == 0 && plain.headdim % 2 == 0, "config: expand ", plain.expand, " and head_dim ",
          plain.headdim, " cannot be halved");
  Mamba2Options path = plain;
  path.expand /= 2;
  path.headdim /= 2;
  return path;
}

/// "backbone.layers.0.mixer.m1.D" is called "backbone.layers.0.mixer_1.D" there, "mixer.lambda_q1" "lambda_q1".
inline std::string hugging_face_name(std::string_view ours) {
  std::string name(ours);
  const auto replace = [&](std::string_view from, std::string_view to) {
    if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  };
  replace("backbone.embedding.", "backbone.embeddings.");
  replace("mixer.m1.", "mixer_1.");
  replace("mixer.m2.", "mixer_2.");
  replace("mixer.lambda_", "lambda_");
  replace("mixer.subln.", "subln.");
  return name;
}

}  // namespace diffmamba::conformance
