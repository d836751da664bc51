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

template <class T>
void conv1d(Case& golden) {
  const auto x = channel_last(golden.tensor<T, 3>("in.x"));
  const auto weight = golden.tensor<T, 2>("in.weight");
  const auto bias = golden.optional<T, 1>("in.bias");
  const auto initial_state = golden.optional<T, 3>("in.initial_states");
  golden.expect("return_final_states", golden.has("out.final_states"));
  golden.expect("seq_idx", golden.has("in.seq_idx"));

  const causal_conv1d::Inputs<T> in{.x = x, .weight = weight, .bias = bias, .initial_state = initial_state};
  const auto [out, final_state, saved] = causal_conv1d::forward(in, options(golden));
  golden.check("out.out", channel_first(out));
  if (golden.has("out.final_states")) golden.check("out.final_states", final_state);

  const auto dout = channel_last(golden.optional<T, 3>("gout.out"));
  const auto dfinal_state = golden.optional<T, 3>("gout.final_states");
  if (!dout && !dfinal_state) return;
  const auto d = causal_conv1d::backward(in, saved, {.dout = dout, .dfinal_state = dfinal_state});
  golden.gradient("in.x", channel_first(d.dx));
  golden.gradient("in.weight", d.dweight);
  golden.gradient("in.bias", d.dbias);
  golden.gradient("in.initial_states", d.dinitial_state);
}

template <class T>
void update(Case& golden) {
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

  const auto x = golden.tensor<T, 4>("in.x", {calls, batch, channels, tokens});
  const auto weight = golden.tensor<T, 2>("in.weight");
  const auto bias = golden.optional<T, 1>("in.bias");
  auto conv_state = golden.tensor<T, 3>("in.conv_state");
  auto cache_seqlens = golden.optional<Index, 1>("in.cache_seqlens");
  const auto conv_state_indices = golden.optional<Index, 1>("in.conv_state_indices");

  Tensor<T, 4> out({calls, batch, channels, tokens});
  for (Index call = 0; call < calls; ++call) {
    const auto x_now = to_tensor(x.template select<0>(call).template permute<0, 2, 1>());
    const Tensor<T, 3> y = causal_conv1d::step(causal_conv1d::StepInputs<T>{.x = x_now,
                                                                            .weight = weight,
                                                                            .bias = bias,
                                                                            .cache_seqlens = cache_seqlens,
                                                                            .conv_state_indices = conv_state_indices},
                                               conv_state, options(golden));
    copy(channel_first(y), out.template select<0>(call));
    for (Index& seen : cache_seqlens) seen += tokens;
  }
  golden.check_elements("out.out", out);
  golden.check("out.conv_state", conv_state);
}

const Register forward_registered("causal_conv1d", conv1d<double>, conv1d<float>);
const Register update_registered("causal_conv1d_update", update<double>, update<float>);

}  // namespace
}  // namespace diffmamba::conformance
