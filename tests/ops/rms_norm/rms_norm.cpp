// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/rms_norm/rms_norm.hpp"

#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"
#include "support/add_norm_suite.hpp"

using namespace diffmamba;

namespace {

struct Norm {
  static constexpr const char* name = "rms_norm";
  static constexpr bool centred = false;
  template <class T>
  using Saved = rms_norm::Saved<T>;
  template <class T>
  static auto forward(const rms_norm::Inputs<T>& in, const rms_norm::Options& options) {
    return rms_norm::forward(in, options);
  }
  static auto forward(const rms_norm::Inputs<float>& in, const rms_norm::Options& options,
                      const rms_norm::OutputViews<float>& outputs, Saved<float>* saved) {
    rms_norm::forward(in, options, outputs, saved);
  }
  template <class T>
  static auto backward(const rms_norm::Inputs<T>& in, const Saved<T>& saved,
                       const std::type_identity_t<rms_norm::OutputGradients<T>>& upstream) {
    return rms_norm::backward(in, saved, upstream);
  }
  static auto backward(const rms_norm::Inputs<float>& in, const Saved<float>& saved,
                       const rms_norm::OutputGradients<float>& upstream,
                       const rms_norm::GradientViews<float>& gradients, Workspace<cpu>& workspace, GradientMode mode) {
    rms_norm::backward(in, saved, upstream, gradients, workspace, mode);
  }
  static auto workspace_bytes(const rms_norm::Inputs<float>& in) { return rms_norm::workspace_bytes(in); }
};

}  // namespace

TEST_CASE("rms_norm: the formula with every optional input, and with none") {
  test::add_norm_formula<Norm>();
}
TEST_CASE("rms_norm: gradients of every input") {
  test::add_norm_gradients<Norm>();
}
TEST_CASE("rms_norm: in place, from the kept sum, without allocating") {
  test::add_norm_in_place<Norm>();
}
TEST_CASE("rms_norm: float and bfloat16 against double, the same bits on one and two threads") {
  test::add_norm_types_and_threads<Norm>();
}
TEST_CASE("rms_norm: the residual stream stays float") {
  test::add_norm_float_stream<Norm>();
}
TEST_CASE("rms_norm: strided rows at any address") {
  test::add_norm_strided<Norm>();
}
TEST_CASE("rms_norm: mistakes are named") {
  test::add_norm_mistakes<Norm>();
}
