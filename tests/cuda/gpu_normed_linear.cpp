// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Decoding's product with the norm before it and the convolution behind: the operator against its formula in double,
// and models that decode token by token against the same models over whole sequences.
#include "diffmamba/ops/normed_linear/normed_linear.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "cuda/mixer_on_gpu.hpp"
#include "diffmamba/model/language_model.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

struct Case {
  Index rows, channels, columns, groups, first, convolved;  // convolved 0: no convolution
  bool before, residual, biases;
};

/// The formula. Sums in double; nothing is rounded.
struct Wanted {
  std::vector<double> out, residual, state;
};

Wanted formula(const Case& c, const Tensor<double, 2>& x, const Tensor<double, 1>& before, double scale,
               const Tensor<double, 2>& residual, const Tensor<double, 1>& norm, const Tensor<double, 2>& weight,
               const Tensor<double, 1>& bias, const Tensor<double, 2>& filter, const Tensor<double, 1>& filter_bias,
               const Tensor<double, 3>& state) {
  Wanted wanted;
  const Index group = c.channels / c.groups;
  for (Index r = 0; r < c.rows; ++r) {
    std::vector<double> row(static_cast<std::size_t>(c.channels));
    const auto at = [&](Index i) -> double& { return row[static_cast<std::size_t>(i)]; };
    double mean = 0;
    for (Index i = 0; i < c.channels; ++i) mean += x(r, i) * x(r, i) / static_cast<double>(c.channels);
    for (Index i = 0; i < c.channels; ++i) {
      at(i) = c.before ? scale * x(r, i) / std::sqrt(mean + 1e-3) * before(i) : x(r, i);
      if (c.residual) at(i) += residual(r, i);
      wanted.residual.push_back(at(i));
    }
    for (Index g = 0; g < c.groups; ++g) {
      double square = 0;
      for (Index i = g * group; i < (g + 1) * group; ++i) square += at(i) * at(i) / static_cast<double>(group);
      for (Index i = g * group; i < (g + 1) * group; ++i) at(i) *= norm(i) / std::sqrt(square + 1e-5);
    }
    for (Index j = 0; j < c.columns; ++j) {
      double sum = c.biases ? bias(j) : 0.0;
      for (Index i = 0; i < c.channels; ++i) sum += at(i) * weight(j, i);
      const Index channel = j - c.first;
      if (channel >= 0 && channel < c.convolved) {
        double inputs[4] = {state(r, channel, 1), state(r, channel, 2), state(r, channel, 3), sum};
        sum = c.biases ? filter_bias(channel) : 0.0;
        for (Index w = 0; w < 4; ++w) sum += filter(channel, w) * inputs[w], wanted.state.push_back(inputs[w]);
        sum /= 1 + std::exp(-sum);
      }
      wanted.out.push_back(sum);
    }
  }
  return wanted;
}

