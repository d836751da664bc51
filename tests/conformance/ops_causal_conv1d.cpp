// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"

namespace diffmamba::conformance {
namespace {

causal_conv1d::Options options(Case& golden) {
  return {.activation = silu_activation(golden) ? causal_conv1d::Activation::silu : causal_conv1d::Activation::none};
}

template <class T, class D>
void conv1d(Case& golden) {
  using A = accumulate_t<T>;
  const auto x = channel_last(golden.tensor<T, 3, D>("in.x"));
  const auto weight = golden.tensor<A, 2, D>("in.weight");
  const auto bias = golden.optional<A, 1, D>("in.bias");
  const auto initial_state = golden.optional<A, 3, D>("in.initial_states");
  golden.expect("return_final_states", golden.has("out.final_states"));
  golden.expect("seq_idx", golden.has("in.seq_idx"));

  const causal_conv1d::Inputs<T, D> in{.x = x, .weight = weight, .bias = bias, .initial_state = initial_state};
  const auto [out, final_state, saved] = causal_conv1d::forward(in, options(golden));
  golden.check("out.out", channel_first(out));
  if (golden.has("out.final_states")) golden.check("out.final_states", final_state);

  const auto dout = channel_last(golden.optional<T, 3, D>("gout.out"));
  const auto dfinal_state = golden.optional<A, 3, D>("gout.final_states");
  if (!dout && !dfinal_state) return;
  const auto d = causal_conv1d::backward(in, saved, {.dout = dout, .dfinal_state = dfinal_state});
  golden.gradient("in.x", channel_first(d.dx));
  golden.gradient("in.weight", d.dweight);
  golden.gradient("in.bias", d.dbias);
  golden.gradient("in.initial_states", d.dinitial_state);
}

template <class T, class D>
void update(Case& golden) {
  using A = accumulate_t<T>;
  // x: ([steps,] batch, channels[, tokens])
  const Index steps = golden.integer("steps", 0);
  const auto& shape = golden.shape("in.x");
  const std::size_t first = steps > 0 ? 1 : 0;
  require(shape.size() == first + 2 || shape.size() == first + 3, "in.x has ", shape.size(), " axes");
  if (steps > 0) require(shape[0] == steps, "in.x has ", shape[0], " steps, the attribute says ", steps);
  const Index batch = shape[first], channels = shape[first + 1];
  const bool several = shape.size() == first + 3;
  const Index tokens = several ? shape[first + 2] : 1, calls = std::max<Index>(steps, 1);
  golden.expect("multi_token", several);
  golden.expect("cache_seqlens", golden.has("in.cache_seqlens"));
  golden.expect("conv_state_indices", golden.has("in.conv_state_indices"));

  const auto x = golden.tensor<T, 4, D>("in.x", {calls, batch, channels, tokens});
  const auto weight = golden.tensor<A, 2, D>("in.weight");
  const auto bias = golden.optional<A, 1, D>("in.bias");
  auto conv_state = golden.tensor<A, 3, D>("in.conv_state");
  auto cache_seqlens = golden.optional<Index, 1>("in.cache_seqlens");
  const auto conv_state_indices = golden.optional<Index, 1, D>("in.conv_state_indices");

  Tensor<T, 4, D> out({calls, batch, channels, tokens});
  for (Index call = 0; call < calls; ++call) {
    const auto seen_now = on<D>(cache_seqlens);
    const auto x_now = dense(x.template select<0>(call).template permute<0, 2, 1>());
    const auto y = causal_conv1d::step(causal_conv1d::StepInputs<T, D>{.x = x_now,
                                                                       .weight = weight,
                                                                       .bias = bias,
                                                                       .cache_seqlens = seen_now,
                                                                       .conv_state_indices = conv_state_indices},
                                       conv_state, options(golden));
    copy(channel_first(y), out.template select<0>(call));
    for (Index& seen : cache_seqlens) seen += tokens;
  }
  golden.check_elements("out.out", out);
  golden.check("out.conv_state", conv_state);
}

const Register forward_registered("causal_conv1d", []<class T, class D>(Case& golden) { conv1d<T, D>(golden); });
const Register update_registered("causal_conv1d_update", []<class T, class D>(Case& golden) { update<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
