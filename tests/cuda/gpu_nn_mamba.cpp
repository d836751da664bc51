// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Mamba and its differential mixers on a GPU against the CPU in double: results, gradients of everything, decoding, the
// same bits twice.
#include "cuda/mixer_on_gpu.hpp"
#include "diffmamba/nn/diff_s6.hpp"
#include "diffmamba/nn/differential.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

template <class T, Device D>
using DifferentialMamba = Differential<Mamba<T, D>>;

}  // namespace

TEST_SUITE_BEGIN("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0));

TEST_CASE_TEMPLATE("mamba", T, float, double, bfloat16) {
  const MambaOptions options{.d_model = 32, .d_state = 8, .bias = true};
  check_mixer<Mamba, T>(options, options, 32);
}

TEST_CASE_TEMPLATE("diff_mamba", T, float, double, bfloat16) {
  const MambaOptions mixer{.d_model = 32, .d_state = 8, .expand = 1};
  const DifferentialOptions differential{
      .depth = 1, .lambda = Lambda::exponential, .lambda_initialization = LambdaInit::unit_variance};
  check_mixer<DifferentialMamba, T>({mixer, differential}, {mixer, differential}, 32);
}

TEST_CASE_TEMPLATE("diff_s6", T, float, double, bfloat16) {
  const MambaOptions options{.d_model = 24, .d_state = 8};
  check_mixer<DiffS6, T>(options, options, 24);
}

TEST_SUITE_END();
