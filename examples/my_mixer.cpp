// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// A mixer of your own in a language model: forty lines, then it stands in any layer, beside the library's mixers, and
// makes a differential mixer too.

#include <cmath>
#include <diffmamba/diffmamba.hpp>
#include <iostream>

namespace dm = diffmamba;

/// A leaky average: h_t = a h_{t-1} + (1 - a) u_t with u = in_proj(x) and a decay a = sigmoid(decay) for each channel.
struct LeakyAverage : dm::Module<LeakyAverage> {
  using value_type = float;
  using device_type = dm::cpu;
  using Tensor = dm::Tensor<float, 3>;  // (batch, length, d_model)
  using View = dm::View<const float, 3>;
  struct Options {
    dm::Required<dm::Index> d_model;
  };
  struct Saved {  // what backward needs
    Tensor x, u, h;
  };
  using State = dm::Tensor<float, 2>;  // (batch, d_model), what decoding carries along

  static constexpr std::string_view name() { return "leaky_average"; }
  explicit LeakyAverage(const Options& o)
      : in_proj(o.d_model, o.d_model), decay(dm::Extents<1>{o.d_model.get()}, dm::Decay::no) {}
  void initialize(dm::Philox random, const dm::Initialization& how = {}) {
    in_proj.initialize(random.child(0), how);
    dm::fill_normal(decay.value(), random.child(1), 1.0, 1.0);
  }
  template <class Self, class F>
  static void parameters(Self& self, F&& f) {  // the names in checkpoints
    self.in_proj.visit(dm::prefixed("in_proj.", f));
    f("decay", self.decay);
  }

  Tensor average(const Tensor& u, State& state) const {
    Tensor h(u.extents());
    const auto w = decay.value();
    for (dm::Index b = 0; b < u.extent(0); ++b)
      for (dm::Index t = 0; t < u.extent(1); ++t)
        for (dm::Index c = 0; c < u.extent(2); ++c) {
          const float a = dm::sigmoid(w(c));
          h(b, t, c) = state(b, c) = a * state(b, c) + (1 - a) * u(b, t, c);
        }
    return h;
  }
  State make_state(dm::Index batch) const { return State({batch, decay.size()}); }
  Tensor prefill(const View& x, State& state) const { return average(in_proj.forward(x), state); }
  Tensor forward(Tensor x, Saved& saved) const {
    saved = {.x = std::move(x), .u = {}, .h = {}};
    saved.u = in_proj.forward(saved.x);
    State state = make_state(saved.x.extent(0));
    saved.h = average(saved.u, state);
    return saved.h;
  }
  /// dh_t = dout_t + a dh_{t+1};  du = (1 - a) dh;  da = sum of dh_t (h_{t-1} - u_t)
  Tensor backward(const View& dout, Saved& saved) {
    Tensor du(saved.u.extents());
    const auto w = decay.value(), dw = decay.gradient();
    for (dm::Index b = 0; b < du.extent(0); ++b)
      for (dm::Index c = 0; c < du.extent(2); ++c) {
        const float a = dm::sigmoid(w(c));
        float dh = 0, da = 0;
        for (dm::Index t = du.extent(1) - 1; t >= 0; --t) {
          dh = dout(b, t, c) + a * dh;
          du(b, t, c) = (1 - a) * dh;
          da += dh * ((t > 0 ? saved.h(b, t - 1, c) : 0.0f) - saved.u(b, t, c));
        }
        dw(c) += da * dm::sigmoid_derivative(w(c));
      }
    return in_proj.backward(saved.x, du);
  }

  dm::Linear<float> in_proj;
  dm::Parameter<float, 1> decay;
};

int main() {
  using Model =
      dm::LanguageModel<dm::cpu, float, float, dm::Mamba2<float>, LeakyAverage, dm::Differential<LeakyAverage>>;
  Model model({.d_model = 32,
               .vocab_size = 8,
               .layers = {{"mamba2", {{"headdim", 16.0}, {"d_state", 8.0}}}, "leaky_average", "diff_leaky_average"}});
  dm::initialize(model, dm::Philox{1});

  // A sequence that must be remembered: 0 1 2 3 3 2 1 0 0 1 2 3 ...
  dm::Tensor<std::int32_t, 2> tokens({4, 33});
  for (dm::Index b = 0; b < 4; ++b)
    for (dm::Index t = 0; t < 33; ++t) {
      const auto phase = static_cast<std::int32_t>((b + t) % 8);
      tokens(b, t) = phase < 4 ? phase : 7 - phase;
    }
  const auto inputs = dm::to_tensor(tokens.slice<1>(0, 32)), targets = dm::to_tensor(tokens.slice<1>(1, 33));
  double first = 0, last = 0;
  for (int step = 0; step < 100; ++step) {
    model.zero_gradients();
    last = model.forward_backward(inputs, targets);
    if (step == 0) first = last;
    const auto values = model.flat().values(), gradients = model.flat().gradients();
    for (dm::Index i = 0; i < values.size(); ++i) values(i) -= 0.5f * gradients(i);  // plain gradient descent
  }
  std::cout << model.parameter_count() << " parameters, loss " << first << " -> " << last << "\n";
  return last < 0.5 * first ? 0 : 1;
}
