// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_step.hpp"

namespace diffmamba::conformance {
namespace {

/// B or C: constant (D, N), variable (B, N, L) or grouped (B, G, N, L).
template <class T, class D>
struct Projection {
  Tensor<T, 4, D> per_token;               // (batch, length, ngroups, d_state)
  Tensor<accumulate_t<T>, 2, D> constant;  // (channels, d_state)
};

template <class T, class D>
Projection<T, D> read_projection(Case& golden, const std::string& name) {
  const int rank = golden.rank("in." + name);
  const auto& shape = golden.shape("in." + name);
  golden.expect(name + "_kind", rank == 2 ? "constant" : rank == 3 ? "variable" : "grouped");
  if (golden.given(name + "_ngroups")) golden.expect(name + "_ngroups", shape[1]);
  if (rank == 2) return {{}, golden.tensor<accumulate_t<T>, 2, D>("in." + name)};
  const auto given = rank == 3 ? golden.tensor<T, 4, D>("in." + name, {shape[0], 1, shape[1], shape[2]})
                               : golden.tensor<T, 4, D>("in." + name);
  return {dense(given.view().template permute<0, 3, 1, 2>()), {}};
}

template <class T, class D>
void check_projection(Case& golden, const std::string& name, const Tensor<T, 4, D>& per_token,
                      const Tensor<accumulate_t<T>, 2, D>& constant) {
  const int rank = golden.rank("in." + name);
  if (rank == 2) return golden.gradient("in." + name, constant);
  const auto as_given = per_token.view().template permute<0, 2, 3, 1>();  // (batch, ngroups, d_state, length)
  if (rank == 4) return golden.gradient("in." + name, as_given);
  golden.gradient("in." + name, as_given.template select<1>(0));
}

template <class T, class D>
void scan(Case& golden) {
  using A = accumulate_t<T>;
  const auto u = channel_last(golden.tensor<T, 3, D>("in.u"));
  const auto delta = channel_last(golden.tensor<T, 3, D>("in.delta"));
  const auto rate = golden.tensor<A, 2, D>("in.A");
  const auto B = read_projection<T, D>(golden, "B"), C = read_projection<T, D>(golden, "C");
  const auto skip = golden.optional<A, 1, D>("in.D");
  const auto z = channel_last(golden.optional<T, 3, D>("in.z"));
  const auto delta_bias = golden.optional<A, 1, D>("in.delta_bias");
  golden.expect("return_last_state", golden.has("out.last_state"));

  const selective_scan::Inputs<T, D> in{.u = u,
                                        .delta = delta,
                                        .A = rate,
                                        .B = B.per_token,
                                        .B_constant = B.constant,
                                        .C = C.per_token,
                                        .C_constant = C.constant,
                                        .D = skip,
                                        .z = z,
                                        .delta_bias = delta_bias};
  const auto [out, final_state, saved] =
      selective_scan::forward(in, {.delta_softplus = golden.flag("delta_softplus", false)});
  golden.check("out.out", channel_first(out));
  if (golden.has("out.last_state")) golden.check("out.last_state", final_state);

  if (!golden.has("gout.out")) return;
  const auto dout = channel_last(golden.tensor<T, 3, D>("gout.out"));
  const auto d = selective_scan::backward(in, saved, {.dout = dout});
  golden.gradient("in.u", channel_first(d.du));
  golden.gradient("in.delta", channel_first(d.ddelta));
  golden.gradient("in.A", d.dA);
  check_projection(golden, "B", d.dB, d.dB_constant);
  check_projection(golden, "C", d.dC, d.dC_constant);
  golden.gradient("in.D", d.dD);
  if (z) golden.gradient("in.z", channel_first(d.dz));
  golden.gradient("in.delta_bias", d.ddelta_bias);
}

/// One token of Mamba: state (slots, channels, d_state).
template <class T, class D>
void flat_update(Case& golden, Index steps) {
  using A = accumulate_t<T>;
  const auto& shape = golden.shape("in.x");
  const auto& b = golden.shape("in.B");
  const Index calls = std::max<Index>(steps, 1), batch = shape[shape.size() - 2], channels = shape.back();
  const Index d_state = b.back(), ngroups = b.size() == shape.size() ? 1 : b[b.size() - 2];
  const Extents<3> sizes{calls, batch, channels};
  const Extents<4> projected{calls, batch, ngroups, d_state};
  const auto x = golden.tensor<T, 3, D>("in.x", sizes), dt = golden.tensor<T, 3, D>("in.dt", sizes);
  const auto z = golden.optional<T, 3, D>("in.z", sizes);
  const auto rate = golden.tensor<A, 2, D>("in.A");
  const auto B = golden.tensor<T, 4, D>("in.B", projected), C = golden.tensor<T, 4, D>("in.C", projected);
  const auto skip = golden.optional<A, 1, D>("in.D"), dt_bias = golden.optional<A, 1, D>("in.dt_bias");
  const auto slots = golden.optional<Index, 1, D>("in.state_batch_indices");
  auto state = golden.tensor<A, 3, D>("in.state");

  Tensor<T, 3, D> out(sizes);
  for (Index call = 0; call < calls; ++call) {
    selective_scan::StepInputs<T, D> in{.u = x.template select<0>(call),
                                        .delta = dt.template select<0>(call),
                                        .A = rate,
                                        .B = B.template select<0>(call),
                                        .C = C.template select<0>(call),
                                        .D = skip,
                                        .delta_bias = dt_bias,
                                        .state_batch_indices = slots};
    if (z) in.z = z.template select<0>(call);
    const Tensor<T, 2, D> y = selective_scan::step(in, state, {.delta_softplus = golden.flag("dt_softplus", false)});
    copy(y, out.template select<0>(call));
  }
  golden.check_elements("out.out", out);
  golden.check("out.state", state);
}

/// One token in heads: state (slots, nheads, headdim, d_state).
template <class T, class D>
void head_update(Case& golden, Index steps) {
  using A = accumulate_t<T>;
  const auto& shape = golden.shape("in.x");
  const auto& b = golden.shape("in.B");
  const Index calls = std::max<Index>(steps, 1), batch = shape[shape.size() - 3];
  const Extents<4> sizes{calls, batch, shape[shape.size() - 2], shape.back()};
  const Extents<4> projected{calls, batch, b.size() == shape.size() ? b[b.size() - 2] : 1, b.back()};
  golden.expect("nheads", sizes[2]);
  golden.expect("ngroups", projected[2]);
  const auto x = golden.tensor<T, 4, D>("in.x", sizes), dt = golden.tensor<T, 4, D>("in.dt", sizes);
  const auto z = golden.optional<T, 4, D>("in.z", sizes);
  const auto rate = golden.tensor<A, 3, D>("in.A");
  const auto B = golden.tensor<T, 4, D>("in.B", projected), C = golden.tensor<T, 4, D>("in.C", projected);
  const auto skip = golden.optional<A, 2, D>("in.D"), dt_bias = golden.optional<A, 2, D>("in.dt_bias");
  const auto slots = golden.optional<Index, 1, D>("in.state_batch_indices");
  auto state = golden.tensor<A, 4, D>("in.state");

  Tensor<T, 4, D> out(sizes);
  for (Index call = 0; call < calls; ++call) {
    selective_scan::HeadStepInputs<T, D> in{.x = x.template select<0>(call),
                                            .dt = dt.template select<0>(call),
                                            .A = rate,
                                            .B = B.template select<0>(call),
                                            .C = C.template select<0>(call),
                                            .D = skip,
                                            .dt_bias = dt_bias,
                                            .state_batch_indices = slots};
    if (z) in.z = z.template select<0>(call);
    const Tensor<T, 3, D> y = selective_scan::step(in, state, {.delta_softplus = golden.flag("dt_softplus", false)});
    copy(y, out.template select<0>(call));
  }
  golden.check_elements("out.out", out);
  golden.check("out.state", state);
}

template <class T, class D>
void update(Case& golden) {
  const Index steps = golden.integer("steps", 0);
  golden.expect("state_batch_indices", golden.has("in.state_batch_indices"));
  golden.flag("tie_hdim", false);  // the tensors have their full sizes all the same
  golden.given("nheads");
  golden.given("ngroups");
  golden.rank("in.state") == 3 ? flat_update<T, D>(golden, steps) : head_update<T, D>(golden, steps);
}

const Register scan_registered("selective_scan", []<class T, class D>(Case& golden) { scan<T, D>(golden); });
const Register update_registered("selective_state_update",
                                 []<class T, class D>(Case& golden) { update<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
