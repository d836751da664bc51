// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_backward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"

namespace diffmamba::conformance {
namespace {

Lambda lambda_form(const std::string& name) {
  if (name == "exp_qk") return Lambda::exponential;
  if (name == "sigmoid_sum") return Lambda::sigmoid_sum;
  if (name == "sigmoid_scalar") return Lambda::sigmoid_scalar;
  if (name == "none") return Lambda::none;
  fail("attribute lam is \"", name, "\", expected exp_qk, sigmoid_sum, sigmoid_scalar or none");
}

Norm norm_place(const std::string& name) {
  if (name == "after") return Norm::after;
  if (name == "before") return Norm::before;
  if (name == "before_and_after") return Norm::before_and_after;
  if (name == "none") return Norm::none;
  fail("attribute norm is \"", name, "\", expected after, before, before_and_after or none");
}

template <class T, class D>
void combine(Case& golden) {
  namespace op = differential_combine;
  using A = accumulate_t<T>;
  golden.given("origin");  // where the composition comes from
  const Lambda form = lambda_form(golden.text("lam", "sigmoid_sum"));
  const double init = lambda_init(golden.integer("layer", 1) - 1);
  golden.expect_number("lambda_init", init);

  const auto y1 = golden.tensor<T, 3, D>("in.y1"), y2 = golden.tensor<T, 3, D>("in.y2");
  const auto q1 = golden.optional<A, 1, D>("in.lambda_q1"), k1 = golden.optional<A, 1, D>("in.lambda_k1");
  const auto q2 = golden.optional<A, 1, D>("in.lambda_q2"), k2 = golden.optional<A, 1, D>("in.lambda_k2");
  const auto norm_weight = golden.optional<A, 1, D>("in.norm_weight");
  const auto subln_weight = golden.optional<A, 1, D>("in.subln_weight");

  const op::LambdaInputs<A, D> lambda_in{.lambda_q1 = q1, .lambda_k1 = k1, .lambda_q2 = q2, .lambda_k2 = k2};
  Tensor<A, 1, D> lambda(Extents<1>(op::lambda_count(form, y1.extent(2))));
  op::lambda_forward(form, init, lambda_in, lambda.view());
  if (golden.has("out.lambda_full")) golden.check_elements("out.lambda_full", lambda);

  const op::Inputs<T, D> in{
      .y1 = y1, .y2 = y2, .lambda = lambda, .norm_weight = norm_weight, .subln_weight = subln_weight};
  const auto [out, saved] = op::forward(in, {.norm = norm_place(golden.text("norm", "after")),
                                             .scale = op::output_scale(form, init),
                                             .eps = golden.number("eps", 1e-5)});
  golden.check("out.out", out);

  if (!golden.has("gout.out")) return;
  const auto dout = golden.tensor<T, 3, D>("gout.out");
  const auto d = op::backward(in, saved, {.dout = dout});
  golden.gradient("in.y1", d.dy1);
  golden.gradient("in.y2", d.dy2);
  golden.gradient("in.norm_weight", d.dnorm_weight);
  golden.gradient("in.subln_weight", d.dsubln_weight);

  const auto zeros = [](const Tensor<A, 1, D>& like) {
    return like ? Tensor<A, 1, D>(like.extents()) : Tensor<A, 1, D>();
  };
  auto dq1 = zeros(q1), dk1 = zeros(k1), dq2 = zeros(q2), dk2 = zeros(k2);
  op::lambda_backward(form, lambda_in, d.dlambda.view(),
                      {.dlambda_q1 = dq1, .dlambda_k1 = dk1, .dlambda_q2 = dq2, .dlambda_k2 = dk2});
  golden.gradient("in.lambda_q1", dq1);
  golden.gradient("in.lambda_k1", dk1);
  golden.gradient("in.lambda_q2", dq2);
  golden.gradient("in.lambda_k2", dk2);
}

const Register registered("diff_combine", []<class T, class D>(Case& golden) { combine<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
