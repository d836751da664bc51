// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_backward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_forward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"

namespace diffmamba::conformance {
namespace {

/// Rows of any leading axes are one batch of the operator: (..., n) is (1, rows, n).
Extents<3> as_rows(const Case& golden, const std::string& name) {
  const auto& shape = golden.shape(name);
  require(!shape.empty(), name, " is a scalar");
  Index rows = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
  return {Index{1}, rows, shape.back()};
}

template <class T, class D, bool Layer>
void add_norm(Case& golden) {
  using A = accumulate_t<T>;
  const Extents<3> rows = as_rows(golden, "in.x");
  const auto x = golden.tensor<T, 3, D>("in.x", rows);
  const auto weight = golden.tensor<A, 1, D>("in.weight"), bias = golden.optional<A, 1, D>("in.bias");
  const auto residual = golden.optional<A, 3, D>("in.residual", rows);
  const auto x1 = golden.optional<T, 3, D>("in.x1", rows);
  const auto weight1 = golden.optional<A, 1, D>("in.weight1"), bias1 = golden.optional<A, 1, D>("in.bias1");
  const auto rowscale = golden.optional<A, 2, D>("in.rowscale", {rows[0], rows[1]});
  golden.expect("prenorm", golden.has("out.residual_out"));
  golden.expect("residual", static_cast<bool>(residual));
  golden.expect("parallel_x1", static_cast<bool>(x1));
  golden.expect("parallel_weight1", static_cast<bool>(weight1));
  golden.expect("rowscale", static_cast<bool>(rowscale));

  const rms_norm::Inputs<T, D> in{.x = x,
                                  .weight = weight,
                                  .bias = bias,
                                  .residual = residual,
                                  .x1 = x1,
                                  .weight1 = weight1,
                                  .bias1 = bias1,
                                  .rowscale = rowscale};
  const rms_norm::Options options{.eps = golden.number("eps", 1e-5), .prenorm = golden.has("out.residual_out")};
  const auto forward = [&] {
    if constexpr (Layer)
      return layer_norm::forward(in, options);
    else
      return rms_norm::forward(in, options);
  };
  const auto [out, residual_out, out1, saved] = forward();
  golden.check_elements("out.out", out);
  if (out1) golden.check_elements("out.out1", out1);
  if (golden.has("out.residual_out")) golden.check_elements("out.residual_out", residual_out);

  const auto dout = golden.optional<T, 3, D>("gout.out", rows), dout1 = golden.optional<T, 3, D>("gout.out1", rows);
  const auto dresidual_out = golden.optional<A, 3, D>("gout.residual_out", rows);
  if (!dout && !dout1 && !dresidual_out) return;
  const rms_norm::OutputGradients<T, D> upstream{.dout = dout, .dout1 = dout1, .dresidual_out = dresidual_out};
  const auto backward = [&in, &kept = saved, &upstream] {  // clang with OpenMP captures no structured bindings
    if constexpr (Layer)
      return layer_norm::backward(in, kept, upstream);
    else
      return rms_norm::backward(in, kept, upstream);
  };
  const rms_norm::Gradients<T, D> d = backward();
  golden.gradient_elements("in.x", d.dx);
  golden.gradient_elements("in.x1", d.dx1);
  golden.gradient_elements("in.residual", d.dresidual);
  golden.gradient_elements("in.rowscale", d.drowscale);
  golden.gradient("in.weight", d.dweight);
  golden.gradient("in.bias", d.dbias);
  golden.gradient("in.weight1", d.dweight1);
  golden.gradient("in.bias1", d.dbias1);
}

/// bfloat16 activations on a float32 residual stream (double on double in float64, where nothing may be rounded).
template <class T, class D, bool Layer>
void mixed_forward(Case& golden) {
  using Activation = std::conditional_t<std::is_same_v<T, double>, double, bfloat16>;
  const Extents<3> rows = as_rows(golden, "in.x");
  const auto x = golden.tensor<Activation, 3, D>("in.x", rows);
  const auto residual = golden.tensor<T, 3, D>("in.residual", rows);
  const auto weight = golden.tensor<T, 1, D>("in.weight"), bias = golden.optional<T, 1, D>("in.bias");
  const rms_norm::Options options{.eps = golden.number("eps", 1e-5), .prenorm = true};
  const auto forward = [&](const auto& in) {
    if constexpr (Layer)
      return layer_norm::forward(in, options);
    else
      return rms_norm::forward(in, options);
  };
  const auto [out, residual_out, out1, saved] =
      forward(rms_norm::Inputs<Activation, D>{.x = x, .weight = weight, .bias = bias, .residual = residual});
  golden.check_elements("out.residual_out", residual_out);

  // The norm of the stream before it is rounded: the same operator on the stream itself. What came out above must be
  // its rounding.
  const auto unrounded = forward(rms_norm::Inputs<T, D>{.x = residual_out, .weight = weight, .bias = bias}).out;
  golden.check_elements("out.out_unrounded", unrounded);
  const auto rounded = to<cpu>(out);
  const auto exact = to<cpu>(unrounded);
  for (Index i = 0; i < rounded.size(); ++i) {
    const double got = static_cast<double>(static_cast<T>(rounded.data()[i])),
                 want = static_cast<double>(exact.data()[i]);
    const double half_step = std::is_same_v<T, double> ? 1e-15 : 1.0 / 256 + 1e-6;
    if (!(std::abs(got - want) <= half_step * std::abs(want) + 1e-30))
      return golden.mistake("out", "element " + std::to_string(i) + " is no rounding of the norm");
  }
}

template <class T, class D>
void add_norm_mixed(Case& golden) {
  golden.expect("x_dtype", "bfloat16");
  golden.expect("residual_dtype", "float32");
  golden.expect("out_dtype", "bfloat16");
  const std::string norm = golden.text("norm", "rms_norm");
  require(norm == "rms_norm" || norm == "layer_norm", "attribute norm is \"", norm,
          "\", expected rms_norm or layer_norm");
  norm == "rms_norm" ? mixed_forward<T, D, false>(golden) : mixed_forward<T, D, true>(golden);
}

const Register rms_registered("rms_norm", []<class T, class D>(Case& golden) { add_norm<T, D, false>(golden); });
const Register layer_registered("layer_norm", []<class T, class D>(Case& golden) { add_norm<T, D, true>(golden); });
const Register mixed_registered("add_norm_mixed",
                                []<class T, class D>(Case& golden) { add_norm_mixed<accumulate_t<T>, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
