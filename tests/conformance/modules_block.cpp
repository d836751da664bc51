// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/modules.hpp"
#include "diffmamba/io/hub_layouts.hpp"
#include "diffmamba/nn/block.hpp"
#include "diffmamba/nn/differential.hpp"
#include "diffmamba/nn/mamba.hpp"
#include "diffmamba/nn/mamba2.hpp"

namespace diffmamba::conformance {
namespace {

template <class M>
void run_block(Case& golden) {
  using T = typename M::value_type;
  using R = accumulate_t<T>;
  using D = typename M::device_type;
  const std::string norm = golden.text("norm", "rms_norm");
  golden.integer("mlp_multiple_of", 0);  // there is no MLP
  require(golden.integer("d_intermediate", 0) == 0, "attribute d_intermediate: the gated MLP is not in this version");
  typename M::Options mixer_options{.d_model = golden.integer("d_model", 0)};
  read_options(golden, mixer_options);
  Block<M> block(mixer_options.d_model, mixer_options,
                 {.norm = parse_enum<NormKind>(norm), .eps = golden.number("eps", 1e-5)});
  load_parameters(golden, block);

  const auto hidden = golden.tensor<T, 3, D>("in.hidden_states");
  const auto residual = golden.optional<R, 3, D>("in.residual");
  golden.expect("residual", static_cast<bool>(residual));
  typename Block<M>::Saved saved;
  golden.check("out.hidden_states", block.forward(hidden.view(), residual.view(), saved));
  golden.check("out.residual", saved.residual());

  if (!golden.has("gout.hidden_states") && !golden.has("gout.residual")) return;
  const auto gradient_of = [&]<class E>(E, const char* name) {
    return golden.has(name) ? golden.tensor<E, 3, D>(name) : Tensor<E, 3, D>(hidden.extents());
  };
  const auto dhidden = gradient_of(T{}, "gout.hidden_states");
  auto dresidual = gradient_of(R{}, "gout.residual");
  block.backward(dhidden.view(), dresidual.view(), saved);
  golden.gradient("in.hidden_states", dresidual);
  golden.gradient("in.residual", dresidual);
  check_gradients(golden, block);
}

template <class T, class D>
void block(Case& golden) {
  const std::string mixer = golden.text("mixer", "mamba");
  if (mixer == "mamba") return run_block<Mamba<T, D>>(golden);
  if (mixer == "mamba2") return run_block<Mamba2<T, D>>(golden);
  fail("attribute mixer is \"", mixer, "\", expected mamba or mamba2");
}

/// The names inside one block: those of a model without what comes before.
std::string block_name(std::string_view ours) {
  return hugging_face_name("." + std::string(ours)).substr(1);
}

/// The block of the published Hugging Face model: hidden + mixer(norm(hidden)), the sum not left to the next block.
template <class T, class D>
void diff_mamba2_block(Case& golden) {
  using M = Differential<Mamba2<T, D>>;
  using R = accumulate_t<T>;
  Json json = golden.json("config");  // that of the plain model
  json["diffmamba"] = true;
  json["diffmamba_settings"] = "all";
  const ModelConfig config = model_config_from_hugging_face(json, "attribute config");
  auto options = layer_options<M>(config, 0);
  options.differential.depth = golden.integer("layer_idx", 0);  // counts from 0
  options.differential.eps = golden.number("subln_eps", 1e-5);
  golden.expect_number("lambda_init", lambda_init(options.differential.depth));
  Block<M> block(config.d_model, options, {.eps = config.norm_epsilon});
  load_parameters(golden, block, block_name);

  const auto hidden = golden.tensor<T, 3, D>("in.hidden_states");
  typename Block<M>::Saved saved;
  const auto out = block.forward(hidden.view(), {}, saved);
  auto sum = to<cpu>(saved.residual());  // in the type of the stream
  const auto own = to<cpu>(out);
  for (Index i = 0; i < sum.size(); ++i) sum.data()[i] += static_cast<R>(own.data()[i]);
  golden.check("out.hidden_states", sum);

  if (!golden.has("gout.hidden_states")) return;
  const auto dhidden = golden.tensor<T, 3, D>("gout.hidden_states");
  auto dresidual = golden.tensor<R, 3, D>("gout.hidden_states");
  block.backward(dhidden.view(), dresidual.view(), saved);
  golden.gradient("in.hidden_states", dresidual);
  check_gradients(golden, block, block_name);
}

const Register block_registered("block", []<class T, class D>(Case& golden) { block<T, D>(golden); });
const Register diff_registered("diff_mamba2_block",
                               []<class T, class D>(Case& golden) { diff_mamba2_block<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
