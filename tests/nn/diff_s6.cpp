// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/diff_s6.hpp"

#include "nn/mixer_check.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using Double = dm::DiffS6<double>;

static_assert(dm::Mixer<Double>);

namespace {
const Double::Options small{
    .d_model = 5, .d_state = 3, .d_conv = 3, .dt_rank = 2, .bias = true, .dt_min = 0.1, .dt_max = 1.0};
}

TEST_CASE("gradients of every parameter and of x") {
  check_mixer_gradients<Double>(small, 2, 7);
  auto options = small;
  options.bias = false, options.conv_bias = false, options.expand = 1;
  check_mixer_gradients<Double>(options, 1, 5);
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Double>(small, 2, 11);
}

TEST_CASE("one and two threads give the same bits") {
  auto options = small;
  options.d_model = 40;
  check_mixer_threads<Double>(options, 3, 70);
}

TEST_CASE("both scans are one call on one convolution") {
  const auto calls = calls_of<Double>(small, 2, 40);
  CHECK(calls.convolutions == 1);
  CHECK(calls.scans == 1);
  CHECK(calls.forward_products == 5);  // in_proj, x_proj of both, dt_proj of each, out_proj
}

TEST_CASE("the difference of two Mamba blocks that share in_proj, convolution and out_proj") {
  auto options = small;
  options.bias = false;  // out_proj.bias would cancel
  auto mixer = stirred<Double>(options);
  dm::Mamba<double> first(options), second(options);
  initialize(first, dm::Philox{1});
  initialize(second, dm::Philox{1});
  for (auto* mamba : {&first, &second})
    mamba->visit([&](std::string_view name, auto& target) {
      std::string wanted(name);  // x_proj.weight -> x1_proj.weight, A_log -> A1_log, D -> D1
      const auto at = wanted.starts_with("x_") || wanted.starts_with("A_") || wanted == "D" ? 1u
                      : wanted.starts_with("dt_")                                           ? 2u
                                                                                            : 0u;
      if (at > 0) wanted.insert(at, mamba == &first ? "1" : "2");
      bool found = false;
      mixer.visit([&](std::string_view other, auto& source) {
        if constexpr (std::remove_cvref_t<decltype(source)>::rank == std::remove_cvref_t<decltype(target)>::rank)
          if (other == wanted) target.copy_from(source.to_tensor()), found = true;
      });
      CHECK_MESSAGE(found, wanted);
    });
  const auto x = random_tensor<double>(dm::Extents{2, 9, 5}, 1);
  auto want = dm::infer(first, x.view());
  const auto minus = dm::infer(second, x.view());
  for (dm::Index i = 0; i < want.size(); ++i) want.data()[i] -= minus.data()[i];
  CHECK(relative_error(trained_forward(mixer, x), want) < 1e-12);
}
