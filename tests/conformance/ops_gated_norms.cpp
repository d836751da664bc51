// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_backward.hpp"
#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_forward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"

namespace diffmamba::conformance {
namespace {

template <class T, class D, bool Layer>
void gated_norm(Case& golden) {
  const auto& shape = golden.shape("in.x");
  const Index channels = shape.back();
  Index count = 1;
  for (Index extent : shape) count *= extent;
  const Extents<3> rows{Index{1}, channels > 0 ? count / channels : 0, channels};
  const auto x = golden.tensor<T, 3, D>("in.x", rows), z = golden.optional<T, 3, D>("in.z", rows);
  const auto weight = golden.tensor<accumulate_t<T>, 1, D>("in.weight");
  const auto bias = golden.optional<accumulate_t<T>, 1, D>("in.bias");
  golden.expect("has_z", static_cast<bool>(z));

  const gated_rms_norm::Inputs<T, D> in{.x = x, .weight = weight, .z = z, .bias = bias};
  const gated_rms_norm::Options options{.eps = golden.number("eps", 1e-5),
                                        .group_size = golden.integer("group_size", 0),
                                        .norm_before_gate = golden.flag("norm_before_gate", true)};
  const auto forward = [&] {
    if constexpr (Layer)
      return gated_layer_norm::forward(in, options);
    else
      return gated_rms_norm::forward(in, options);
  };
  const auto [out, saved] = forward();
  golden.check_elements("out.out", out);

  if (!golden.has("gout.out")) return;
  const auto dout = golden.tensor<T, 3, D>("gout.out", rows);
  const auto backward = [&in, &kept = saved, &dout] {  // clang with OpenMP captures no structured bindings
    if constexpr (Layer)
      return gated_layer_norm::backward(in, kept, {.dout = dout});
    else
      return gated_rms_norm::backward(in, kept, {.dout = dout});
  };
  const gated_rms_norm::Gradients<T, D> d = backward();
  golden.gradient_elements("in.x", d.dx);
  golden.gradient_elements("in.z", d.dz);
  golden.gradient("in.weight", d.dweight);
  golden.gradient("in.bias", d.dbias);
}

const Register rms_registered("rms_norm_gated",
                              []<class T, class D>(Case& golden) { gated_norm<T, D, false>(golden); });
const Register layer_registered("layer_norm_gated",
                                []<class T, class D>(Case& golden) { gated_norm<T, D, true>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
