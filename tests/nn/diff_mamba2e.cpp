// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/diff_mamba2e.hpp"

#include "nn/mixer_check.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using Double = dm::DiffMamba2E<double>;

static_assert(dm::Mixer<Double>);

namespace {
const Double::Options small{.mixer = {.d_model = 6,
                                      .d_state = 3,
                                      .d_conv = 3,
                                      .headdim = 4,
                                      .bias = true,
                                      .chunk_size = 4,
                                      .dt_min = 0.1,
                                      .dt_max = 1.0},
                            .depth = 2,
                            .lambda_initialization = dm::LambdaInit::unit_variance};
}

TEST_CASE("gradients of every parameter and of x") {
  auto options = small;
  for (const auto lambda : {dm::Lambda::sigmoid_sum, dm::Lambda::sigmoid_scalar, dm::Lambda::sigmoid_per_channel,
                            dm::Lambda::exponential, dm::Lambda::none}) {
    CAPTURE(dm::name_of(lambda));
    options.lambda = lambda;
    check_mixer_gradients<Double>(options, 2, 5);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Double>(small, 5, 11);
}  // 55 rows fold, 5 do not

TEST_CASE("one and two threads give the same bits") {
  auto options = small;
  options.mixer.d_model = 24;
  check_mixer_threads<Double>(options, 3, 70);
}

TEST_CASE("an odd width has no halves") {
  auto options = small;
  options.mixer.d_model = 5, options.mixer.headdim = 5;
  CHECK(error_of([&] { Double mixer(options); }) == "diff_mamba2e: d_model 5 has no halves");
}
