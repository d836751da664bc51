// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/mamba.hpp"

#include "nn/mixer_check.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;
using Double = dm::Mamba<double>;

static_assert(dm::MixerOfPaths<Double>);

namespace {
const Double::Options small{.d_model = 5, .d_state = 3, .d_conv = 3, .dt_min = 0.1, .dt_max = 1.0};
Double::Options with(auto change) {
  auto options = small;
  change(options);
  return options;
}
}  // namespace

TEST_CASE("gradients of every parameter and of x") {
  SUBCASE("plain") {
    check_mixer_gradients<Double>(small, 2, 7);
  }
  SUBCASE("past a checkpoint of the scan") {
    check_mixer_gradients<Double>(small, 1, 35);
  }
  SUBCASE("one token") {
    check_mixer_gradients<Double>(small, 2, 1);
  }
  SUBCASE("biases, a larger dt_rank, no convolution bias") {
    check_mixer_gradients<Double>(
        with([](auto& o) { o.bias = true, o.dt_rank = 3, o.conv_bias = false, o.expand = 1; }), 2, 5);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Double>(small, 2, 11);
  check_mixer_decoding<Double>(with([](auto& o) { o.bias = true, o.d_conv = 1; }), 3, 7);
}

TEST_CASE("one and two threads give the same bits") {
  check_mixer_threads<Double>(with([](auto& o) { o.d_model = 40, o.d_state = 16, o.bias = true; }), 3, 70);
}

TEST_CASE("official names and shapes") {
  Double mixer(with([](auto& o) { o.bias = true; }));
  std::vector<std::string> names;
  mixer.visit([&](std::string_view name, auto& parameter) {
    std::ostringstream line;
    line << name << dm::shape(parameter) << (parameter.decay() == dm::Decay::yes ? " decays" : "");
    names.push_back(line.str());
  });
  CHECK(names == std::vector<std::string>{
                     "in_proj.weight(20, 5) decays", "in_proj.bias(20)", "conv1d.weight(10, 1, 3) decays",
                     "conv1d.bias(10)", "x_proj.weight(7, 10) decays", "dt_proj.weight(10, 1) decays",
                     "dt_proj.bias(10)", "A_log(10, 3)", "D(10)", "out_proj.weight(5, 10) decays", "out_proj.bias(5)"});
}

TEST_CASE("official initialisation") {
  Double mixer({.d_model = 64});
  initialize(mixer, dm::Philox{3});
  mixer.visit([](std::string_view name, auto& parameter) {
    INFO(name);
    const auto value = parameter.to_tensor();
    const double* const low = std::min_element(value.begin(), value.end());
    const double* const high = std::max_element(value.begin(), value.end());
    const double bound = name == "in_proj.weight"     ? 1 / 8.0
                         : name == "dt_proj.weight"   ? 1 / 2.0
                         : name.starts_with("conv1d") ? 1 / 2.0
                         : name.ends_with("weight")   ? 1 / std::sqrt(128.0)
                                                      : 0;
    if (bound > 0) {
      CHECK(*high <= bound);
      CHECK(*low >= -bound);
      CHECK(*high > 0.9 * bound);
      CHECK(*low < -0.9 * bound);
    }
    if (name == "D") CHECK((*low == 1 && *high == 1));
    if (name == "A_log")
      for (Index i = 0; i < value.size(); ++i)
        CHECK(value.data()[i] == doctest::Approx(std::log(static_cast<double>(i % 16 + 1))));
  });
}

TEST_CASE("Saved takes what its header states") {
  // x and gated; xz and the convolution; dt, B and C; the scan's states, every 32 tokens but the last.
  check_mixer_saved<Double>({.d_model = 32}, 2, 128, 32 + 64 + 3 * 64 + (2 + 2 * 16) + 64 * 16 * 3 / 128);
}

TEST_CASE("mistakes say what is wrong") {
  const auto make = [](auto change) { return error_of([&] { Double mixer(with(change)); }); };
  CHECK(make([](auto& o) { o.d_state = 0; }) == "mamba: d_state is 0, expected 1 or more");
  CHECK(make([](auto& o) { o.dt_rank = -1; }) == "mamba: dt_rank is -1, expected 0 (d_model / 16) or more");
  Double mixer(small);
  initialize(mixer, dm::Philox{1});
  const auto x = random_tensor<double>(dm::Extents{1, 2, 4}, 1), right = random_tensor<double>(dm::Extents{1, 2, 5}, 1);
  CHECK(error_of([&] { dm::infer(mixer, x.view()); }) == "mamba: x is (1, 2, 4), expected d_model 5");
  auto state = mixer.make_state(2);
  CHECK(error_of([&] { mixer.prefill(right, state); }) ==
        "mamba: conv_state has the shape (2, 10, 3), expected (1, 10, 3)");
}
