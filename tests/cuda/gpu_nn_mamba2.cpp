// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Mamba-2 and its differential mixers on a GPU against the CPU in double: results, gradients of everything, decoding,
// the same bits twice.
#include "cuda/mixer_on_gpu.hpp"
#include "diffmamba/nn/diff_mamba2e.hpp"
#include "diffmamba/nn/diff_s6_mamba2.hpp"
#include "diffmamba/nn/differential.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

template <class T, Device D>
using DifferentialMamba2 = Differential<Mamba2<T, D>>;

}  // namespace

TEST_SUITE_BEGIN("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0));

TEST_CASE_TEMPLATE("mamba2", T, float, double, bfloat16) {
  const Mamba2Options options{.d_model = 32, .d_state = 16, .headdim = 16, .bias = true};
  check_mixer<Mamba2, T>(options, options, 32);
}

TEST_CASE_TEMPLATE("mamba2: a gated MLP beside, D for each channel, learned states, two groups", T, float, double) {
  const Mamba2Options options{.d_model = 32,
                              .d_state = 16,
                              .headdim = 8,
                              .ngroups = 2,
                              .d_ssm = 48,
                              .D_has_hdim = true,
                              .learnable_init_states = true};
  check_mixer<Mamba2, T>(options, options, 32);
  Mamba2Options without_norm = options;
  without_norm.rmsnorm = false;
  without_norm.D_has_hdim = false;
  check_mixer<Mamba2, T>(without_norm, without_norm, 32);
}

TEST_CASE_TEMPLATE("diff_mamba2, norms and lambdas", T, float, double, bfloat16) {
  const Mamba2Options mixer{.d_model = 32, .d_state = 16, .expand = 1, .headdim = 8, .bias = true};
  for (const Norm norm : {Norm::after, Norm::before, Norm::before_and_after, Norm::none})
    for (const Lambda lambda : {Lambda::sigmoid_sum, Lambda::sigmoid_per_channel, Lambda::exponential, Lambda::none}) {
      if (norm != Norm::after && lambda != Lambda::sigmoid_sum && lambda != Lambda::sigmoid_per_channel) continue;
      INFO("norm " << name_of(norm) << " lambda " << name_of(lambda));
      const DifferentialOptions differential{
          .depth = 2, .norm = norm, .lambda = lambda, .lambda_initialization = LambdaInit::unit_variance};
      check_mixer_on_gpu<DifferentialMamba2<T, cuda>, DifferentialMamba2<double, cpu>>(
          {mixer, differential}, {mixer, differential}, 32, 2, 37, bounds<T>);
    }
}

TEST_CASE_TEMPLATE("diff_s6_mamba2", T, float, double, bfloat16) {
  DiffS6Mamba2Options options{.mixer = {.d_model = 32,
                                        .d_state = 16,
                                        .headdim = 16,
                                        .norm_groups = NormGroups::whole,
                                        .learnable_init_states = true},
                              .depth = 1};
  check_mixer<DiffS6Mamba2, T>(options, options, 32);
}

TEST_CASE_TEMPLATE("diff_mamba2e", T, float, double, bfloat16) {
  DiffMamba2EOptions options{.mixer = {.d_model = 32, .d_state = 16, .headdim = 16, .bias = true},
                             .depth = 1,
                             .lambda_initialization = LambdaInit::unit_variance};
  check_mixer<DiffMamba2E, T>(options, options, 32);
}

TEST_SUITE_END();
