// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// A language model on a GPU against the CPU in double: losses, gradients, decoding; memory traded for time; inference
// without masters.
#include "diffmamba/model/language_model.hpp"

#include "cuda/mixer_on_gpu.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

template <class T, Device D>
using Model = LanguageModel<D, T, accumulate_t<T>, Mamba<T, D>, Mamba2<T, D>, Differential<Mamba2<T, D>>>;

ModelConfig config(double dropout = 0) {
  return {.d_model = 32,
          .vocab_size = 53,
          .layers = {{"diff_mamba2", {{"lambda_initialization", "unit_variance"}, {"headdim", 8.0}}},
                     {"mamba2", {{"headdim", 16.0}}},
                     "mamba"},
          .mixer = {{"d_state", 16.0}},
          .tie_embeddings = dropout > 0,
          .dropout = dropout};
}

Tensor<std::int32_t, 2> some_tokens(Index batch, Index length, unsigned seed) {
  Tensor<std::int32_t, 2> tokens(Extents{batch, length});
  const auto drawn = random_tensor<double>(Extents<1>{tokens.size()}, seed);
  for (Index i = 0; i < tokens.size(); ++i)
    tokens.data()[i] = static_cast<std::int32_t>(std::abs(drawn(i)) * 1000) % 53;
  return tokens;
}

struct Pair {
  Tensor<std::int32_t, 2> tokens = some_tokens(3, 41, 1), targets = some_tokens(3, 41, 2);
  Pair() { targets(1, 5) = targets(2, 40) = -100; }
};

template <class M>
std::vector<std::vector<double>> all_gradients(const M& model) {
  std::vector<std::vector<double>> result;
  for (const auto& [name, gradient] : gradients_of(model)) result.push_back(gradient);
  return result;
}

}  // namespace

