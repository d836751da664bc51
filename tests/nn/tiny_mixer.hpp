// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/projected_mixer.hpp"

/// The smallest mixer with an axis of paths and everything else that one may have: two roles, a state, biases. It
/// compiles in a fraction of the time that Mamba takes, which the many variants of a differential mixer are grateful
/// for.
namespace diffmamba::test {

struct TinyOptions {
  Required<Index> d_model;
  Index expand = 2;  // width of the second role, in d_model; the first role is 2 wide
  Index d_state = 3;
  bool bias = false;
};

/// u = x W^T; h_t = h_{t-1} / 2 + u_t
template <class T, Device DeviceType = cpu>
class TinyInner {
 public:
  using value_type = T;
  using device_type = DeviceType;
  using Options = TinyOptions;
  struct Saved {
    bool ran = false;
  };
  struct State {
    Tensor<T, 2> h;  // (batch, paths * width)
  };

  TinyInner(const Options& o, Index paths)
      : options_(o), paths_(paths), weight_(Extents{paths * (2 + o.expand * o.d_model), o.d_model.get()}) {}
  std::array<Index, 2> roles() const { return {2, options_.expand * options_.d_model}; }
  Index d_model() const { return options_.d_model; }
  bool bias() const { return options_.bias; }

  Tensor<T, 3> forward(const View<const T, 3>& x, Saved& saved) const {
    saved.ran = true;
    return forward(x);
  }
  Tensor<T, 3> forward(const View<const T, 3>& x, State* state = nullptr) const {
    auto h = Tensor<T, 3>(Extents{x.extent(0), x.extent(1), weight_.extent(0)});
    const Rows<T> rows(x);
    linear::forward(linear::Inputs<T>{.x = rows, .weight = weight_.value()}, as_rows(h));
    for (Index b = 0; b < h.extent(0); ++b)
      for (Index c = 0; c < h.extent(2); ++c) {
        T last = state != nullptr ? state->h(b, c) : T(0);
        for (Index t = 0; t < h.extent(1); ++t) last = h(b, t, c) += last / 2;
        if (state != nullptr) state->h(b, c) = last;
      }
    return h;
  }
  Tensor<T, 3> backward(const View<const T, 3>& x, const View<T, 3>& dgated, Saved& saved) {
    require(saved.ran, "tiny: backward without a forward before it");
    for (Index b = 0; b < dgated.extent(0); ++b)
      for (Index c = 0; c < dgated.extent(2); ++c)
        for (Index t = dgated.extent(1) - 2; t >= 0; --t) dgated(b, t, c) += dgated(b, t + 1, c) / 2;
    Tensor<T, 3> dx(x.extents());
    linear::backward(linear::Inputs<T>{.x = as_rows(x), .weight = std::as_const(weight_).value()},
                     View<const T, 2>(as_rows(dgated)), {.dx = as_rows(dx), .dweight = weight_.gradient()},
                     GradientMode::add);
    return dx;
  }
  State make_state(Index batch) const { return {Tensor<T, 2>({batch, weight_.extent(0)})}; }
  void initialize(Philox random, const Initialization& = {}) { fill_linear(weight_.value(), d_model(), random); }
  template <class Self, class F>
  static void parameters(Self& self, Index path, F&& f) {
    const auto roles = self.roles();
    auto part = path_of(self.weight_, path, self.paths_, Extents{roles[0] + roles[1], self.d_model()}, roles);
    f("in_proj.weight", part);
  }

 private:
  Options options_;
  Index paths_;
  Parameter<T, 2> weight_;  // stacked role by role
};

template <class T, Device DeviceType = cpu>
class Tiny : public ProjectedMixer<TinyInner<T, DeviceType>> {
 public:
  using ProjectedMixer<TinyInner<T, DeviceType>>::ProjectedMixer;
  static constexpr std::string_view name() { return "tiny"; }
};

/// The same with its axis of paths hidden: what a mixer of a user's own may look like. It has no step and no inference
/// either, which are made of prefill then.
template <class T, Device DeviceType = cpu>
struct Plain : Module<Plain<T, DeviceType>> {
  using value_type = T;
  using device_type = DeviceType;
  using Options = TinyOptions;
  using Saved = typename Tiny<T>::Saved;
  using State = typename Tiny<T>::State;
  static constexpr std::string_view name() { return "plain"; }
  explicit Plain(const Options& options) : tiny(options) {}
  void initialize(Philox random, const Initialization& how = {}) { tiny.initialize(random, how); }
  Tensor<T, 3> forward(Tensor<T, 3> x, Saved& saved) const { return tiny.forward(std::move(x), saved); }
  Tensor<T, 3> backward(const View<const T, 3>& dout, Saved& saved) { return tiny.backward(dout, saved); }
  State make_state(Index batch) const { return tiny.make_state(batch); }
  Tensor<T, 3> prefill(const View<const T, 3>& x, State& state) const { return tiny.prefill(x, state); }
  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    self.tiny.visit(f);
  }
  Tiny<T> tiny;
};

static_assert(MixerOfPaths<Tiny<double>>);
static_assert(Mixer<Plain<double>> && !MixerOfPaths<Plain<double>>);

}  // namespace diffmamba::test
