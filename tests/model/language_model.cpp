// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/model/language_model.hpp"

#include <doctest/doctest.h>

#include <set>

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

template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("language model: prefill and steps give the logits of one pass") {
  Model<float> model(tiny());
  initialize(model, Philox{3});
  const auto tokens = random_tokens(2, 23, 11, 1);
  const auto logits = model.forward(tokens);
  for (const Index prompt : {0, 1, 6, 22}) {
    CAPTURE(prompt);
    auto state = model.make_state(2);
    model.prefill(tokens.slice<1>(0, prompt / 2), state);
    model.prefill(tokens.slice<1>(prompt / 2, prompt), state);
    CHECK(state.position == prompt);
    const auto snapshot = state;
    for (int again = 0; again < 2; ++again) {
      for (Index t = prompt; t < 23; ++t) {
        model.step(tokens.select<1>(t), state);
        for (Index b = 0; b < 2; ++b)
          for (Index v = 0; v < 11; ++v)
            CHECK(std::abs(static_cast<double>(state.logits(b, v) - logits(b, t, v))) < 1e-5);
      }
      state = snapshot;  // a state is a value: go back
    }
  }
}

TEST_CASE("language model: the same bits on one and two threads, and from a copy") {
  Model<float> model(tiny(false));
  initialize(model, Philox{5});
  const auto tokens = random_tokens(4, 33, 11, 1), targets = random_tokens(4, 33, 11, 2);
  const auto run = [&](int threads, Model<float>& which) {
    Threads scope(threads);
    which.zero_gradients();
    const double loss = which.forward_backward(tokens, targets);
    return std::pair{loss, to_tensor(std::as_const(which).flat().gradients())};
  };
  Model<float> copied(model);
  const auto [loss1, gradients1] = run(1, model);
  const auto [loss2, gradients2] = run(2, model);
  const auto [loss3, gradients3] = run(1, copied);
  CHECK(loss1 == loss2);
  CHECK(loss1 == loss3);
  for (Index i = 0; i < gradients1.size(); ++i) {
    REQUIRE(gradients1(i) == gradients2(i));
    REQUIRE(gradients1(i) == gradients3(i));
  }
  copied.flat().values()(0) = 100.0f;
  CHECK(model.flat().values()(0) != 100.0f);
}

TEST_CASE("language model: steady state takes nothing from the system") {
  Model<float> model(tiny());
  initialize(model, Philox{5});
  const auto tokens = random_tokens(4, 33, 11, 1), targets = random_tokens(4, 33, 11, 2);
  const auto prompt = random_tokens(1, 5, 11, 3);
  const auto round = [&] {
    model.forward_backward(tokens, targets);
    auto state = model.prefill(prompt);
    for (int i = 0; i < 20; ++i) model.step(i % 11, state);
  };
  round();
  round();
  const std::size_t before = arena<cpu>().system_allocations(), bytes = arena<cpu>().bytes_in_use();
  for (int i = 0; i < 3; ++i) round();
  CHECK(arena<cpu>().system_allocations() == before);
  CHECK(arena<cpu>().bytes_in_use() == bytes);
}

TEST_CASE("language model: official names and sizes") {
  Model<float> model(tiny(false));
  std::set<std::string> names;
  model.visit([&](std::string_view name, auto&) { names.insert(std::string(name)); });
  for (const char* name :
       {"backbone.embedding.weight", "backbone.layers.0.norm.weight", "backbone.layers.0.mixer.in_proj.weight",
        "backbone.layers.0.mixer.out_proj.weight", "backbone.layers.1.mixer.m1.in_proj.weight",
        "backbone.layers.1.mixer.m2.A_log", "backbone.layers.1.mixer.lambda_q1", "backbone.layers.1.mixer.subln.weight",
        "backbone.norm_f.weight", "lm_head.weight"}) {
    CAPTURE(name);
    CHECK(names.contains(name));
  }
  Index count = 0;
  for (const auto& segment : model.flat().segments) count += segment.size;
  CHECK(model.parameter_count() == count);
  Model<float> tied(tiny(true));
  CHECK(tied.parameter_count() == count - 16 * 8);
}

