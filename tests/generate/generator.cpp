// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/generate/generator.hpp"

#include <doctest/doctest.h>

#include <chrono>

#include "diffmamba/eval/perplexity.hpp"
#include "diffmamba/model/language_model.hpp"

using namespace diffmamba;

namespace {

using Model = LanguageModel<cpu, float, float, Differential<Mamba2<float>>>;

Model tiny() {
  ModelConfig config{
      .d_model = 16, .vocab_size = 11, .layers = all("diff_mamba2", 2), .mixer = {{"d_state", 8.0}, {"headdim", 8.0}}};
  config.initializer_range = 0.5;
  Model model(config);
  initialize(model, Philox{1});
  return model;
}

std::vector<std::int32_t> collect(const Model& model, typename Model::State& state, const GenerateOptions& options,
                                  std::span<const std::int32_t> before = {}) {
  std::vector<std::int32_t> tokens;
  for (const std::int32_t token : generate(model, state, options, before)) tokens.push_back(token);
  return tokens;
}

const std::vector<std::int32_t> prompt{1, 2, 3, 4};
View<const std::int32_t, 2> as_batch(const std::vector<std::int32_t>& tokens) {
  return {tokens.data(), {Index{1}, static_cast<Index>(tokens.size())}};
}

}  // namespace

TEST_CASE("generate: greedy tokens are those of the whole sequence run again for each") {
  const Model model = tiny();
  auto state = model.prefill(as_batch(prompt));
  const auto written = collect(model, state, {.temperature = 0, .max_tokens = 30});
  CHECK(written.size() == 30);
  CHECK(state.position == 34);
  std::vector<std::int32_t> sequence = prompt;
  for (const std::int32_t token : written) {
    const auto logits = model.forward(as_batch(sequence));
    const float* last = &logits(0, static_cast<Index>(sequence.size()) - 1, 0);
    CHECK(token == std::max_element(last, last + 11) - last);
    sequence.push_back(token);
  }
}

TEST_CASE("generate: a seed decides, a state is a value, a text can be continued") {
  const Model model = tiny();
  auto a = model.prefill(as_batch(prompt));
  auto b = a, c = a, d = a;
  const GenerateOptions options{.repetition_penalty = 1.3,
                                .temperature = 1.5,
                                .top_k = 9,
                                .top_p = 0.95,
                                .min_p = 0.01,
                                .seed = 5,
                                .max_tokens = 40};
  auto other = options;
  other.seed = 6;
  const auto first = collect(model, a, options, prompt);
  CHECK(first == collect(model, b, options, prompt));
  CHECK(first != collect(model, c, other, prompt));
  for (const std::int32_t token : first) CHECK((token >= 0 && token < 11));
  // Ten tokens and the state after them are the beginning of forty.
  auto ten = options;
  ten.temperature = 0;
  ten.repetition_penalty = 1;
  ten.max_tokens = 10;
  auto forty = ten;
  forty.max_tokens = 40;
  auto e = d;
  auto whole = collect(model, d, forty), part = collect(model, e, ten);
  const auto rest = collect(model, e, {.temperature = 0, .max_tokens = 30});
  part.insert(part.end(), rest.begin(), rest.end());
  CHECK(part == whole);
}

TEST_CASE("generate: stop tokens, no tokens, and mistakes") {
  const Model model = tiny();
  auto state = model.prefill(as_batch(prompt)), again = state, more = state;
  const auto written = collect(model, state, {.temperature = 0, .max_tokens = 8});
  const auto stopped = collect(model, again, {.temperature = 0, .max_tokens = 8, .stop_token = written[3]});
  CHECK(stopped.size() <= 3);
  CHECK(collect(model, more, {.max_tokens = 0}).empty());
  auto empty = model.make_state();
  CHECK_THROWS_WITH_AS(generate(model, empty), "generate: the state has seen no token; prefill it with a prompt",
                       Error);
  auto two = model.make_state(2);
  CHECK_THROWS_WITH_AS(generate(model, two), "generate: a state of 2 sequences, expected 1", Error);
  CHECK_THROWS_AS(generate(model, state, {.temperature = -1}), Error);
}

TEST_CASE("generate: a token takes no memory, whatever the position") {
  const Model model = tiny();
  auto state = model.prefill(as_batch(prompt));
  const GenerateOptions options{
      .repetition_penalty = 1.1, .temperature = 1, .max_tokens = 500, .repetition_window = 32};
  collect(model, state, {.temperature = 1, .max_tokens = 20});
  const std::size_t before = arena<cpu>().system_allocations(), bytes = arena<cpu>().bytes_in_use();
  Index count = 0;
  for (const std::int32_t token : generate(model, state, options, prompt)) {
    CHECK(arena<cpu>().bytes_in_use() == bytes);
    count += token >= 0;
  }
  CHECK(count == 500);
  CHECK(arena<cpu>().system_allocations() == before);
}

TEST_CASE("perplexity: every token once, whatever the windows") {
  const Model model = tiny();
  std::vector<std::uint16_t> text(103);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<std::uint16_t>((i * i + i / 3) % 11);
  const auto whole = perplexity(model, text, {.batch = 1, .length = 1000});
  CHECK(whole.tokens == 102);
  Tensor<std::int32_t, 2> inputs({1, 102}), targets({1, 102});
  for (Index t = 0; t < 102; ++t) {
    inputs(0, t) = text[static_cast<std::size_t>(t)];
    targets(0, t) = text[static_cast<std::size_t>(t) + 1];
  }
  CHECK(whole.loss == doctest::Approx(model.loss(inputs, targets)));
  CHECK(whole.perplexity() == doctest::Approx(std::exp(whole.loss)));
  CHECK(whole.bits() == doctest::Approx(whole.loss / std::log(2.0)));
  const auto a = perplexity(model, text, {.batch = 1, .length = 10}),
             b = perplexity(model, text, {.batch = 4, .length = 10});
  CHECK(a.tokens == 102);
  CHECK(b.tokens == 102);
  CHECK(a.loss == doctest::Approx(b.loss));
  CHECK(perplexity(model, text, {.batch = 2, .length = 10, .max_tokens = 37}).tokens == 37);
  const std::vector<std::uint16_t> one(1);
  CHECK_THROWS_WITH_AS(perplexity(model, one), "perplexity: a text of 1 tokens has nothing to predict", Error);
}
