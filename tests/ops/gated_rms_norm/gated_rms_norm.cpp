// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm.hpp"

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "support/gated_norm_suite.hpp"

using namespace diffmamba;

namespace {

struct Norm {
  static constexpr const char* name = "gated_rms_norm";
  static constexpr bool centred = false;
  template <class T>
  static auto forward(const gated_rms_norm::Inputs<T>& in, const gated_rms_norm::Options& options) {
    return gated_rms_norm::forward(in, options);
  }
  static auto forward(const gated_rms_norm::Inputs<float>& in, const gated_rms_norm::Options& options,
                      const gated_rms_norm::OutputViews<float>& outputs, gated_rms_norm::Saved<float>* saved) {
    gated_rms_norm::forward(in, options, outputs, saved);
  }
  template <class T>
  static auto backward(const gated_rms_norm::Inputs<T>& in, const gated_rms_norm::Saved<T>& saved,
                       const std::type_identity_t<gated_rms_norm::OutputGradients<T>>& upstream) {
    return gated_rms_norm::backward(in, saved, upstream);
  }
  static auto backward(const gated_rms_norm::Inputs<float>& in, const gated_rms_norm::Saved<float>& saved,
                       const gated_rms_norm::OutputGradients<float>& upstream,
                       const gated_rms_norm::GradientViews<float>& gradients, Workspace<cpu>& workspace,
                       GradientMode mode) {
    gated_rms_norm::backward(in, saved, upstream, gradients, workspace, mode);
  }
  static auto workspace_bytes(const gated_rms_norm::Inputs<float>& in) { return gated_rms_norm::workspace_bytes(in); }
};

}  // namespace

TEST_CASE("gated_rms_norm: the formula, groups that divide no register") {
  test::gated_norm_formula<Norm>();
}
TEST_CASE("gated_rms_norm: gradients of every input") {
  test::gated_norm_gradients<Norm>();
}
TEST_CASE("gated_rms_norm: a slice, in place, without allocating") {
  test::gated_norm_slices_in_place<Norm>();
}
TEST_CASE("gated_rms_norm: float and bfloat16 against double, the same bits on one and two threads") {
  test::gated_norm_types_and_threads<Norm>();
}
TEST_CASE("gated_rms_norm: mistakes are named") {
  test::gated_norm_mistakes<Norm>();
}
