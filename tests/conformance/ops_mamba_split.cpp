// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "diffmamba/ops/linear/linear_backward.hpp"
#include "diffmamba/ops/linear/linear_forward.hpp"
#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/ops/swiglu/swiglu_backward.hpp"
#include "diffmamba/ops/swiglu/swiglu_forward.hpp"

// mamba_split_conv1d_scan is the inside of Mamba-2 in one call. Here it is put together from the library's operators,
// forward and backward, on strided slices of one projection.
namespace diffmamba::conformance {
namespace {

template <class T, class Dev>
void mamba_split(Case& golden) {
  using R = accumulate_t<T>;
  const auto zxbcdt = golden.tensor<T, 3, Dev>("in.zxbcdt");
  const auto conv_weight = golden.tensor<R, 2, Dev>("in.conv1d_weight");
  const auto conv_bias = golden.optional<R, 1, Dev>("in.conv1d_bias");
  const auto dt_bias = golden.optional<R, 1, Dev>("in.dt_bias");
  const auto A = golden.tensor<R, 1, Dev>("in.A");
  const bool per_channel = golden.has("in.D") && golden.rank("in.D") == 2;
  const auto D = per_channel ? Tensor<R, 1, Dev>() : golden.optional<R, 1, Dev>("in.D");
  const auto D_per_channel = per_channel ? golden.tensor<R, 2, Dev>("in.D") : Tensor<R, 2, Dev>();
  const auto norm_weight = golden.optional<R, 1, Dev>("in.rmsnorm_weight");
  const auto out_weight = golden.optional<T, 2, Dev>("in.outproj_weight");
  const auto out_bias = golden.optional<R, 1, Dev>("in.outproj_bias");
  const auto initial_state = golden.optional<R, 4, Dev>("in.initial_states");

  // Sizes, and the slices [z0, x0, z, x, B, C, dt].
  const Index batch = zxbcdt.extent(0), length = zxbcdt.extent(1), nheads = A.extent(0);
  const Index ngroups = golden.integer("ngroups", 1);
  const Index d_nonssm = golden.integer("d_nonssm", 0);
  const Index channels = conv_weight.extent(0), width = zxbcdt.extent(2);
  const Index d_ssm = width - nheads - 2 * d_nonssm - channels;  // z has as many channels as x
  const Index headdim = d_ssm / nheads, d_state = (channels - d_ssm) / (2 * ngroups);
  require(d_ssm == headdim * nheads && channels == d_ssm + 2 * ngroups * d_state, "in.zxbcdt ", zxbcdt.extents(),
          " does not fit conv1d_weight ", conv_weight.extents(), " and A ", A.extents());
  golden.expect("headdim", headdim);
  golden.expect("rmsnorm", static_cast<bool>(norm_weight));
  if (golden.given("D_kind")) golden.expect("D_kind", per_channel ? "per_channel" : "per_head");
  golden.expect("seq_idx", golden.has("in.seq_idx"));
  const auto dt_limit = golden.numbers("dt_limit", {0.0, HUGE_VAL});
  const Index at_x0 = d_nonssm, at_z = 2 * d_nonssm, at_x = at_z + d_ssm, at_dt = at_x + channels;
  const Extents<4> heads{batch, length, nheads, headdim}, groups{batch, length, ngroups, d_state};
  const Index at_B = d_ssm, at_C = d_ssm + ngroups * d_state;

  // Forward.
  const causal_conv1d::Inputs<T, Dev> conv_in{
      .x = zxbcdt.template slice<2>(at_x, at_dt), .weight = conv_weight, .bias = conv_bias};
  const auto conv = causal_conv1d::forward(
      conv_in,
      {.activation = silu_activation(golden) ? causal_conv1d::Activation::silu : causal_conv1d::Activation::none});
  const auto z = zxbcdt.template slice<2>(at_z, at_x);
  ssd::Inputs<T, Dev> ssd_in{.x = conv.out.template slice<2>(0, at_B).reshape(heads),
                             .dt = zxbcdt.template slice<2>(at_dt, width),
                             .A = A,
                             .B = conv.out.template slice<2>(at_B, at_C).reshape(groups),
                             .C = conv.out.template slice<2>(at_C, channels).reshape(groups),
                             .D = D,
                             .D_per_channel = D_per_channel,
                             .dt_bias = dt_bias,
                             .initial_state = initial_state};
  if (!norm_weight) ssd_in.z = z.reshape(heads);
  const auto scan = ssd::forward(ssd_in, {.chunk_size = golden.integer("chunk_size", 256),
                                          .dt_softplus = true,
                                          .dt_min = dt_limit[0],
                                          .dt_max = dt_limit[1]});
  const auto y = scan.out.reshape(Extents{batch, length, d_ssm});

  const Index d_out = d_nonssm + d_ssm;
  Tensor<T, 3, Dev> joined({batch, length, d_out});
  const swiglu::Inputs<T, Dev> gated{.x = zxbcdt.template slice<2>(at_x0, at_z),
                                     .z = zxbcdt.template slice<2>(0, at_x0)};
  if (d_nonssm > 0) swiglu::forward(gated, joined.template slice<2>(0, d_nonssm));
  const gated_rms_norm::Options norm_options{.eps = golden.number("rmsnorm_eps", 1e-6),
                                             .group_size = d_ssm / ngroups,
                                             .norm_before_gate = golden.flag("norm_before_gate", true)};
  gated_rms_norm::Saved<T, Dev> norm_saved;
  const auto norm_inputs = [&] { return gated_rms_norm::Inputs<T, Dev>{.x = y, .weight = norm_weight, .z = z}; };
  if (norm_weight) {
    auto norm = gated_rms_norm::forward(norm_inputs(), norm_options);
    copy(norm.out, joined.template slice<2>(d_nonssm, d_out));
    norm_saved = std::move(norm.saved);
  } else {
    copy(y, joined.template slice<2>(d_nonssm, d_out));
  }
  const Index rows = batch * length;
  const auto linear_inputs = [&] {
    return linear::Inputs<T, Dev>{.x = joined.reshape(Extents{rows, d_out}), .weight = out_weight, .bias = out_bias};
  };
  if (out_weight) {
    const auto out = linear::forward(linear_inputs());
    golden.check("out.out", out.reshape(Extents{batch, length, out.extent(1)}));
  } else {
    golden.check("out.out", joined);
  }

  // Backward.
  if (!golden.has("gout.out")) return;
  const auto dout = golden.tensor<T, 3, Dev>("gout.out");
  Tensor<T, 3, Dev> djoined = dout;
  if (out_weight) {
    auto d = linear::backward(linear_inputs(), dout.reshape(Extents{rows, dout.extent(2)}));
    golden.gradient("in.outproj_weight", d.dweight);
    golden.gradient("in.outproj_bias", d.dbias);
    djoined = dense(d.dx.reshape(joined.extents()));
  }
  Tensor<T, 3, Dev> dzxbcdt(zxbcdt.extents());
  if (d_nonssm > 0)
    swiglu::backward(gated, std::as_const(djoined).template slice<2>(0, d_nonssm),
                     {.dx = dzxbcdt.template slice<2>(at_x0, at_z), .dz = dzxbcdt.template slice<2>(0, at_x0)});
  auto dy = dense(djoined.template slice<2>(d_nonssm, d_out));
  if (norm_weight) {
    auto d = gated_rms_norm::backward(norm_inputs(), norm_saved, {.dout = dy});
    golden.gradient("in.rmsnorm_weight", d.dweight);
    copy(d.dz, dzxbcdt.template slice<2>(at_z, at_x));
    dy = std::move(d.dx);
  }
  const auto d_scan = ssd::backward(ssd_in, scan.saved, {.dout = dy.reshape(heads)});
  if (!norm_weight) copy(d_scan.dz.reshape(Extents{batch, length, d_ssm}), dzxbcdt.template slice<2>(at_z, at_x));
  copy(d_scan.ddt, dzxbcdt.template slice<2>(at_dt, width));
  golden.gradient("in.A", d_scan.dA);
  per_channel ? golden.gradient("in.D", d_scan.dD_per_channel) : golden.gradient("in.D", d_scan.dD);
  golden.gradient("in.dt_bias", d_scan.ddt_bias);
  golden.gradient("in.initial_states", d_scan.dinitial_state);

  Tensor<T, 3, Dev> dconv({batch, length, channels});
  copy(d_scan.dx.reshape(Extents{batch, length, d_ssm}), dconv.template slice<2>(0, at_B));
  copy(d_scan.dB.reshape(Extents{batch, length, ngroups * d_state}), dconv.template slice<2>(at_B, at_C));
  copy(d_scan.dC.reshape(Extents{batch, length, ngroups * d_state}), dconv.template slice<2>(at_C, channels));
  const auto d_conv = causal_conv1d::backward(conv_in, conv.saved, {.dout = dconv});
  copy(d_conv.dx, dzxbcdt.template slice<2>(at_x, at_dt));
  golden.gradient("in.conv1d_weight", d_conv.dweight);
  golden.gradient("in.conv1d_bias", d_conv.dbias);
  golden.gradient("in.zxbcdt", dzxbcdt);
}

const Register registered("mamba_split_conv1d_scan",
                          []<class T, class Dev>(Case& golden) { mamba_split<T, Dev>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
