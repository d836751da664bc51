// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_step.hpp"

namespace diffmamba::conformance {
namespace {

/// B or C: constant (D, N), variable (B, N, L) or grouped (B, G, N, L).
template <class T>
struct Projection {
  Tensor<T, 4> per_token;  // (batch, length, ngroups, d_state)
  Tensor<T, 2> constant;   // (channels, d_state)
};

template <class T>
Projection<T> read_projection(Case& golden, const std::string& name) {
  const int rank = golden.rank("in." + name);
  const auto& shape = golden.shape("in." + name);
  golden.expect(name + "_kind", rank == 2 ? "constant" : rank == 3 ? "variable" : "grouped");
  if (golden.given(name + "_ngroups")) golden.expect(name + "_ngroups", shape[1]);
  if (rank == 2) return {{}, golden.tensor<T, 2>("in." + name)};
  const auto given = rank == 3 ? golden.tensor<T, 4>("in." + name, {shape[0], 1, shape[1], shape[2]})
                               : golden.tensor<T, 4>("in." + name);
  return {to_tensor(given.view().template permute<0, 3, 1, 2>()), {}};
}

template <class T>
void check_projection(Case& golden, const std::string& name, const Tensor<T, 4>& per_token,
                      const Tensor<T, 2>& constant) {
  const int rank = golden.rank("in." + name);
  if (rank == 2) return golden.gradient("in." + name, constant);
  const auto as_given = per_token.view().template permute<0, 2, 3, 1>();  // (batch, ngroups, d_state, length)
  if (rank == 4) return golden.gradient("in." + name, as_given);
  golden.gradient("in." + name, as_given.template select<1>(0));
}

template <class T>
void scan(Case& golden) {
  const auto u = channel_last(golden.tensor<T, 3>("in.u"));
  const auto delta = channel_last(golden.tensor<T, 3>("in.delta"));
  const auto A = golden.tensor<T, 2>("in.A");
  const auto B = read_projection<T>(golden, "B"), C = read_projection<T>(golden, "C");
  const auto D = golden.optional<T, 1>("in.D");
  const auto z = channel_last(golden.optional<T, 3>("in.z"));
  const auto delta_bias = golden.optional<T, 1>("in.delta_bias");
  golden.expect("return_last_state", golden.has("out.last_state"));

  const selective_scan::Inputs<T> in{.u = u,
                                     .delta = delta,
                                     .A = A,
                                     .B = B.per_token,
                                     .B_constant = B.constant,
                                     .C = C.per_token,
                                     .C_constant = C.constant,
                                     .D = D,
                                     .z = z,
                                     .delta_bias = delta_bias};
  const auto [out, final_state, saved] =
      selective_scan::forward(in, {.delta_softplus = golden.flag("delta_softplus", false)});
  golden.check("out.out", channel_first(out));
  if (golden.has("out.last_state")) golden.check("out.last_state", final_state);

  if (!golden.has("gout.out")) return;
  const auto dout = channel_last(golden.tensor<T, 3>("gout.out"));
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
template <class T>
void flat_update(Case& golden, Index steps) {
  const auto& shape = golden.shape("in.x");
  const auto& b = golden.shape("in.B");
  const Index calls = std::max<Index>(steps, 1), batch = shape[shape.size() - 2], channels = shape.back();
  const Index d_state = b.back(), ngroups = b.size() == shape.size() ? 1 : b[b.size() - 2];
  const Extents<3> sizes{calls, batch, channels};
  const Extents<4> projected{calls, batch, ngroups, d_state};
  const auto x = golden.tensor<T, 3>("in.x", sizes), dt = golden.tensor<T, 3>("in.dt", sizes);
  const auto z = golden.optional<T, 3>("in.z", sizes);
  const auto A = golden.tensor<T, 2>("in.A");
  const auto B = golden.tensor<T, 4>("in.B", projected), C = golden.tensor<T, 4>("in.C", projected);
  const auto D = golden.optional<T, 1>("in.D"), dt_bias = golden.optional<T, 1>("in.dt_bias");
  const auto slots = golden.optional<Index, 1>("in.state_batch_indices");
  auto state = golden.tensor<T, 3>("in.state");

  Tensor<T, 3> out(sizes);
  for (Index call = 0; call < calls; ++call) {
    selective_scan::StepInputs<T> in{.u = x.template select<0>(call),
                                     .delta = dt.template select<0>(call),
                                     .A = A,
                                     .B = B.template select<0>(call),
                                     .C = C.template select<0>(call),
                                     .D = D,
                                     .delta_bias = dt_bias,
                                     .state_batch_indices = slots};
    if (z) in.z = z.template select<0>(call);
    const Tensor<T, 2> y = selective_scan::step(in, state, {.delta_softplus = golden.flag("dt_softplus", false)});
    copy(y, out.template select<0>(call));
  }
  golden.check_elements("out.out", out);
  golden.check("out.state", state);
}

/// One token in heads: state (slots, nheads, headdim, d_state).
template <class T>
void head_update(Case& golden, Index steps) {
  const auto& shape = golden.shape("in.x");
  const auto& b = golden.shape("in.B");
  const Index calls = std::max<Index>(steps, 1), batch = shape[shape.size() - 3];
  const Extents<4> sizes{calls, batch, shape[shape.size() - 2], shape.back()};
  const Extents<4> projected{calls, batch, b.size() == shape.size() ? b[b.size() - 2] : 1, b.back()};
  golden.expect("nheads", sizes[2]);
  golden.expect("ngroups", projected[2]);
  const auto x = golden.tensor<T, 4>("in.x", sizes), dt = golden.tensor<T, 4>("in.dt", sizes);
  const auto z = golden.optional<T, 4>("in.z", sizes);
  const auto A = golden.tensor<T, 3>("in.A");
  const auto B = golden.tensor<T, 4>("in.B", projected), C = golden.tensor<T, 4>("in.C", projected);
  const auto D = golden.optional<T, 2>("in.D"), dt_bias = golden.optional<T, 2>("in.dt_bias");
  const auto slots = golden.optional<Index, 1>("in.state_batch_indices");
  auto state = golden.tensor<T, 4>("in.state");

  Tensor<T, 4> out(sizes);
  for (Index call = 0; call < calls; ++call) {
    selective_scan::HeadStepInputs<T> in{.x = x.template select<0>(call),
                                         .dt = dt.template select<0>(call),
                                         .A = A,
                                         .B = B.template select<0>(call),
                                         .C = C.template select<0>(call),
                                         .D = D,
                                         .dt_bias = dt_bias,
                                         .state_batch_indices = slots};
    if (z) in.z = z.template select<0>(call);
    const Tensor<T, 3> y = selective_scan::step(in, state, {.delta_softplus = golden.flag("dt_softplus", false)});
    copy(y, out.template select<0>(call));
  }
  golden.check_elements("out.out", out);
  golden.check("out.state", state);
}

template <class T>
void update(Case& golden) {
  const Index steps = golden.integer("steps", 0);
  golden.expect("state_batch_indices", golden.has("in.state_batch_indices"));
  golden.flag("tie_hdim", false);  // the tensors have their full sizes all the same
  golden.given("nheads");
  golden.given("ngroups");
  golden.rank("in.state") == 3 ? flat_update<T>(golden, steps) : head_update<T>(golden, steps);
}

const Register scan_registered("selective_scan", scan<double>, scan<float>);
const Register update_registered("selective_state_update", update<double>, update<float>);

}  // namespace
}  // namespace diffmamba::conformance