void check_case(const Case& c, bool at_rest) {
  using T = bfloat16;
  INFO("rows " << c.rows << " channels " << c.channels << " columns " << c.columns << " groups " << c.groups);
  const auto x = exact_in<T>(Extents{c.rows, c.channels}, 1), weight = exact_in<T>(Extents{c.columns, c.channels}, 2);
  const auto before = exact_in<float>(Extents{c.channels}, 3), norm = exact_in<float>(Extents{c.channels}, 4);
  const auto residual = exact_in<float>(Extents{c.rows, c.channels}, 5);
  const auto bias = exact_in<float>(Extents{c.columns}, 6), filter_bias = exact_in<float>(Extents{c.convolved}, 7);
  const auto filter = exact_in<float>(Extents{c.convolved, Index{4}}, 8);
  const auto state = exact_in<float>(Extents{c.rows, c.convolved, Index{4}}, 9);
  const auto wanted = formula(c, x, before, 0.7, residual, norm, weight, bias, filter, filter_bias, state);

  const auto gpu_x = on_gpu<T>(x), gpu_weight = on_gpu<T>(weight);
  const auto gpu_before = on_gpu<float>(before), gpu_norm = on_gpu<float>(norm), gpu_bias = on_gpu<float>(bias);
  const auto gpu_residual = on_gpu<float>(residual), gpu_filter = on_gpu<float>(filter);
  const auto gpu_filter_bias = on_gpu<float>(filter_bias);
  std::vector<double> first;
  for (int run = 0; run < 2; ++run) {
    auto gpu_state = on_gpu<float>(state);
    auto residual_out = Tensor<float, 2, cuda>::uninitialized(x.extents());
    auto out = Tensor<T, 2, cuda>::uninitialized({c.rows, c.columns});
    normed_linear::Inputs<T, cuda> in{.source = {.x = gpu_x,
                                                 .residual_out = residual_out.view(),
                                                 .norm = {.weight = gpu_norm.view()},
                                                 .group_size = c.channels / c.groups},
                                      .weight = gpu_weight};
    if (c.before) in.source.before = {.weight = gpu_before.view(), .eps = 1e-3, .scale = 0.7};
    if (c.residual) in.source.residual = gpu_residual.view();
    if (c.biases) in.bias = gpu_bias.view();
    if (c.convolved > 0) {
      in.convolution = {.first = c.first, .weight = gpu_filter.view(), .state = gpu_state.view()};
      if (c.biases) in.convolution.bias = gpu_filter_bias.view();
    }
    REQUIRE(normed_linear::takes(in));
    std::optional<cuda_runtime::WeightsAtRest> rest;
    if (at_rest) rest.emplace();
    normed_linear::forward(in, out.view());
    CHECK(norm_error(numbers(out), wanted.out) < 4e-3);
    CHECK(norm_error(numbers(residual_out), wanted.residual) < 1e-6);
    if (c.convolved > 0) CHECK(norm_error(numbers(gpu_state), wanted.state) < 4e-3);
    auto bits = numbers(out);
    const auto states = numbers(gpu_state);
    bits.insert(bits.end(), states.begin(), states.end());
    if (run == 0) first = bits;
    CHECK(bits == first);
  }
}

using Model = LanguageModel<cuda, bfloat16, float, Mamba<bfloat16, cuda>, Mamba2<bfloat16, cuda>,
                            Differential<Mamba<bfloat16, cuda>>, Differential<Mamba2<bfloat16, cuda>>>;

Tensor<std::int32_t, 2> some_tokens(Index batch, Index length) {
  Tensor<std::int32_t, 2> tokens({batch, length});
  for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = static_cast<std::int32_t>((7 * i + i * i / 3) % 50);
  return tokens;
}

/// Logits of the last position, token by token against the whole at once.
void check_model(const ModelConfig& config, Index batch) {
  Model model(config);
  initialize(model, Philox{3}, {.zero_biases = false});
  const auto tokens = some_tokens(batch, 24);
  const auto whole = model.prefill(tokens);
  auto state = model.prefill(tokens.view().slice<1>(0, 9)), again = state;
  for (Index t = 9; t < 24; ++t) {
    const auto now = to_tensor(tokens.view().select<1>(t));
    model.step(now.view(), state);
    model.step(now.view(), again);
  }
  CHECK(norm_error(numbers(state.logits), numbers(whole.logits)) < 2.5e-2);
  CHECK(numbers(again.logits) == numbers(state.logits));
}

}  // namespace

