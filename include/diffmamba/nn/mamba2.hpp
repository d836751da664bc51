// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/mamba2_core.hpp"
#include "diffmamba/nn/projected_mixer.hpp"

namespace diffmamba {

/// Mamba-2 without its output projection, for any number of paths: the weights and what is computed with them.
template <class T, Device DeviceType = cpu>
class Mamba2Inner {
  using D = DeviceType;
  using R = accumulate_t<T>;
  using Core = Mamba2Core<T, D>;

 public:
  using value_type = T;
  using device_type = DeviceType;
  using Options = Mamba2Options;
  using Saved = typename Core::Saved;
  using State = typename Core::State;

  explicit Mamba2Inner(const Options& options, Index paths = 1) : options_(options), core_(options, paths) {
    const auto& s = core_.sizes();
    in_proj_weight_ = Parameter<T, 2, D>(Extents{paths * s.d_in_proj(), s.d_model});
    if (options.bias) in_proj_bias_ = Parameter<R, 1, D>(Extents<1>{paths * s.d_in_proj()}, Decay::no);
    conv_weight_ = Parameter<R, 2, D>(Extents{paths * s.conv_dim(), s.d_conv});
    if (options.conv_bias) conv_bias_ = Parameter<R, 1, D>(Extents<1>{paths * s.conv_dim()}, Decay::no);
    dt_bias_ = Parameter<R, 1, D>(Extents<1>{paths * s.nheads}, Decay::no);
    A_log_ = Parameter<R, 1, D>(Extents<1>{paths * s.nheads}, Decay::no);
    D_ = Parameter<R, 1, D>(Extents<1>{paths * (options.D_has_hdim ? s.d_ssm : s.nheads)}, Decay::no);
    if (options.rmsnorm) norm_weight_ = Parameter<R, 1, D>(Extents<1>{paths * s.d_ssm}, Decay::no);
    if (options.learnable_init_states)
      init_states_ = Parameter<R, 3, D>(Extents{paths * s.nheads, s.headdim, s.d_state}, Decay::no);
    for (auto* parameter : {&in_proj_bias_, &dt_bias_, &D_}) parameter->set_written_whole();
    in_proj_weight_.set_written_whole();
  }

  std::array<Index, 2> roles() const { return core_.sizes().gated_roles(); }
  Index d_model() const { return core_.sizes().d_model; }
  bool bias() const { return options_.bias; }
  const Options& options() const { return options_; }
  void set_recompute_convolution(bool recompute) { core_.set_recompute_convolution(recompute); }

  Tensor<T, 3, D> forward(const View<const T, 3, D>& x, Saved& saved) const {
    const auto w = weights(*this);
    return core_.forward(w, core_.project(w, x), saved);
  }
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x, State* state = nullptr) const {
    const auto w = weights(*this);
    return core_.forward(w, core_.project(w, x), state);
  }
  bool rebuilds_gated() const { return Core::rebuilds_gated(weights(*this)); }
  Tensor<T, 3, D> backward(const View<const T, 3, D>& x, const View<T, 3, D>& dgated, Saved& saved) {
    return backward(x, dgated, saved, nullptr);
  }
  template <class Use>
  Tensor<T, 3, D> backward(const View<const T, 3, D>& x, const View<T, 3, D>& dgated, Saved& saved, Use&& use) {
    auto dx = backward_to_input(dgated, saved, use);
    backward_of_parameters(x, saved);
    return dx;
  }
  template <class Use>
  Tensor<T, 3, D> backward_to_input(const View<T, 3, D>& dgated, Saved& saved, Use&& use) {
    const auto w = weights(std::as_const(*this));
    const GradientMode scan = gradient_mode(dt_bias_, D_);
    saved.dzxbcdt = core_.backward(w, dgated, saved, scan_gradients(), scan, use);
    auto dx = Tensor<T, 3, D>::uninitialized(Extents{dgated.extent(0), dgated.extent(1), d_model()});
    linear::backward(linear::Inputs<T, D>{.x = as_rows(std::as_const(dx)), .weight = w.in_proj_weight},
                     as_rows(std::as_const(saved.dzxbcdt)), linear::GradientViews<T, D>{.dx = as_rows(dx)});
    return dx;
  }
  void backward_of_parameters(const View<const T, 3, D>& x, Saved& saved) {
    const GradientMode mode = gradient_mode(in_proj_weight_, in_proj_bias_);
    const auto w = weights(std::as_const(*this));
    linear::backward(linear::Inputs<T, D>{.x = as_rows(x), .weight = w.in_proj_weight, .bias = w.in_proj_bias},
                     as_rows(std::as_const(saved.dzxbcdt)),
                     {.dweight = in_proj_weight_.gradient(), .dbias = in_proj_bias_.gradient()}, mode);
    saved.dzxbcdt = {};
  }
  Tensor<T, 3, D> decode(const normed_linear::Source<T, D>& source, const View<const T, 2, D>& out_weight,
                         const View<const R, 1, D>& out_bias, State& state) const {
    return core_.decode(weights(*this), source, out_weight, out_bias, state);
  }
  State make_state(Index batch) const { return core_.make_state(weights(*this), batch); }