TEST_CASE("language model: official initialisation") {
  ModelConfig config = tiny();
  config.vocab_size = 4000;
  config.initializer_range = 0.02;
  config.layers = all("mamba2", 4);
  const auto spread = [](const auto& model, std::string_view wanted) {
    double sum = 0, largest = 0;
    Index count = 0;
    model.visit([&](std::string_view name, auto& parameter) {
      if (name != wanted) return;
      for (const auto x : parameter.to_tensor()) {
        sum += static_cast<double>(x * x);
        largest = std::max(largest, std::abs(static_cast<double>(x)));
        ++count;
      }
    });
    return std::pair{std::sqrt(sum / static_cast<double>(count)), largest};
  };
  Model<float> model(config);
  initialize(model, Philox{1});
  CHECK(spread(model, "backbone.embedding.weight").first == doctest::Approx(0.02).epsilon(0.02));
  const double bound = 1 / std::sqrt(16.0) / std::sqrt(4.0);  // d_inner 16, four layers
  CHECK(spread(model, "backbone.layers.3.mixer.out_proj.weight").second <= bound);
  CHECK(spread(model, "backbone.layers.3.mixer.out_proj.weight").second > 0.9 * bound);
  CHECK(spread(model, "backbone.norm_f.weight").first == 1.0);
}

TEST_CASE("language model: mistakes are one sentence") {
  const auto wrong = [&](auto&& change) {
    return message_of([&] {
      ModelConfig config = tiny();
      change(config);
      Model<float> model(config);
    });
  };
  CHECK(wrong([](ModelConfig&) {}).empty());
  CHECK(wrong([](ModelConfig& c) { c.layers[1] = "mamba3"; }) ==
        "model: layer 1 is called \"mamba3\"; this model knows mamba2, diff_mamba2");
  CHECK(wrong([](ModelConfig& c) { c.mixer.set("d_stat", 3.0); }) == "model: none of its mixers has an option d_stat");
  CHECK(wrong([](ModelConfig& c) { c.layers.clear(); }) == "model: there are no layers");
  CHECK(wrong([](ModelConfig& c) {
          c.mixer.set("dt_limit", std::array<double, 2>{2, 1});
        }).find("dt_limit is reversed") != std::string::npos);

  Model<float> model(tiny());
  initialize(model, Philox{1});
  auto tokens = random_tokens(2, 3, 11, 1), targets = random_tokens(2, 3, 11, 1);
  CHECK(message_of([&] {
          model.loss(tokens, random_tokens(2, 4, 11, 1));
        }).find("targets has the shape (2, 4), expected (2, 3)") != std::string::npos);
  CHECK(message_of([&] {
          model.loss(Tensor<std::int32_t, 2>({2, 0}), Tensor<std::int32_t, 2>({2, 0}));
        }) == "model: a batch of shape (2, 0) has no tokens");
  CHECK(message_of([&] { model.prefill(tokens, *std::make_unique<Model<float>::State>(model.make_state(3))); }) ==
        "model: 2 rows of tokens for a state of 3 sequences");
  tokens(1, 2) = 11;  // in the padding of the embedding
  CHECK(message_of([&] { model.forward(tokens); }) ==
        "model: token 11 at position (1, 2) is out of range, the vocabulary has 11");
  CHECK_THROWS_AS(model.forward_backward(targets, tokens), Error);
}

TEST_CASE("language model: the first thing that is not finite is named") {
  Model<float> model(tiny());
  initialize(model, Philox{1});
  const auto tokens = random_tokens(1, 5, 11, 1);
  CHECK(model.first_not_finite(tokens).empty());
  const auto set = [&](std::string_view wanted, float value) {
    model.visit([&](std::string_view name, auto& parameter) {
      if (name != wanted) return;
      auto values = parameter.to_tensor();
      values.fill(value);
      parameter.copy_from(values);
    });
  };
  set("backbone.layers.1.norm.weight", 1e38f);
  CHECK(model.first_not_finite(tokens) == "the output of layer 1 (diff_mamba2)");
  set("backbone.layers.2.mixer.D", std::numeric_limits<float>::quiet_NaN());
  CHECK(model.first_not_finite(tokens) == "the parameter backbone.layers.2.mixer.D");
}
