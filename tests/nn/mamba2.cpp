// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/mamba2.hpp"

#include "nn/mixer_check.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;
using Double = dm::Mamba2<double>;

static_assert(dm::MixerOfPaths<Double>);

namespace {
const Double::Options small{
    .d_model = 6, .d_state = 3, .d_conv = 3, .expand = 2, .headdim = 4, .chunk_size = 4, .dt_min = 0.1, .dt_max = 1.0};
Double::Options with(auto change) {
  auto options = small;
  change(options);
  return options;
}
}  // namespace

TEST_CASE("gradients of every parameter and of x") {
  SUBCASE("plain, past a chunk") {
    check_mixer_gradients<Double>(small, 2, 7);
  }
  SUBCASE("one token") {
    check_mixer_gradients<Double>(small, 2, 1);
  }
  SUBCASE("groups, norm before the gate, biases, initial states") {
    check_mixer_gradients<Double>(with([](auto& o) {
                                    o.headdim = 2, o.ngroups = 3, o.norm_before_gate = true, o.bias = true,
                                    o.learnable_init_states = true;
                                  }),
                                  2, 5);
  }
  SUBCASE("one norm for all groups") {
    check_mixer_gradients<Double>(
        with([](auto& o) { o.headdim = 2, o.ngroups = 3, o.norm_groups = dm::NormGroups::whole; }), 1, 5);
  }
  SUBCASE("no norm, D per channel, no convolution bias") {
    check_mixer_gradients<Double>(with([](auto& o) { o.rmsnorm = false, o.D_has_hdim = true, o.conv_bias = false; }), 2,
                                  5);
  }
  SUBCASE("a gated MLP beside the scan, dt limited") {
    check_mixer_gradients<Double>(with([](auto& o) { o.d_ssm = 8, o.bias = true, o.dt_limit = {0.001, 10.0}; }), 2, 5);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  SUBCASE("plain") {
    check_mixer_decoding<Double>(small, 2, 11);
  }
  SUBCASE("everything") {
    check_mixer_decoding<Double>(with([](auto& o) {
                                   o.headdim = 2, o.ngroups = 2, o.d_ssm = 8, o.bias = true,
                                   o.learnable_init_states = true, o.d_conv = 4;
                                 }),
                                 3, 11);
  }
  SUBCASE("without norm, width 1") {
    check_mixer_decoding<Double>(with([](auto& o) { o.rmsnorm = false, o.d_conv = 1; }), 1, 7);
  }
  SUBCASE("float") {
    check_mixer_decoding<Double>(small, 2, 11, 1e-5);
  }
}

TEST_CASE("one and two threads give the same bits") {
  check_mixer_threads<Double>(with([](auto& o) { o.d_model = 24, o.headdim = 8, o.bias = true; }), 3, 70);
}

TEST_CASE("official names and shapes") {
  Double mixer(with([](auto& o) { o.bias = true, o.learnable_init_states = true, o.D_has_hdim = true; }));
  std::vector<std::string> names;
  Index count = 0;
  mixer.visit([&](std::string_view name, auto& parameter) {
    std::ostringstream line;
    line << name << dm::shape(parameter) << (parameter.decay() == dm::Decay::yes ? " decays" : "");
    names.push_back(line.str());
    count += parameter.size();
  });
  CHECK(names == std::vector<std::string>{"in_proj.weight(33, 6) decays", "in_proj.bias(33)",
                                          "conv1d.weight(18, 1, 3) decays", "conv1d.bias(18)", "dt_bias(3)", "A_log(3)",
                                          "D(12)", "norm.weight(12)", "init_states(3, 4, 3)",
                                          "out_proj.weight(6, 12) decays", "out_proj.bias(6)"});
  CHECK(mixer.parameter_count() == count);
  CHECK(Double::name() == "mamba2");
}

TEST_CASE("official initialisation") {
  Double mixer({.d_model = 64, .d_state = 16, .headdim = 8});
  initialize(mixer, dm::Philox{3}, {.residual_scale = 0.25});
  mixer.visit([](std::string_view name, auto& parameter) {
    INFO(name);
    const auto value = parameter.to_tensor();
    const double* const low = std::min_element(value.begin(), value.end());
    const double* const high = std::max_element(value.begin(), value.end());
    const auto within = [&](double from, double to) {
      CHECK(*low >= from);
      CHECK(*high <= to);
    };
    if (name == "in_proj.weight") within(-0.125, 0.125);
    if (name == "out_proj.weight") within(-0.25 / std::sqrt(128.0), 0.25 / std::sqrt(128.0));
    if (name.starts_with("conv1d")) within(-0.5, 0.5);
    if (name == "A_log") within(0, std::log(16.0) + 1e-6);
    if (name == "D" || name == "norm.weight") within(1, 1);
    if (name == "dt_bias")
      for (double b : value) {
        const double dt = std::log1p(std::exp(b));
        CHECK(dt >= 0.001 * 0.999);
        CHECK(dt <= 0.1 * 1.001);
      }
    if (name.ends_with("proj.weight")) CHECK(*low < 0.9 * -*high / 1.1);
  });
  // The same seed, the same mixer; another seed, another.
  Double again({.d_model = 64, .d_state = 16, .headdim = 8}), other({.d_model = 64, .d_state = 16, .headdim = 8});
  initialize(again, dm::Philox{3}, {.residual_scale = 0.25});
  initialize(other, dm::Philox{4});
  const auto x = random_tensor<double>(dm::Extents{1, 5, 64}, 1);
  CHECK(relative_error(dm::infer(again, x.view()), dm::infer(mixer, x.view())) == 0);
  CHECK(relative_error(dm::infer(other, x.view()), dm::infer(mixer, x.view())) > 0.1);
}

TEST_CASE("Saved takes what its header states") {
  // x; zxbcdt, convolution, scan; one rstd; the scan's states, every 64 tokens.
  check_mixer_saved<Double>({.d_model = 32, .d_state = 16, .headdim = 8}, 2, 128,
                            32 + (2 * 64 + 2 * 16 + 8) + (64 + 2 * 16) + 64 + 1 + 8 * 8 * 16 / 64);
}

TEST_CASE("mistakes say what is wrong") {
  const auto make = [](auto change) { return error_of([&] { Double mixer(with(change)); }); };
  CHECK(make([](auto& o) { o.headdim = 5; }) == "mamba2: headdim 5 does not divide d_ssm 12");
  CHECK(make([](auto& o) { o.ngroups = 2; }) == "mamba2: ngroups 2 does not divide the 3 heads");
  CHECK(make([](auto& o) { o.d_ssm = 16; }) == "mamba2: d_ssm 16 is larger than d_inner 12");
  CHECK(make([](auto& o) { o.d_model = 0; }) == "mamba2: d_model is 0, expected 1 or more");
  CHECK(make([](auto& o) { o.dt_limit = {2, 1}; }) == "mamba2: dt_limit is reversed: 2 is above 1");
  Double mixer(small);
  const auto x = random_tensor<double>(dm::Extents{1, 2, 6}, 1), wrong = random_tensor<double>(dm::Extents{1, 2, 5}, 1);
  CHECK(error_of([&] { dm::infer(mixer, x.view()); }) ==
        "parameter: it has no values yet; initialize(module, Philox{seed}) or load them first");
  initialize(mixer, dm::Philox{1});
  CHECK(error_of([&] { dm::infer(mixer, wrong.view()); }) == "mamba2: x is (1, 2, 5), expected d_model 6");
  Double::Saved saved;
  CHECK(error_of([&] { mixer.backward(x, saved); }).starts_with("backward without a forward before it"));
  auto state = mixer.make_state(2);
  CHECK(error_of([&] { mixer.prefill(x, state); }) ==
        "mamba2: conv_state has the shape (2, 18, 3), expected (1, 18, 3)");
}
