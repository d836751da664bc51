// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/differential.hpp"
#include "nn/mixer_check.hpp"

// Differential<Mamba>. The variants of norm and lambda are tested in differential.cpp.
namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;
using Double = dm::DiffMamba<double>;

namespace {

const Double::Options published{
    .mixer = {.d_model = 5, .d_state = 3, .d_conv = 3, .expand = 1, .bias = true, .dt_min = 0.1, .dt_max = 1.0},
    .differential = {
        .depth = 1, .lambda = dm::Lambda::exponential, .lambda_initialization = dm::LambdaInit::unit_variance}};

}  // namespace

TEST_CASE("gradients of every parameter and of x") {
  for (const auto norm : {dm::Norm::after, dm::Norm::before, dm::Norm::none}) {
    CAPTURE(dm::name_of(norm));
    auto options = published;
    options.differential.norm = norm;
    check_mixer_gradients<Double>(options, 2, 5);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Double>(published, 5, 11);
}

TEST_CASE("one and two threads give the same bits") {
  auto options = published;
  options.mixer.d_model = 40;
  check_mixer_threads<Double>(options, 3, 70);
}

TEST_CASE("both paths: one input product, one convolution, one scan, one output product") {
  // Besides in_proj and out_proj each path has its own x_proj and dt_proj; delta is computed again for backward.
  auto plain = published.mixer;
  CHECK(calls_of<dm::Mamba<double>>(plain, 2, 40) == Calls{4, 9, 1, 1});
  CHECK(calls_of<Double>(published, 2, 40) == Calls{2 + 2 * 2, 4 + 2 * 5, 1, 1});
}
