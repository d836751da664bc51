// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/layer_norm/layer_norm.hpp"

#include "diffmamba/ops/layer_norm/layer_norm_backward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_forward.hpp"
#include "support/add_norm_suite.hpp"

using namespace diffmamba;

namespace {

struct Norm {
  static constexpr const char* name = "layer_norm";
  static constexpr bool centred = true;
  template <class T>
  using Saved = layer_norm::Saved<T>;
  template <class T>
  static auto forward(const rms_norm::Inputs<T>& in, const rms_norm::Options& options) {
    return layer_norm::forward(in, options);
  }
  static auto forward(const rms_norm::Inputs<float>& in, const rms_norm::Options& options,
                      const rms_norm::OutputViews<float>& outputs, Saved<float>* saved) {
    layer_norm::forward(in, options, outputs, saved);
  }
  template <class T>
  static auto backward(const rms_norm::Inputs<T>& in, const Saved<T>& saved,
                       const std::type_identity_t<rms_norm::OutputGradients<T>>& upstream) {
    return layer_norm::backward(in, saved, upstream);
  }
  static auto backward(const rms_norm::Inputs<float>& in, const Saved<float>& saved,
                       const rms_norm::OutputGradients<float>& upstream,
                       const rms_norm::GradientViews<float>& gradients, Workspace<cpu>& workspace, GradientMode mode) {
    layer_norm::backward(in, saved, upstream, gradients, workspace, mode);
  }
  static auto workspace_bytes(const rms_norm::Inputs<float>& in) { return layer_norm::workspace_bytes(in); }
};

}  // namespace

TEST_CASE("layer_norm: the formula with every optional input, and with none") {
  test::add_norm_formula<Norm>();
}
TEST_CASE("layer_norm: gradients of every input") {
  test::add_norm_gradients<Norm>();
}
TEST_CASE("layer_norm: in place, from the kept sum, without allocating") {
  test::add_norm_in_place<Norm>();
}
TEST_CASE("layer_norm: float and bfloat16 against double, the same bits on one and two threads") {
  test::add_norm_types_and_threads<Norm>();
}
TEST_CASE("layer_norm: the residual stream stays float") {
  test::add_norm_float_stream<Norm>();
}
TEST_CASE("layer_norm: strided rows at any address") {
  test::add_norm_strided<Norm>();
}
TEST_CASE("layer_norm: mistakes are named") {
  test::add_norm_mistakes<Norm>();
}

TEST_CASE("layer_norm: a mean a thousand times the deviation costs no digits") {
  auto x = test::random_tensor<double, 3>({1, 3, 200}, 1);
  Tensor<float, 3> shifted(x.extents());
  for (Index i = 0; i < x.size(); ++i) {
    shifted.data()[i] = static_cast<float>(x.data()[i]) + 1024.0f;  // exact to 6e-5
    x.data()[i] = static_cast<double>(shifted.data()[i]);
  }
  const Tensor<double, 1> weight(Extents{200}, 1.0);
  const Tensor<float, 1> weight_float(Extents{200}, 1.0f);
  const auto want = layer_norm::forward<double>({.x = x, .weight = weight});
  const auto got = layer_norm::forward<float>({.x = shifted, .weight = weight_float});
  CHECK(test::relative_error(got.out, want.out) < 1e-4);
}