TEST_SUITE_BEGIN("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0));

TEST_CASE_TEMPLATE("loss and gradients of a training step, with dropout, and the same bits twice", T, float, double,
                   bfloat16) {
  const Pair batch;
  for (const double dropout : {0.0, 0.25}) {
    INFO("dropout " << dropout);
    Model<T, cuda> gpu(config(dropout));
    Model<double, cpu> reference(config(dropout));
    start_alike<T>(gpu, reference, 0.05);
    const BackwardOptions options{.scale = 0.5, .dropout = Philox{3}.child(17)};
    reference.zero_gradients();
    gpu.zero_gradients();
    const double want = reference.forward_backward(batch.tokens, batch.targets, options);
    const double got = gpu.forward_backward(batch.tokens, batch.targets, options);
    constexpr bool rounded = std::is_same_v<T, bfloat16>;
    CHECK(std::abs(got - want) < (rounded ? 2e-3 : 1e-5) * want);
    const auto wanted = gradients_of(reference);
    for (const auto& [name, gradient] : gradients_of(gpu)) {
      INFO(name);
      const double bound = rounded ? 3e-2 : std::is_same_v<T, float> ? 1e-5 : 1e-10;
      CHECK(norm_error(gradient, wanted.at(name)) < gradient_bound(name, bound));
    }
    CHECK(std::abs(gpu.loss(batch.tokens, batch.targets) - reference.loss(batch.tokens, batch.targets)) <
          (rounded ? 1e-2 : 1e-4));

    // The step's number from the memory of the GPU draws what Philox::child draws.
    const auto once = all_gradients(gpu);
    Tensor<std::int64_t, 1, cuda> number(Extents<1>{1}, 17);
    const auto tokens = to<cuda>(batch.tokens), targets = to<cuda>(batch.targets);
    Tensor<accumulate_t<T>, 1, cuda> loss(Extents<1>{1});
    gpu.zero_gradients();
    gpu.forward_backward_on_device(
        tokens, targets, loss,
        {.scale = 0.5, .dropout = {Philox{3}, reinterpret_cast<const std::uint64_t*>(number.data())}});
    CHECK(numbers(loss)[0] == got);
    CHECK(all_gradients(gpu) == once);
  }
}

TEST_CASE_TEMPLATE("recompute changes no bit and keeps less", T, float, bfloat16) {
  const Pair batch;
  Model<T, cuda> model(config(0.25));
  initialize(model, Philox{1});
  model.zero_gradients();
  const double loss = model.forward_backward(batch.tokens, batch.targets, {.dropout = Philox{2}});
  const auto kept = all_gradients(model);
  const auto bytes = model.saved_bytes();
  for (const auto recompute : {Recompute::convolution, Recompute::mixer}) {
    model.set_recompute(recompute);
    model.zero_gradients();
    CHECK(model.forward_backward(batch.tokens, batch.targets, {.dropout = Philox{2}}) == loss);
    CHECK(all_gradients(model) == kept);
    CHECK(model.saved_bytes() < (recompute == Recompute::mixer ? bytes / 2 : bytes));
  }
}

TEST_CASE_TEMPLATE("decoding agrees with one pass; a state keeps its memory and can be copied", T, float, bfloat16,
                   half) {
  const auto tokens = some_tokens(2, 40, 3);
  Model<T, cuda> gpu(config());
  Model<double, cpu> reference(config());
  start_alike<T>(gpu, reference, 0.05);
  const auto want = reference.forward(tokens);
  const double bound = std::is_same_v<T, float> ? 1e-5 : 2e-2;
  CHECK(norm_error(numbers(gpu.forward(tokens)), numbers(want)) < bound);
  auto state = gpu.prefill(tokens.slice<1>(0, 33));
  const auto* memory = state.logits.data();
  const auto check = [&](const auto& logits, Index position) {
    CHECK(norm_error(numbers(logits), numbers(to_tensor(std::as_const(want).select<1>(position)))) < bound);
  };
  check(state.logits, 32);
  auto copied = state;
  for (Index t = 33; t < 40; ++t) {
    const std::int32_t next[2] = {tokens(0, t), tokens(1, t)};
    gpu.step(View<const std::int32_t, 1>(next, {2}), state);
    check(state.logits, t);
  }
  CHECK(state.logits.data() == memory);
  CHECK(state.position == 40);
  check(copied.logits, 32);
  gpu.prefill(tokens.slice<1>(33, 40), copied);
  check(copied.logits, 39);
}

TEST_CASE("inference without masters: the same bits, no training") {
  const Pair batch;
  Model<bfloat16, cuda> model(config());
  initialize(model, Philox{1});
  model.zero_gradients();
  const auto logits = numbers(model.forward(batch.tokens));
  const auto before = arena<cuda>().bytes_in_use();
  const auto values = static_cast<std::size_t>(model.flat().size) * sizeof(float);
  std::vector<double> rounded;
  model.visit([&](std::string_view name, auto& parameter) {
    if (name == "backbone.embedding.weight")
      for (const float x : parameter.to_tensor()) rounded.push_back(bfloat16(x));
  });
  model.release_masters();
  CHECK(arena<cuda>().bytes_in_use() + values < before);
  CHECK(numbers(model.forward(batch.tokens)) == logits);
  model.visit([&](std::string_view name, auto& parameter) {
    if (name == "backbone.embedding.weight") CHECK(numbers(parameter.to_tensor()) == rounded);
  });
  CHECK(!model.flat().values());
  CHECK_THROWS_AS(model.forward_backward(batch.tokens, batch.targets), Error);
  const auto copied = model;
  CHECK(numbers(copied.forward(batch.tokens)) == logits);
}

TEST_CASE("mistakes and numbers that are not finite are named") {
  const Pair batch;
  Model<float, cuda> model(config());
  initialize(model, Philox{1});
  CHECK(model.first_not_finite(batch.tokens).empty());
  auto wrong = batch.tokens;
  wrong(2, 3) = 53;
  CHECK_THROWS_WITH_AS(model.forward(wrong),
                       "model: token 53 at position (2, 3) is out of range, the vocabulary has 53", Error);
  model.visit([&](std::string_view name, auto& parameter) {
    if (name != "backbone.layers.1.mixer.D") return;
    auto value = parameter.to_tensor();
    value.data()[0] = NAN;
    parameter.copy_from(value);
  });
  CHECK(model.first_not_finite(batch.tokens) == "the parameter backbone.layers.1.mixer.D");
  model.zero_gradients();
  CHECK(std::isnan(model.forward_backward(batch.tokens, batch.targets)));
  CHECK(!model.first_gradient_not_finite().empty());
}

TEST_SUITE_END();
