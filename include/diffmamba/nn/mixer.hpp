// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>     // std::copyable, std::same_as
#include <string_view>  // std::string_view

#include "diffmamba/nn/parameter.hpp"
#include "diffmamba/tensor/random.hpp"  // Philox

namespace diffmamba {

/// What a model knows about the place of a mixer when it initialises it.
struct Initialization {
  /// Factor of the weights that write into the residual stream (out_proj): 1 / sqrt(residual branches of the model), as
  /// GPT-2 and the official models do; 1 for a module that stands alone.
  double residual_scale = 1.0;
  /// Biases of in_proj, out_proj start at zero, as the official models have it; else uniform like torch's Linear.
  bool zero_biases = true;
};

/// What a training step computes twice to keep less in between: nothing; the convolution of mixers that have one, which
/// is cheap; or the whole mixer, of which then only the input is kept.
enum class Recompute { nothing, convolution, mixer };

/// What goes into a model where tokens mix: (batch, length, d_model) to the same shape. The library's own mixers
/// (Mamba, Mamba2, Differential<...>, DiffS6, ...) are made of nothing else, and a mixer of your own goes wherever they
/// go. Everything about one mixer is static; which mixer stands in which layer is read at run time by its name().
///
///   struct MyMixer : Module<MyMixer> {                     // Module: visit(f), from one static parameters(self, f)
///     using value_type = float;                            // float or double
///     using device_type = cpu;
///     struct Options { Required<Index> d_model; ... };     // designated initialisers, official defaults
///     struct Saved { ... };                                // what backward needs; a type, not a tape
///     struct State { ... };                                // what decoding carries along: a value, copyable
///     static constexpr std::string_view name();            // "my_mixer", what a configuration calls it
///
///     explicit MyMixer(const Options&);                    // checks; takes no memory for weights
///     void initialize(Philox, const Initialization& = {});
///     Tensor forward(Tensor x, Saved&) const;              // training: takes x, which backward needs
///     Tensor backward(View dout, Saved&);                  // dL/dx; adds into the gradients, uses up Saved
///     State make_state(Index batch) const;                 // of a sequence that has not begun
///     Tensor prefill(View x, State&) const;                // any number of tokens after those it has seen
///   };
///
/// Two more are used where they exist, else made from prefill: `forward(View x)` for inference without a state, and
/// `step(View<const T, 2> x, State&)` for one token of each sequence. `set_recompute_convolution(bool)`, where it
/// exists, makes Saved smaller from the next forward on. prefill over L tokens, L steps and any split into
/// pieces must agree with forward. A mixer whose computation has an axis of paths (nn/projected_mixer.hpp) makes a
/// differential mixer that runs both paths as one.
template <class M>
concept Mixer = requires(M& mixer, const M& constant, Tensor<typename M::value_type, 3, typename M::device_type> x,
                         View<const typename M::value_type, 3, typename M::device_type> view, typename M::Saved& saved,
                         typename M::State& state, const typename M::Options& options) {
  { M::name() } -> std::convertible_to<std::string_view>;
  requires std::copyable<typename M::State>;
  requires std::default_initializable<typename M::Saved>;
  M(options);
  mixer.initialize(Philox{}, Initialization{});
  { constant.forward(std::move(x), saved) } -> std::same_as<Tensor<typename M::value_type, 3, typename M::device_type>>;
  { mixer.backward(view, saved) } -> std::same_as<Tensor<typename M::value_type, 3, typename M::device_type>>;
  { constant.make_state(Index{}) } -> std::same_as<typename M::State>;
  { constant.prefill(view, state) } -> std::same_as<Tensor<typename M::value_type, 3, typename M::device_type>>;
  mixer.visit([](std::string_view, auto&) {});
  constant.visit([](std::string_view, auto&) {});
};

/// A mixer that needs its input again only at the end of its backward pass, for gradients of its parameters, may leave
/// it to the caller, who then need not keep it: a block writes it again from the residual stream.
///
///   Tensor forward_leaving_input(View x, Saved&) const;   // forward, of which Saved does not hold x
///   Tensor backward_to_input(View dout, Saved&);          // dL/dx
///   void backward_of_parameters(View x, Saved&);          // the gradients still missing; uses up Saved
template <class M>
concept LeavesInput = requires(M& mixer, const M& constant,
                               View<const typename M::value_type, 3, typename M::device_type> view,
                               typename M::Saved& saved) {
  constant.forward_leaving_input(view, saved);
  mixer.backward_to_input(view, saved);
  mixer.backward_of_parameters(view, saved);
};

/// The options of a mixer in layer `depth` (from 0) of a model: `M::options(d_model, depth)` where the mixer has that
/// (a differential mixer needs its depth), else the defaults.
template <class M>
typename M::Options mixer_options(Index d_model, Index depth) {
  if constexpr (requires { M::options(d_model, depth); })
    return M::options(d_model, depth);
  else
    return typename M::Options{.d_model = d_model};
}

/// Calls f(std::string_view name, auto& option) for every option of a mixer besides d_model and depth, as configuration
/// files and command lines name them: numbers, booleans, pairs (std::array<double, 2>) and the enumerations that
/// enum_names knows. Options without `static void fields(auto& options, auto&& f)` have none.
template <class Options, class F>
void visit_options(Options& options, F&& f) {
  using Plain = std::remove_const_t<Options>;
  if constexpr (requires { Plain::fields(options, f); }) Plain::fields(options, f);
}

/// The names of an enumeration's values in files, in their order.
template <class Enum>
struct EnumNames;
template <class Enum>
concept NamedEnum = requires {
  EnumNames<Enum>::values;
};

template <NamedEnum Enum>
constexpr std::string_view name_of(Enum value) {
  return EnumNames<Enum>::values[static_cast<std::size_t>(value)];
}
/// Throws Error naming what was expected.
template <NamedEnum Enum>
Enum parse_enum(std::string_view name) {
  std::string expected;
  for (std::size_t i = 0; i < EnumNames<Enum>::values.size(); ++i) {
    if (EnumNames<Enum>::values[i] == name) return static_cast<Enum>(i);
    expected += (i > 0 ? ", " : "") + std::string(EnumNames<Enum>::values[i]);
  }
  fail("\"", name, "\" is none of ", expected);
}

/// Passes the switch on to a part that has it.
template <class Part>
void set_recompute_convolution(Part& part, bool recompute) {
  if constexpr (requires { part.set_recompute_convolution(recompute); }) part.set_recompute_convolution(recompute);
}

/// Inference over whole sequences.
template <Mixer M>
auto infer(const M& mixer, const View<const typename M::value_type, 3, typename M::device_type>& x) {
  if constexpr (requires { mixer.forward(x); }) {
    return mixer.forward(x);
  } else {
    auto state = mixer.make_state(x.extent(0));
    return mixer.prefill(x, state);
  }
}

/// One token of each sequence: x (batch, d_model), advances the state in place.
template <Mixer M>
auto step(const M& mixer, const View<const typename M::value_type, 2, typename M::device_type>& x,
          typename M::State& state) {
  if constexpr (requires { mixer.step(x, state); }) {
    return mixer.step(x, state);
  } else {
    auto out = mixer.prefill(x.reshape(Extents{x.extent(0), Index{1}, x.extent(1)}), state);
    return to_tensor(out.reshape(Extents{x.extent(0), x.extent(1)}));
  }
}

/// Official initialisation of a mixer, block or model: dm::initialize(mixer, dm::Philox{1}).
template <class ModuleType>
void initialize(ModuleType& what, Philox random, const Initialization& how = {}) {
  what.initialize(random, how);
}

}  // namespace diffmamba
