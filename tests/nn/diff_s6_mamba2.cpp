// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/diff_s6_mamba2.hpp"

#include "nn/mixer_check.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using Double = dm::DiffS6Mamba2<double>;

static_assert(dm::Mixer<Double>);

namespace {
const Double::Options small{.mixer = {.d_model = 6,
                                      .d_state = 3,
                                      .d_conv = 3,
                                      .headdim = 2,
                                      .ngroups = 3,
                                      .norm_groups = dm::NormGroups::whole,
                                      .learnable_init_states = true,
                                      .bias = true,
                                      .chunk_size = 4,
                                      .dt_min = 0.1,
                                      .dt_max = 1.0},
                            .depth = 2};
}

TEST_CASE("gradients of every parameter and of x") {
  check_mixer_gradients<Double>(small, 2, 7);
  auto options = small;
  options.mixer.bias = false, options.mixer.conv_bias = false, options.mixer.D_has_hdim = true;
  for (const auto lambda :
       {dm::Lambda::sigmoid_sum, dm::Lambda::sigmoid_per_channel, dm::Lambda::exponential, dm::Lambda::none}) {
    options.lambda = lambda;
    options.lambda_initialization = dm::LambdaInit::unit_variance;
    check_mixer_gradients<Double>(options, 1, 5);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Double>(small, 2, 11);
}

TEST_CASE("one and two threads give the same bits") {
  auto options = small;
  options.mixer.d_model = 24;
  check_mixer_threads<Double>(options, 3, 70);
}

TEST_CASE("what is not offered is refused") {
  auto options = small;
  options.mixer.d_ssm = 6;
  CHECK(error_of([&] { Double mixer(options); }) ==
        "diff_s6_mamba2: d_ssm smaller than d_inner is not offered by this mixer");
  options = small;
  options.mixer.rmsnorm = false;
  CHECK(error_of([&] { Double mixer(options); }) == "diff_s6_mamba2: rmsnorm = false is not offered by this mixer");
}