TEST_SUITE_BEGIN("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0));

TEST_CASE("against the formula, the same bits twice") {
  for (const bool at_rest : {false, true})
    for (const Case& c :
         {Case{1, 32, 1, 1, 0, 0, false, false, false}, Case{1, 1024, 4384, 1, 2048, 2304, false, true, false},
          Case{1, 1024, 4640, 1, 2048, 2560, true, true, true}, Case{1, 2048, 1024, 2, 0, 0, false, false, true},
          Case{2, 96, 67, 1, 13, 40, true, false, true}, Case{3, 256, 2200, 8, 0, 2200, false, true, true},
          Case{5, 160, 33, 1, 1, 32, true, true, false}, Case{8, 2048, 1000, 4, 7, 990, false, true, true},
          Case{8, 4096, 50, 1, 0, 50, true, true, true}, Case{7, 512, 2113, 2, 2112, 1, true, true, false}})
      check_case(c, at_rest);
}

TEST_CASE("what is not offered says so") {
  Tensor<bfloat16, 2, cuda> x({1, 48}), weight({8, 48}), out({1, 8});
  Tensor<float, 1, cuda> norm({48});
  const normed_linear::Inputs<bfloat16, cuda> in{.source = {.x = x, .norm = {.weight = norm.view()}}, .weight = weight};
  CHECK(!normed_linear::takes(in));
  CHECK_THROWS_WITH_AS(normed_linear::forward(in, out.view()), doctest::Contains("not offered"), Error);
  const normed_linear::Inputs<bfloat16, cuda> without{.source = {.x = x}, .weight = weight};
  CHECK_THROWS_WITH_AS(normed_linear::forward(without, out.view()), doctest::Contains("norm.weight is missing"), Error);
}

TEST_CASE("models decode what they read, fused or not") {
  for (const Index batch : {Index{1}, Index{3}, Index{9}})
    for (const char* mixer : {"mamba", "mamba2", "diff_mamba", "diff_mamba2"}) {
      INFO(mixer << " batch " << batch);
      ModelConfig config{.d_model = 64, .vocab_size = 50, .layers = all(mixer, 3)};
      if (std::string_view(mixer).ends_with("mamba2")) config.mixer = {{"d_state", 32.0}, {"headdim", 16.0}};
      check_model(config, batch);
    }
  for (const char* option :
       {"ngroups", "d_conv", "norm_before_gate", "rmsnorm", "D_has_hdim", "conv_bias", "bias", "d_ssm"}) {
    INFO(option);
    const std::string_view name = option;
    const double value = name == "ngroups" ? 2.0 : name == "d_conv" ? 3.0 : name == "d_ssm" ? 96.0 : 1.0;
    ModelConfig config{
        .d_model = 64, .vocab_size = 50, .layers = all("mamba2", 2), .mixer = {{"d_state", 32.0}, {"headdim", 16.0}}};
    if (value == 1.0)
      config.mixer.set(option, name != "rmsnorm" && name != "conv_bias");
    else
      config.mixer.set(option, value);
    check_model(config, 2);
  }
}

TEST_CASE("states of 16 bits follow those of float, however they go on") {
  for (const char* mixer : {"mamba2", "diff_mamba2"}) {
    INFO(mixer);
    const ModelConfig config{
        .d_model = 64, .vocab_size = 50, .layers = all(mixer, 3), .mixer = {{"d_state", 32.0}, {"headdim", 16.0}}};
    Model model(config);
    initialize(model, Philox{3});
    const auto tokens = some_tokens(2, 60);
    const auto whole = model.prefill(tokens);
    auto state = model.prefill(tokens.view().slice<1>(0, 9));
    state.shorten();
    for (Index t = 9; t < 40; ++t) model.step(to_tensor(tokens.view().select<1>(t)).view(), state);
    model.prefill(tokens.view().slice<1>(40, 59), state);
    auto copied = state;
    model.step(to_tensor(tokens.view().select<1>(59)).view(), state);
    CHECK(norm_error(numbers(state.logits), numbers(whole.logits)) < 3e-2);
    model.step(to_tensor(tokens.view().select<1>(59)).view(), copied);
    CHECK(numbers(copied.logits) == numbers(state.logits));
  }
  Model model(ModelConfig{.d_model = 64, .vocab_size = 50, .layers = all("mamba", 1)});
  auto state = model.make_state();
  CHECK_THROWS_WITH_AS(state.shorten(), doctest::Contains("16 bits"), Error);
}

TEST_SUITE_END();
