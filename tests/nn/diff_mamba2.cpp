// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/differential.hpp"
#include "nn/mixer_check.hpp"

// Differential<Mamba2>. The variants of norm and lambda are tested in differential.cpp.
namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;
using Double = dm::DiffMamba2<double>;

namespace {
const Double::Options small{.mixer = {.d_model = 6,
                                      .d_state = 3,
                                      .d_conv = 3,
                                      .expand = 1,
                                      .headdim = 3,
                                      .chunk_size = 4,
                                      .dt_min = 0.1,
                                      .dt_max = 1.0},
                            .differential = {.depth = 2, .lambda_initialization = dm::LambdaInit::unit_variance}};
Double::Options with(auto change) {
  auto options = small;
  change(options);
  return options;
}
const auto rich = with([](auto& o) {
  o.mixer.expand = 2, o.mixer.d_ssm = 8, o.mixer.headdim = 2, o.mixer.ngroups = 2;
  o.mixer.bias = true, o.mixer.learnable_init_states = true;
});
}  // namespace

TEST_CASE("gradients of every parameter and of x") {
  SUBCASE("plain") {
    check_mixer_gradients<Double>(small, 2, 7);
  }
  SUBCASE("biases, groups, initial states, an MLP beside the scan") {
    check_mixer_gradients<Double>(rich, 2, 4);
  }
  SUBCASE("a norm before") {
    auto options = rich;
    options.differential.norm = dm::Norm::before;
    check_mixer_gradients<Double>(options, 2, 4);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Double>(small, 5, 11);  // 55 rows fold, 5 do not
  check_mixer_decoding<Double>(rich, 2, 9);
}

TEST_CASE("one and two threads give the same bits") {
  check_mixer_threads<Double>(with([](auto& o) { o.mixer.d_model = 24, o.mixer.headdim = 8; }), 3, 70);
}

TEST_CASE("both paths: one input product, one convolution, one scan, one output product") {
  // A projection is one product forwards and two backwards. What the scan multiplies is inside its own tiles.
  CHECK(calls_of<dm::Mamba2<double>>(small.mixer, 2, 40) == Calls{2, 4, 1, 1});
  CHECK(calls_of<Double>(small, 2, 40) == Calls{2, 4, 1, 1});
  CHECK(calls_of<Double>(with([](auto& o) { o.differential.norm = dm::Norm::none; }), 2, 40) == Calls{2, 4, 1, 1});
  CHECK(calls_of<Double>(with([](auto& o) { o.differential.norm = dm::Norm::before; }), 2, 40) == Calls{3, 6, 1, 1});
}

TEST_CASE("Saved takes what its header states") {
  // d_inner 32, 4 heads, 1 group, state 16, of two paths: x, zxbcdt, convolution, scan, norms, states of the
  // scan's chunks of 64; then the difference and its norm.
  const Index paths = 32 + 2 * (2 * 32 + 2 * 16 + 4) + 2 * (32 + 2 * 16) + 2 * 32 + 2 + 2 * 4 * 8 * 16 / 64;
  Double::Options options{.mixer = {.d_model = 32, .d_state = 16, .expand = 1, .headdim = 8}};
  check_mixer_saved<Double>(options, 2, 128, paths + 32 + 1);
  options.differential.norm = dm::Norm::before;
  check_mixer_saved<Double>(options, 2, 128, paths + 2 * 32 + 3);
  options.differential.norm = dm::Norm::none;
  check_mixer_saved<Double>(options, 2, 128, paths);
}
