// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/model/language_model.hpp"

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace diffmamba;

namespace {

template <class T>
using Model = LanguageModel<cpu, T, T, Mamba2<T>, Differential<Mamba2<T>>>;

ModelConfig tiny(bool tied = true) {
  ModelConfig config{.d_model = 8,
                     .vocab_size = 11,
                     .layers = alternating("mamba2", "diff_mamba2", 3),
                     .mixer = {{"d_state", 4.0}, {"headdim", 4.0}, {"chunk_size", 4.0}},
                     .tie_embeddings = tied};
  config.initializer_range = 0.5;
  return config;
}

Tensor<std::int32_t, 2> random_tokens(Index batch, Index length, Index vocab, unsigned seed) {
  Tensor<std::int32_t, 2> tokens({batch, length});
  std::mt19937_64 generator(seed);
  for (auto& token : tokens) token = static_cast<std::int32_t>(generator() % static_cast<std::uint64_t>(vocab));
  return tokens;
}

}  // namespace

TEST_CASE("language model: gradients of every parameter agree with central differences") {
  for (const bool tied : {true, false})
    for (const double dropout : {0.0, 0.25}) {
      CAPTURE(tied);
      CAPTURE(dropout);
      ModelConfig config = tiny(tied);
      config.dropout = dropout;
      config.rms_norm = tied;
      Model<double> model(config);
      initialize(model, Philox{3});
      const auto tokens = random_tokens(2, 7, 11, 1);
      auto targets = random_tokens(2, 7, 11, 2);
      targets(1, 3) = -100;
      const BackwardOptions options{.scale = 0.5, .dropout = Philox{9}};
      model.zero_gradients();
      model.forward_backward(tokens, targets, options);
      const auto values = model.flat().values();
      const auto gradients = to_tensor(std::as_const(model).flat().gradients());
      const auto loss = [&] { return 0.5 * model.forward_backward(tokens, targets, options); };
      double scale = 0;
      for (double g : gradients) scale = std::max(scale, std::abs(g));
      for (const auto& segment : model.flat().segments)
        for (Index k = 0; k < std::min<Index>(segment.size, 4); ++k) {
          const Index i = segment.offset + (k * 7919) % segment.size;
          double& x = values(i);
          const double kept = x, h = 1e-3;
          const auto at = [&](double step) {
            x = kept + step;
            return loss();
          };
          const double numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
          x = kept;
          INFO("element ", i, ": analytic ", gradients(i), ", numeric ", numeric);
          CHECK(std::abs(gradients(i) - numeric) <= 1e-7 * scale);
        }
    }
}

TEST_CASE("language model: the fused loss is the cross entropy of the logits, also in pieces of the head") {
  Model<double> model(tiny());
  initialize(model, Philox{3});
  const auto tokens = random_tokens(3, 701, 11, 1), targets = random_tokens(3, 701, 11, 2);  // more rows than head_rows
  const auto logits = model.forward(tokens);
  CHECK(logits.extents() == Extents<3>{3, 701, 16});
  double sum = 0;
  for (Index b = 0; b < 3; ++b)
    for (Index t = 0; t < 701; ++t) {
      double total = 0;
      for (Index v = 0; v < 11; ++v) total += std::exp(logits(b, t, v));
      sum += std::log(total) - logits(b, t, targets(b, t));
    }
  const double want = sum / (3 * 701);
  CHECK(std::abs(model.loss(tokens, targets) - want) < 1e-12);
  model.zero_gradients();
  CHECK(std::abs(model.forward_backward(tokens, targets) - want) < 1e-12);
  // The rows of the embedding that pad the vocabulary never get a gradient; twice the batch adds up.
  const auto once = to_tensor(std::as_const(model).flat().gradients());
  for (Index i = 11 * 8; i < 16 * 8; ++i) CHECK(once(i) == 0.0);
  model.forward_backward(tokens, targets);
  for (Index i = 0; i < once.size(); ++i) CHECK(model.flat().gradients()(i) == doctest::Approx(2 * once(i)));
}

TEST_CASE("language model: gradients that are assigned, whatever they were, are those added to zeros") {
  const auto tokens = random_tokens(2, 7, 11, 1), targets = random_tokens(2, 7, 11, 2);
  for (const bool tied : {true, false})
    for (const double bias : {0.0, 1.0}) {
      CAPTURE(tied);
      CAPTURE(bias);
      ModelConfig config = tiny(tied);
      config.mixer.set("bias", bias > 0);
      config.layers.push_back({"diff_mamba2", {{"norm", "before"}}});
      Model<double> model(config);
      initialize(model, Philox{3});
      model.zero_gradients();
      const double loss = model.forward_backward(tokens, targets);
      const auto want = to_tensor(std::as_const(model).flat().gradients());
      // What lies between the parameters stays zero.
      for (const auto& segment : model.flat().segments)
        for (Index i = 0; i < segment.size; ++i) model.flat().gradients()(segment.offset + i) = 1e30;
      CHECK(model.forward_backward(tokens, targets, {.gradients = GradientMode::assign}) == loss);
      for (Index i = 0; i < want.size(); ++i) REQUIRE(model.flat().gradients()(i) == want(i));
    }
}

TEST_CASE("language model: prefill and steps give the logits of one pass, in double") {
  Model<double> model(tiny());
  initialize(model, Philox{3});
  const auto tokens = random_tokens(2, 11, 11, 1);
  const auto logits = model.forward(tokens);
  auto state = model.prefill(tokens.slice<1>(0, 6));
  for (Index t = 6; t < 11; ++t) {
    model.step(tokens.select<1>(t), state);
    for (Index b = 0; b < 2; ++b)
      for (Index v = 0; v < 11; ++v) CHECK(std::abs(state.logits(b, v) - logits(b, t, v)) < 1e-13);
  }
}