  /// As the official module: torch's defaults for the projections and the convolution, A uniform in A_init_range, dt
  /// log-uniform in [dt_min, dt_max], D and the norm 1, initial states 0. Every path draws by itself.
  void initialize(Philox random, const Initialization& how = {}) {
    const auto& s = core_.sizes();
    for (Index path = 0; path < s.paths; ++path) {
      const Philox draw = random.child(0).child(static_cast<std::uint64_t>(path));
      parameters(*this, path, [&](std::string_view name, auto& parameter) {
        using P = std::remove_cvref_t<decltype(parameter)>;
        Tensor<R, P::rank> value(parameter.extents());
        if (name == "in_proj.weight") {
          fill_linear(value, s.d_model, draw.child(0));
        } else if (name == "in_proj.bias") {
          if (!how.zero_biases) fill_linear(value, s.d_model, draw.child(1));
        } else if (name == "conv1d.weight") {
          if (options_.conv_init > 0)
            fill_uniform(value, draw.child(2), -options_.conv_init, options_.conv_init);
          else
            fill_linear(value, s.d_conv, draw.child(2));
        } else if (name == "conv1d.bias") {
          fill_linear(value, s.d_conv, draw.child(3));
        } else if (name == "dt_bias") {
          if constexpr (P::rank == 1)
            fill_dt_bias(value.view(), draw.child(4), options_.dt_min, options_.dt_max, options_.dt_init_floor);
        } else if (name == "A_log") {
          fill_uniform(value, draw.child(5), options_.A_init_range[0], options_.A_init_range[1]);
          for (R& a : value) a = std::log(a);
        } else if (name != "init_states") {  // D, norm.weight
          value.fill(R(1));
        }
        parameter.copy_from(value);
      });
    }
  }

  /// The parameters of one path under their official names.
  template <class Self, class F>
  static void parameters(Self& self, Index path, F&& f) {
    const auto& s = self.core_.sizes();
    const auto give = [&](std::string_view name, auto part) { f(name, part); };
    give("in_proj.weight",
         path_of(self.in_proj_weight_, path, s.paths, Extents{s.d_in_proj(), s.d_model}, s.in_proj_roles()));
    if (self.in_proj_bias_)
      give("in_proj.bias", path_of(self.in_proj_bias_, path, s.paths, Extents<1>{s.d_in_proj()}, s.in_proj_roles()));
    give("conv1d.weight",
         path_of(self.conv_weight_, path, s.paths, Extents{s.conv_dim(), Index{1}, s.d_conv}, s.conv_roles()));
    if (self.conv_bias_)
      give("conv1d.bias", path_of(self.conv_bias_, path, s.paths, Extents<1>{s.conv_dim()}, s.conv_roles()));
    give("dt_bias", path_of(self.dt_bias_, path, Extents<1>{s.nheads}));
    give("A_log", path_of(self.A_log_, path, Extents<1>{s.nheads}));
    give("D", path_of(self.D_, path, Extents<1>{self.D_.size() / s.paths}));
    if (self.norm_weight_) give("norm.weight", path_of(self.norm_weight_, path, Extents<1>{s.d_ssm}));
    if (self.init_states_)
      give("init_states", path_of(self.init_states_, path, Extents{s.nheads, s.headdim, s.d_state}));
  }

 private:
  static typename Core::Weights weights(const Mamba2Inner& m) {
    return {.in_proj_weight = m.in_proj_weight_.value(),
            .in_proj_bias = m.in_proj_bias_.value(),
            .conv_weight = m.conv_weight_.value(),
            .conv_bias = m.conv_bias_.value(),
            .dt_bias = m.dt_bias_.value(),
            .A_log = m.A_log_.value(),
            .D = m.D_.value(),
            .norm_weight = m.norm_weight_.value(),
            .init_states = m.init_states_.value()};
  }
  typename Core::WeightGradients scan_gradients() {  // all but in_proj's
    return {.in_proj_weight = {},
            .conv_weight = conv_weight_.gradient(),
            .conv_bias = conv_bias_.gradient(),
            .dt_bias = dt_bias_.gradient(),
            .A_log = A_log_.gradient(),
            .D = D_.gradient(),
            .norm_weight = norm_weight_.gradient(),
            .init_states = init_states_.gradient()};
  }

  Options options_;
  Core core_;
  Parameter<T, 2, D> in_proj_weight_;  // (paths * d_in_proj, d_model), stacked role by role
  Parameter<R, 1, D> in_proj_bias_;
  Parameter<R, 2, D> conv_weight_;  // (paths * conv_dim, d_conv), stacked role by role
  Parameter<R, 1, D> conv_bias_;
  Parameter<R, 1, D> dt_bias_, A_log_, D_, norm_weight_;  // path after path
  Parameter<R, 3, D> init_states_;
};

/// Mamba-2 (arXiv 2405.21060), with everything that the official module Mamba2 and Mamba2Simple have.
///
///   dm::Mamba2<float> mixer({.d_model = 256, .d_state = 64});
///   dm::initialize(mixer, dm::Philox{1});
///   dm::Mamba2<float>::Saved saved;
///   auto y = mixer.forward(x, saved);                       // (batch, length, d_model)
///   auto dx = mixer.backward(dy, saved);                    // adds into the parameters' gradients
///   auto state = mixer.make_state(batch);
///   auto h = mixer.prefill(prompt, state), t = mixer.step(token, state);
///
/// Saved, in elements of T per token: d_model (the input, unless it is left to the caller, as blocks have it),
/// d_in_proj + conv_dim + d_ssm, and what the scan and the norm state; without the norm also what goes into out_proj.
template <class T, Device DeviceType = cpu>
class Mamba2 : public ProjectedMixer<Mamba2Inner<T, DeviceType>> {
 public:
  using ProjectedMixer<Mamba2Inner<T, DeviceType>>::ProjectedMixer;
  static constexpr std::string_view name() { return "mamba2"; }
};

}  // namespace diffmamba
