// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Generation on the GPU writes what the CPU writes.
#include <doctest/doctest.h>

#include <algorithm>

#include "diffmamba/generate/generator.hpp"
#include "diffmamba/model/language_model.hpp"

using namespace diffmamba;

namespace {

using CpuModel = LanguageModel<cpu, double, double, Differential<Mamba2<double>>>;
using GpuModel = LanguageModel<cuda, double, double, Differential<Mamba2<double, cuda>>>;

template <class Model>
Model tiny() {
  ModelConfig config{
      .d_model = 16, .vocab_size = 11, .layers = all("diff_mamba2", 2), .mixer = {{"d_state", 8.0}, {"headdim", 8.0}}};
  config.initializer_range = 0.5;
  Model model(config);
  initialize(model, Philox{1});
  return model;
}

const std::vector<std::int32_t> prompt{1, 2, 3, 4};
View<const std::int32_t, 2> as_batch(const std::vector<std::int32_t>& tokens) {
  return {tokens.data(), {Index{1}, static_cast<Index>(tokens.size())}};
}

template <class Model>
std::vector<std::int32_t> collect(const Model& model, typename Model::State& state, const GenerateOptions& options,
                                  std::span<const std::int32_t> before = {}) {
  std::vector<std::int32_t> tokens;
  for (const std::int32_t token : generate(model, state, options, before)) tokens.push_back(token);
  return tokens;
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("the tokens of the CPU, however it is drawn, whether the host lags or not") {
    const auto here = tiny<CpuModel>();
    const auto there = tiny<GpuModel>();
    for (GenerateOptions options :
         {GenerateOptions{.temperature = 0, .max_tokens = 40}, GenerateOptions{.seed = 3, .max_tokens = 40},
          GenerateOptions{.repetition_penalty = 1.3,
          .temperature = 0.9,
          .top_k = 8,
          .top_p = 0.95,
          .seed = 4,
          .max_tokens = 40,
          .repetition_window = 6},
          GenerateOptions{.max_tokens = 0}, GenerateOptions{.seed = 5, .max_tokens = 1},
          GenerateOptions{.seed = 6, .max_tokens = 60, .stop_token = 3}})
      for (const Index ahead : {0, 3}) {
        CAPTURE(ahead);
        options.ahead = ahead;
        auto a = here.prefill(as_batch(prompt));
        auto b = there.prefill(as_batch(prompt));
        const auto want = collect(here, a, options, prompt), got = collect(there, b, options, prompt);
        CHECK(got == want);
        if (options.stop_token < 0 || ahead == 0) CHECK(b.position == a.position);
        if (options.max_tokens == 40)
          CHECK(collect(there, b, {.max_tokens = 5}) == collect(here, a, {.max_tokens = 5}));
      }
  }

  TEST_CASE("after a break the state has seen all but the last token; a state is a value") {
    const auto model = tiny<GpuModel>();
    auto state = model.prefill(as_batch(prompt)), copied = state;
    std::vector<std::int32_t> first;
    for (const std::int32_t token : generate(model, state, {.temperature = 0})) {
      first.push_back(token);
      if (first.size() == 10) break;
    }
    CHECK(state.position == 13);
    CHECK(copied.position == 4);
    CHECK(collect(model, copied, {.temperature = 0, .max_tokens = 10}) == first);
    model.step(first.back(), state);
    CHECK(collect(model, state, {.temperature = 0, .max_tokens = 5}) ==
          collect(model, copied, {.temperature = 0, .max_tokens = 5}));
  }

  TEST_CASE("a batch decodes as its rows would alone") {
    const auto model = tiny<GpuModel>();
    Tensor<std::int32_t, 2> prompts({3, 4});
    for (Index b = 0; b < 3; ++b)
      for (Index t = 0; t < 4; ++t) prompts(b, t) = static_cast<std::int32_t>((3 * b + t) % 11);
    auto state = model.prefill(prompts);
    DeviceDecoder decoder(model, state, {.sampler = {.temperature = 0}, .log = 4});
    std::vector<std::vector<std::int32_t>> got(3);
    decoder.draw();
    for (Index i = 0; i < 12; ++i) {
      const auto tokens = decoder.tokens(i);
      for (std::size_t b = 0; b < 3; ++b) got[b].push_back(tokens[b]);
      decoder.advance();
    }
    CHECK_THROWS_AS(decoder.tokens(2), Error);
    CHECK_THROWS_AS(decoder.tokens(13), Error);
    for (Index b = 0; b < 3; ++b) {
      auto alone = model.prefill(prompts.view().slice<0>(b, b + 1));
      CHECK(collect(model, alone, {.temperature = 0, .max_tokens = 12}) == got[static_cast<std::size_t>(b)]);
    }
  }

  TEST_CASE("bfloat16: the graph of a token, which reads weights ahead, draws what steps one by one give") {
    using Model = LanguageModel<cuda, bfloat16, float, Mamba2<bfloat16, cuda>, Differential<Mamba2<bfloat16, cuda>>>;
    ModelConfig config{.d_model = 64,
                       .vocab_size = 50,
                       .layers = {{"mamba2"}, {"diff_mamba2"}, {"mamba2"}},
                       .mixer = {{"d_state", 32.0}, {"headdim", 16.0}}};
    config.initializer_range = 0.5;
    Model model(config);
    initialize(model, Philox{2});
    for (const bool shortened : {false, true}) {
      auto state = model.prefill(as_batch(prompt));
      if (shortened) state.shorten();
      auto other = state;
      const auto got = collect(model, state, {.temperature = 0, .max_tokens = 30});
      std::vector<std::int32_t> want;
      for (int i = 0; i < 30; ++i) {
        const auto logits = to<cpu>(other.logits);
        want.push_back(static_cast<std::int32_t>(std::max_element(logits.data(), logits.data() + 50) - logits.data()));
        model.step(want.back(), other);
      }
      CHECK(got == want);
    }
  }

  TEST_CASE("mistakes") {
    const auto model = tiny<GpuModel>();
    auto empty = model.make_state();
    CHECK_THROWS_WITH_AS(generate(model, empty), doctest::Contains("the state has seen no token"), Error);
    auto state = model.prefill(as_batch(prompt));
    const std::int32_t outside = 11;
    CHECK_THROWS_WITH_AS(generate(model, state, {.repetition_penalty = 2}, std::span(&outside, 1)),
                         doctest::Contains("outside the vocabulary"), Error);
    CHECK_THROWS_AS(generate(model, state, {.ahead = -1}), Error);
  }
}
