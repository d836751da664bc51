// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>       // std::string
#include <string_view>  // std::string_view
#include <type_traits>  // std::is_same_v

#include "conformance/runner.hpp"
#include "diffmamba/nn/mixer.hpp"
#include "diffmamba/ops/differential_combine/lambda.hpp"  // lambda_init

// What the adapters of modules have in common: options from attributes, parameters and gradients by official name.
namespace diffmamba::conformance {

/// Attributes of a module are its constructor's arguments, and the library's options have the same names: every
/// attribute that names an option sets it.
template <class Options>
void read_options(Case& golden, Options& options) {
  visit_options(options, [&](std::string_view option, auto& field) {
    using Field = std::remove_cvref_t<decltype(field)>;
    const std::string key(option);
    if (!golden.given(key)) return;
    if constexpr (std::is_same_v<Field, bool>)
      field = golden.flag(key, field);
    else if constexpr (std::is_integral_v<Field>)
      field = golden.integer(key, field);
    else if constexpr (std::is_floating_point_v<Field>)
      field = golden.number(key, field);
    else if constexpr (std::is_same_v<Field, std::array<double, 2>>) {
      const auto values = golden.numbers(key, {field[0], field[1]});
      field = {values[0], values[1]};
    } else {
      field = parse_enum<Field>(golden.text(key, ""));
    }
  });
}

/// The official name of a parameter that the library calls otherwise.
using Rename = std::string (*)(std::string_view);
inline std::string same_name(std::string_view name) {
  return std::string(name);
}

template <class ModuleType>
void load_parameters(Case& golden, ModuleType& module, Rename official = same_name) {
  module.visit([&](std::string_view name, auto& parameter) {
    using Given = std::remove_cvref_t<decltype(parameter)>;
    const std::string key = "param." + official(name);
    if (parameter.memory().shadow_dtype())  // operators read it rounded
      parameter.copy_from(golden.tensor<bfloat16, Given::rank>(key));
    else
      parameter.copy_from(golden.tensor<typename Given::value_type, Given::rank>(key));
  });
}

/// A parameter without a golden gradient did not take part: its gradient must be zero.
template <class ModuleType>
void check_gradients(Case& golden, const ModuleType& module, Rename official = same_name) {
  module.visit([&](std::string_view name, auto& parameter) {
    const auto gradient = parameter.gradient_to_tensor();
    const std::string key = "grad.param." + official(name);
    if (golden.has(key)) return golden.check(key, gradient);
    for (const auto value : gradient)
      if (value != 0) return golden.mistake(key, "is not in the file, but computed was a gradient that is not zero");
  });
}

/// x -> out and back. in.x, out.out, gout.out, all parameters.
template <class M>
void run_mixer(Case& golden, M& mixer) {
  using T = typename M::value_type;
  using D = typename M::device_type;
  load_parameters(golden, mixer);
  const auto x = golden.tensor<T, 3, D>("in.x");
  typename M::Saved saved;
  golden.check("out.out", mixer.forward(x, saved));
  if (!golden.has("gout.out")) return;
  const auto dout = golden.tensor<T, 3, D>("gout.out");
  golden.gradient("in.x", mixer.backward(dout.view(), saved));
  check_gradients(golden, mixer);
}

/// A prefill of some tokens, then single steps; the states after the prefill and after every step.
template <class M>
void run_decoding(Case& golden, M& mixer) {
  using T = typename M::value_type;
  using D = typename M::device_type;
  load_parameters(golden, mixer);
  const auto x = golden.tensor<T, 3, D>("in.x");
  const Index batch = x.extent(0), prompt = golden.integer("prefill_len", 0), steps = golden.integer("steps", 0);
  require(prompt + steps == x.extent(1), "in.x has ", x.extent(1), " tokens, the attributes say ", prompt, " + ",
          steps);
  golden.expect("module", M::name());

  auto state = mixer.make_state(batch);
  if (prompt > 0) golden.check("out.prefill", mixer.prefill(x.template slice<1>(0, prompt), state));
  golden.check("out.prefill_conv_state", state.conv_state);
  golden.check("out.prefill_ssm_state", state.ssm_state);

  // Whole histories, (steps, ...state).
  const auto history = [&]<class E, int rank>(const Tensor<E, rank, D>& one) {
    Extents<rank + 1> extents;
    extents[0] = steps;
    for (int axis = 0; axis < rank; ++axis) extents[axis + 1] = one.extent(axis);
    return Tensor<E, rank + 1>(extents);
  };
  auto outs = Tensor<T, 3>({batch, steps, x.extent(2)});
  auto conv_states = history(state.conv_state);
  auto ssm_states = history(state.ssm_state);
  for (Index t = 0; t < steps; ++t) {
    const auto token = dense(x.template select<1>(prompt + t));
    copy(step(mixer, View<const T, 2, D>(token.view()), state), outs.template select<1>(t));
    copy(state.conv_state, conv_states.template select<0>(t));
    copy(state.ssm_state, ssm_states.template select<0>(t));
  }
  golden.check("out.steps", outs);
  golden.check("out.steps_conv_state", conv_states);
  golden.check("out.steps_ssm_state", ssm_states);
}

/// The exponent's index of lambda_init, from the published i_layer, which counts from 1.
inline Index read_depth(Case& golden) {
  const Index depth = golden.integer("i_layer", 1) - 1;
  golden.expect_number("lambda_init", lambda_init(depth));
  return depth;
}

}  // namespace diffmamba::conformance
