// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/io/hub_layouts.hpp"
#include "diffmamba/model/language_model.hpp"
#include "diffmamba/train/adamw.hpp"
#include "diffmamba/train/clip.hpp"

namespace diffmamba::conformance {
namespace {

/// Two mixers are all that these models have; fewer types compile faster.
template <class T, class D>
using Model = LanguageModel<D, T, T, Mamba2<T, D>, Differential<Mamba2<T, D>>>;

/// read(name, parameter) for every parameter under the name that it has in the files.
template <class ModelType, class Read>
void visit_official(ModelType& model, Read&& read) {
  model.visit([&](std::string_view name, auto& parameter) { read(hugging_face_name(name), parameter); });
}

/// Computed on the host, wherever the gradients are.
template <class View>
double norm_of(const View& gradients) {
  const auto here = to<cpu>(gradients);
  return global_norm(here.view());
}

/// Labels are the inputs; position t is held against label t + 1, the last against none.
Tensor<std::int32_t, 2> next_tokens(const Tensor<std::int32_t, 2>& labels) {
  return to_tensor(cross_entropy::shifted(labels).reshape(labels.extents()));
}

template <class T, class D>
void convert(Case& golden) {
  const Model<T, D> before = load_hugging_face<Model<T, D>>(golden.folder() / "before");
  const ModelConfig config = model_config_from_hugging_face(golden.json("config"), "attribute config");
  require(config.d_model == before.config().d_model && config.layers == before.config().layers,
          "before/config.json and the attribute config are different models");
  const auto ids = golden.tensor<std::int32_t, 2>("in.input_ids");
  const auto targets = next_tokens(golden.tensor<std::int32_t, 2>("in.labels"));
  golden.check("out.logits_before", before.forward(ids));

  // The conversion; lambda is drawn at random and therefore given.
  const auto setting = parse_enum<Conversion>(golden.text("diffmamba_settings", "alternate"));
  Model<T, D> after = to_differential(before, setting);
  visit_official(after, [&](const std::string& name, auto& parameter) {
    if (golden.has("in." + name))
      parameter.copy_from(golden.tensor<T, std::remove_cvref_t<decltype(parameter)>::rank>("in." + name));
  });
  visit_official(std::as_const(after), [&](const std::string& name, auto& parameter) {
    golden.check("out.after." + name, parameter.to_tensor());
  });
  // What the authors' own conversion wrote is the same model.
  golden.check("out.logits", load_hugging_face<Model<T, D>>(golden.folder() / "after").forward(ids));

  golden.check("out.logits", after.forward(ids));
  after.zero_gradients();
  golden.check("out.loss", after.forward_backward(ids, targets));
  visit_official(std::as_const(after), [&](const std::string& name, auto& parameter) {
    golden.gradient("param." + name, parameter.gradient_to_tensor());
  });

  // Greedy, through the recurrent state.
  const auto prompt = golden.tensor<std::int32_t, 2>("in.prompt_ids");
  const Index batch = prompt.extent(0), length = prompt.extent(1), count = golden.integer("new_tokens", 0);
  golden.expect("prompt_len", length);
  Tensor<std::int32_t, 2> generated({batch, length + count});
  copy(prompt, generated.template slice<1>(0, length));
  Tensor<T, 3> decode_logits({batch, count, config.vocab_size});
  auto state = after.prefill(prompt);
  for (Index t = 0; t < count; ++t) {
    const auto logits = to<cpu>(state.logits);
    copy(logits, decode_logits.template select<1>(t));
    Tensor<std::int32_t, 1> next{Extents<1>(batch)};
    for (Index b = 0; b < batch; ++b) {
      const T* row = logits.view().pointer(b);
      next(b) = static_cast<std::int32_t>(std::max_element(row, row + config.vocab_size) - row);
      generated(b, length + t) = next(b);
    }
    after.step(next, state);
  }
  golden.check("out.generated_ids", generated);
  golden.check("out.decode_logits", decode_logits);
}

template <class T, class D>
void train(Case& golden) {
  Json json = golden.json("config");
  json["diffmamba"] = true;
  json["diffmamba_settings"] = golden.text("diffmamba_settings", "alternate");
  Model<T, D> model(model_config_from_hugging_face(json, "attribute config"));
  visit_official(model, [&](const std::string& name, auto& parameter) {
    parameter.copy_from(golden.tensor<T, std::remove_cvref_t<decltype(parameter)>::rank>("param." + name));
  });

  // Which parameters decay: all, or all but those listed.
  std::set<std::string> listed;
  if (golden.given("no_decay"))
    for (const auto& name : golden.json("no_decay")) listed.insert(name.get<std::string>());
  if (!golden.flag("no_decay_groups", false)) listed.clear();
  std::map<Index, Decay> decay;
  std::size_t known = 0;
  visit_official(model, [&](const std::string& name, auto& parameter) {
    known += listed.count(name);
    const Index offset = parameter.memory().value_data() - model.flat().values().data();
    const Decay wanted = listed.contains(name) ? Decay::no : Decay::yes;
    require(decay.emplace(offset, wanted).first->second == wanted, "no_decay: ", name, " differs from its other path");
  });
  require(known == listed.size(), "no_decay names ", listed.size() - known, " parameters that the model does not have");
  for (auto& segment : model.flat().segments) segment.decay = decay.at(segment.offset);

  const Json& optimizer_json = golden.json("optimizer");
  const auto option = [&](const char* key) {
    require(optimizer_json.contains(key), "optimizer: ", key, " is missing");
    return optimizer_json[key].get<double>();
  };
  for (const auto& [key, value] : optimizer_json.items())
    require(key == "lr" || key == "betas" || key == "eps" || key == "weight_decay", "optimizer: ", key,
            " is not known");
  AdamW<T, D> optimizer(model, {.lr = option("lr"),
                                .beta1 = optimizer_json.at("betas").at(0).get<double>(),
                                .beta2 = optimizer_json.at("betas").at(1).get<double>(),
                                .eps = option("eps"),
                                .weight_decay = option("weight_decay")});

  const auto ids = golden.tensor<std::int32_t, 3>("in.input_ids");
  const Index steps = ids.extent(0);
  golden.expect("steps", steps);
  const auto lr = golden.numbers("lr_per_step", std::vector<double>(static_cast<std::size_t>(steps), option("lr")));
  const double max_norm = golden.number("max_grad_norm", HUGE_VAL);
  Tensor<double, 1> losses{Extents<1>(steps)}, norms{Extents<1>(steps)};
  for (Index step = 0; step < steps; ++step) {
    const auto batch = to_tensor(ids.template select<0>(step));
    model.zero_gradients();
    losses(step) = model.forward_backward(batch, next_tokens(batch));
    norms(step) = norm_of(model.flat().gradients());
    optimizer.step(model, lr[static_cast<std::size_t>(step)], clip_factor(norms(step), max_norm));
  }
  golden.check("out.loss", losses);
  golden.check("out.grad_norm", norms);
  visit_official(std::as_const(model), [&](const std::string& name, auto& parameter) {
    golden.check("out.param." + name, parameter.to_tensor());
  });
}

const Register convert_registered(
    "mamba2_to_diffmamba2", []<class T, class D>(Case& golden) { convert<T, D>(golden); }, NoBfloat16{});
const Register train_registered(
    "adamw_training", []<class T, class D>(Case& golden) { train<T, D>(golden); }, NoBfloat16{});

}  // namespace
}  // namespace diffmamba::conformance
