// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/ssd/segsum.hpp"
#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/ops/ssd/ssd_minimal.hpp"

namespace diffmamba::conformance {
namespace {

template <class T, class Dev>
void chunk_scan(Case& golden) {
  using R = accumulate_t<T>;
  const auto x = golden.tensor<T, 4, Dev>("in.x");
  const auto dt = golden.tensor<T, 3, Dev>("in.dt");
  const auto A = golden.tensor<R, 1, Dev>("in.A");
  const auto B = golden.tensor<T, 4, Dev>("in.B"), C = golden.tensor<T, 4, Dev>("in.C");
  const bool per_channel = golden.has("in.D") && golden.rank("in.D") == 2;
  const auto D = per_channel ? Tensor<R, 1, Dev>() : golden.optional<R, 1, Dev>("in.D");
  const auto D_per_channel = per_channel ? golden.tensor<R, 2, Dev>("in.D") : Tensor<R, 2, Dev>();
  const auto z = golden.optional<T, 4, Dev>("in.z");
  const auto dt_bias = golden.optional<R, 1, Dev>("in.dt_bias");
  const auto initial_state = golden.optional<R, 4, Dev>("in.initial_states");
  if (golden.given("D_kind")) golden.expect("D_kind", per_channel ? "per_channel" : "per_head");
  golden.expect("ngroups", B.extent(2));
  golden.expect("return_final_states", golden.has("out.final_states"));
  golden.expect("seq_idx", golden.has("in.seq_idx"));
  golden.expect("return_varlen_states", golden.has("out.varlen_states"));

  const ssd::Inputs<T, Dev> in{.x = x,
                               .dt = dt,
                               .A = A,
                               .B = B,
                               .C = C,
                               .D = D,
                               .D_per_channel = D_per_channel,
                               .z = z,
                               .dt_bias = dt_bias,
                               .initial_state = initial_state};
  const auto dt_limit = golden.numbers("dt_limit", {0.0, HUGE_VAL});
  const auto [out, final_state, saved] = ssd::forward(in, {.chunk_size = golden.integer("chunk_size", 128),
                                                           .dt_softplus = golden.flag("dt_softplus", false),
                                                           .dt_min = dt_limit[0],
                                                           .dt_max = dt_limit[1]});
  golden.check("out.out", out);
  if (golden.has("out.final_states")) golden.check("out.final_states", final_state);

  const auto dout = golden.optional<T, 4, Dev>("gout.out");
  const auto dfinal_state = golden.optional<R, 4, Dev>("gout.final_states");
  if (!dout && !dfinal_state) return;
  const auto d = ssd::backward(in, saved, {.dout = dout, .dfinal_state = dfinal_state});
  golden.gradient("in.x", d.dx);
  golden.gradient("in.dt", d.ddt);
  golden.gradient("in.A", d.dA);
  golden.gradient("in.B", d.dB);
  golden.gradient("in.C", d.dC);
  per_channel ? golden.gradient("in.D", d.dD_per_channel) : golden.gradient("in.D", d.dD);
  golden.gradient("in.z", d.dz);
  golden.gradient("in.dt_bias", d.ddt_bias);
  golden.gradient("in.initial_states", d.dinitial_state);
}

template <class T, class Dev>
void minimal(Case& golden) {
  using R = accumulate_t<T>;
  const auto X = golden.tensor<T, 4, Dev>("in.X"), B = golden.tensor<T, 4, Dev>("in.B"),
             C = golden.tensor<T, 4, Dev>("in.C");
  const auto A = golden.tensor<R, 3, Dev>("in.A");
  const Extents<4> state{X.extent(0), X.extent(2), X.extent(3), B.extent(3)};
  if (golden.has("in.initial_states"))  // (batch, 1, nheads, headdim, d_state)
    require(golden.rank("in.initial_states") == 5 && golden.shape("in.initial_states")[1] == 1,
            "in.initial_states must have 5 axes, the second of one element");
  const auto initial_state = golden.optional<R, 4, Dev>("in.initial_states", state);

  const ssd::minimal::Inputs<T, Dev> in{.x = X, .A = A, .B = B, .C = C, .initial_state = initial_state};
  const auto [out, final_state, saved] = ssd::minimal::forward(in, {.block_len = golden.integer("block_len", 64)});
  golden.check("out.Y", out);
  golden.check("out.final_state", final_state);

  const auto dout = golden.optional<T, 4, Dev>("gout.Y");
  const auto dfinal_state = golden.optional<R, 4, Dev>("gout.final_state");
  if (!dout && !dfinal_state) return;
  const auto d = ssd::minimal::backward(in, saved, {.dout = dout, .dfinal_state = dfinal_state});
  golden.gradient("in.X", d.dx);
  golden.gradient("in.A", d.dA);
  golden.gradient("in.B", d.dB);
  golden.gradient("in.C", d.dC);
  golden.gradient_elements("in.initial_states", d.dinitial_state);
}

template <class T, class Dev>
void segment_sums(Case& golden) {
  using R = accumulate_t<T>;  // log decays are
  const auto& shape = golden.shape("in.x");
  require(!shape.empty(), "in.x is a scalar");
  const Index length = shape.back();
  Index rows = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
  const auto x = golden.tensor<R, 2, Dev>("in.x", {rows, length});
  const auto out = ssd::segsum::forward(x.view());
  golden.check_elements("out.out", out);
  if (!golden.has("gout.out")) return;
  const auto dout = golden.tensor<R, 3, Dev>("gout.out", out.extents());
  golden.gradient_elements("in.x", ssd::segsum::backward(dout.view()));
}

const Register minimal_registered("ssd_minimal", []<class T, class Dev>(Case& golden) { minimal<T, Dev>(golden); });
const Register segsum_registered("segsum", []<class T, class Dev>(Case& golden) { segment_sums<T, Dev>(golden); });
const Register chunk_scan_registered("ssd_chunk_scan",
                                     []<class T, class Dev>(Case& golden) { chunk_scan<T, Dev>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
