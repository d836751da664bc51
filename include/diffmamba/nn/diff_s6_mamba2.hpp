// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/differential.hpp"  // LambdaParameters, Mamba2Core

namespace diffmamba {

/// Options of DiffS6Mamba2: those of Mamba-2 and of the subtraction.
struct DiffS6Mamba2Options {
  Mamba2Options mixer;
  Index depth = 0;  // of the layer, from 0
  Lambda lambda = Lambda::sigmoid_scalar;
  LambdaInit lambda_initialization = LambdaInit::official;
  double eps = 1e-5;

  template <class Self, class F>
  static void fields(Self& o, F&& f) {
    Mamba2Options::fields(o.mixer, f);
    f("lambda", o.lambda), f("lambda_initialization", o.lambda_initialization), f("subln_eps", o.eps);
  }
};

/// DiffS6Mamba2 of the Diff-Mamba repository: the subtraction inside a Mamba-2 block. Two input projections, A, D and
/// dt biases; one convolution filter, gated norm, initial state and output projection, which both paths share:
///
///   out = out_proj((1 - lambda_init) w * RMS(n1 - lambda n2)),   n_i = norm(y_i * silu(z_i)),
///   lambda = sigmoid(lambda_q1) + lambda_init, one number
///
/// Both paths are one computation, as in Differential<Mamba2>; what they share is laid out twice for it, and its
/// gradients added. The gated norm is the official code's: over all groups of a path.
template <class T, Device DeviceType = cpu>
class DiffS6Mamba2 : public Module<DiffS6Mamba2<T, DeviceType>> {
  using D = DeviceType;
  using R = accumulate_t<T>;
  using Core = Mamba2Core<T, D>;

 public:
  using value_type = T;
  using device_type = DeviceType;
  using State = typename Core::State;

  using Options = DiffS6Mamba2Options;
  /// Mamba-2's of both paths, and per token sizeof(T) * (d_model + 3 d_inner).
  struct Saved {
    Tensor<T, 3, D> x, gated, combined;
    typename Core::Saved core;
    differential_combine::Saved<T, D> combine;
  };

  static constexpr std::string_view name() { return "diff_s6_mamba2"; }
  /// The published module normalises over all groups of a path.
  static Options options(Index d_model, Index depth) {
    return {.mixer = {.d_model = d_model, .norm_groups = NormGroups::whole}, .depth = depth};
  }

  explicit DiffS6Mamba2(const Options& o)
      : options_(o),
        core_(o.mixer, 2),
        lambda_(o.lambda, sizes().d_ssm, sizes().d_model, lambda_init(o.depth)),
        out_proj_(sizes().d_ssm, sizes().d_model, o.mixer.bias) {
    const auto& s = sizes();
    require(s.d_mlp == 0, name(), ": d_ssm smaller than d_inner is not offered by this mixer");
    require(o.mixer.rmsnorm, name(), ": rmsnorm = false is not offered by this mixer");
    in_proj_weight_ = Parameter<T, 2, D>(Extents{2 * s.d_in_proj(), s.d_model});
    if (o.mixer.bias) in_proj_bias_ = Parameter<R, 1, D>(Extents<1>{2 * s.d_in_proj()}, Decay::no);
    conv_weight_ = Parameter<R, 2, D>(Extents{s.conv_dim(), s.d_conv});
    if (o.mixer.conv_bias) conv_bias_ = Parameter<R, 1, D>(Extents<1>{s.conv_dim()}, Decay::no);
    dt_bias_ = Parameter<R, 1, D>(Extents<1>{2 * s.nheads}, Decay::no);
    A_log_ = Parameter<R, 1, D>(Extents<1>{2 * s.nheads}, Decay::no);
    D_ = Parameter<R, 1, D>(Extents<1>{2 * (o.mixer.D_has_hdim ? s.d_ssm : s.nheads)}, Decay::no);
    norm_weight_ = Parameter<R, 1, D>(Extents<1>{s.d_ssm}, Decay::no);
    if (o.mixer.learnable_init_states)
      init_states_ = Parameter<R, 3, D>(Extents{s.nheads, s.headdim, s.d_state}, Decay::no);
    subln_weight_ = Parameter<R, 1, D>(Extents<1>{s.d_ssm}, Decay::no);
  }

  void initialize(Philox random, const Initialization& how = {}) {
    const auto& s = sizes();
    const auto& o = options_.mixer;
    draw_linear(in_proj_weight_, s.d_model, random.child(0));
    if (in_proj_bias_) {
      if (how.zero_biases)
        fill_zeros(in_proj_bias_);
      else
        draw_linear(in_proj_bias_, s.d_model, random.child(1));
    }
    draw_parameter(conv_weight_, [&](auto& values) {
      if (o.conv_init > 0)
        fill_uniform(values, random.child(2), -o.conv_init, o.conv_init);
      else
        fill_linear(values, s.d_conv, random.child(2));
    });
    if (conv_bias_) draw_linear(conv_bias_, s.d_conv, random.child(3));
    draw_parameter(dt_bias_, [&](auto& values) {
      fill_dt_bias(values.view(), random.child(4), o.dt_min, o.dt_max, o.dt_init_floor);
    });
    draw_parameter(A_log_, [&](auto& values) {
      fill_uniform(values, random.child(5), o.A_init_range[0], o.A_init_range[1]);
      for (R& a : values) a = std::log(a);
    });
    fill_ones(D_);
    fill_ones(norm_weight_);
    if (init_states_) fill_zeros(init_states_);
    fill_ones(subln_weight_);
    lambda_.initialize(random.child(6), options_.lambda_initialization);
    out_proj_.initialize(random.child(7), how);
    scale_by(out_proj_.weight, how.residual_scale);
  }

  Tensor<T, 3, D> forward(Tensor<T, 3, D> x, Saved& saved) const {
    const Laid laid(*this);
    saved.x = std::move(x);
    saved.gated = core_.forward(laid.weights, core_.project(laid.weights, saved.x), saved.core);
    saved.combined = combine(saved.gated, &saved.combine);
    return out_proj_.forward(saved.combined);
  }
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x) const { return run(x, nullptr); }

  Tensor<T, 3, D> backward(const View<const T, 3, D>& dout, Saved& saved) {
    require(bool(saved.gated), name(), ": backward without a forward before it; every Saved serves once");
    const auto& s = sizes();
    auto dgated = Tensor<T, 3, D>::uninitialized(saved.gated.extents());
    {
      const auto dcombined = out_proj_.backward(saved.combined, dout);
      const auto lambda = lambda_.value();
      Tensor<R, 1, D> dlambda(lambda.extents());
      const auto in = combine_inputs(saved.gated, lambda);
      Workspace<D> workspace(differential_combine::workspace_bytes(in));
      differential_combine::GradientViews<T, D> gradients{.dy1 = dgated.template slice<2>(0, s.d_ssm),
                                                          .dy2 = dgated.template slice<2>(s.d_ssm, 2 * s.d_ssm),
                                                          .dsubln_weight = subln_weight_.gradient()};
      if (in.lambda) gradients.dlambda = dlambda.view();
      differential_combine::backward(in, saved.combine, {.dout = dcombined}, gradients, workspace, GradientMode::add);
      if (in.lambda) lambda_.backward(dlambda);
      saved.gated = {};
      saved.combined = {};
    }
    const Laid laid(std::as_const(*this));
    // Of what both paths share, a gradient for each path, then their sum.
    Tensor<R, 2, D> dconv_weight(laid.conv_weight.extents());
    Tensor<R, 1, D> dconv_bias(laid.conv_bias.extents()), dnorm_weight(laid.norm_weight.extents());
    Tensor<R, 3, D> dinit_states(laid.init_states.extents());
    const typename Core::WeightGradients g{.in_proj_weight = in_proj_weight_.gradient(),
                                           .in_proj_bias = in_proj_bias_.gradient(),
                                           .conv_weight = dconv_weight.view(),
                                           .conv_bias = conv_bias_ ? dconv_bias.view() : View<R, 1, D>{},
                                           .dt_bias = dt_bias_.gradient(),
                                           .A_log = A_log_.gradient(),
                                           .D = D_.gradient(),
                                           .norm_weight = dnorm_weight.view(),
                                           .init_states = init_states_ ? dinit_states.view() : View<R, 3, D>{}};
    const auto dzxbcdt = core_.backward(laid.weights, dgated, saved.core, g, GradientMode::add, nullptr);
    const auto add = [](const auto& from, const auto& to) { add_to(from, to); };
    for_both(s.conv_roles(), conv_weight_.gradient(), std::as_const(dconv_weight).view(), add);
    if (conv_bias_) for_both(s.conv_roles(), conv_bias_.gradient(), std::as_const(dconv_bias).view(), add);
    for_both(std::array{s.d_ssm}, norm_weight_.gradient(), std::as_const(dnorm_weight).view(), add);
    if (init_states_) for_both(std::array{s.nheads}, init_states_.gradient(), std::as_const(dinit_states).view(), add);
    auto dx = core_.project_backward(laid.weights, saved.x, dzxbcdt, g);
    saved = {};
    return dx;
  }

  void set_recompute_convolution(bool recompute) { core_.set_recompute_convolution(recompute); }
  State make_state(Index batch) const { return core_.make_state(Laid(*this).weights, batch); }
  Tensor<T, 3, D> prefill(const View<const T, 3, D>& x, State& state) const { return run(x, &state); }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    const auto& s = self.sizes();
    const auto give = [&](std::string_view name, auto part) { f(name, part); };
    for (Index p = 0; p < 2; ++p) {
      const bool first = p == 0;
      give(first ? "in_proj1.weight" : "in_proj2.weight",
           path_of(self.in_proj_weight_, p, 2, Extents{s.d_in_proj(), s.d_model}, s.in_proj_roles()));
      if (self.in_proj_bias_)
        give(first ? "in_proj1.bias" : "in_proj2.bias",
             path_of(self.in_proj_bias_, p, 2, Extents<1>{s.d_in_proj()}, s.in_proj_roles()));
      give(first ? "dt1_bias" : "dt2_bias", path_of(self.dt_bias_, p, Extents<1>{s.nheads}));
      give(first ? "A1_log" : "A2_log", path_of(self.A_log_, p, Extents<1>{s.nheads}));
      give(first ? "D1" : "D2", path_of(self.D_, p, Extents<1>{self.D_.size() / 2}));
    }
    give("conv1d.weight", path_of(self.conv_weight_, 0, Extents{s.conv_dim(), Index{1}, s.d_conv}));
    if (self.conv_bias_) f("conv1d.bias", self.conv_bias_);
    f("norm.weight", self.norm_weight_);
    if (self.init_states_) f("init_states", self.init_states_);
    Linear<T, D>::parameters(self.out_proj_, prefixed("out_proj.", f));
    LambdaParameters<R, D>::parameters(self.lambda_, f);
    f("subln.weight", self.subln_weight_);
  }

 private:
  const Mamba2Sizes& sizes() const { return core_.sizes(); }

  /// f(rows of path p in the stack of both paths, the rows of the tensor that both share) for each role and path.
  template <std::size_t Roles, class Shared, class Stacked, class F>
  static void for_both(const std::array<Index, Roles>& roles, const Shared& shared, const Stacked& stacked, F&& f) {
    Index before = 0;
    for (const Index size : roles) {
      for (Index path = 0; path < 2; ++path)
        f(stacked.template slice<0>(2 * before + path * size, 2 * before + (path + 1) * size),
          shared.template slice<0>(before, before + size));
      before += size;
    }
  }

  /// The weights as both paths together want them: what they share, twice.
  struct Laid {
    Tensor<R, 2, D> conv_weight;
    Tensor<R, 1, D> conv_bias, norm_weight;
    Tensor<R, 3, D> init_states;
    typename Core::Weights weights;

    explicit Laid(const DiffS6Mamba2& m)
        : conv_weight(Tensor<R, 2, D>::uninitialized(Extents{2 * m.sizes().conv_dim(), m.sizes().d_conv})),
          norm_weight(Tensor<R, 1, D>::uninitialized(Extents<1>{2 * m.sizes().d_ssm})) {
      const auto& s = m.sizes();
      const auto lay = [](const auto& to, const auto& from) { copy(from, to); };
      for_both(s.conv_roles(), m.conv_weight_.value(), conv_weight.view(), lay);
      if (m.conv_bias_) {
        conv_bias = Tensor<R, 1, D>::uninitialized(Extents<1>{2 * s.conv_dim()});
        for_both(s.conv_roles(), m.conv_bias_.value(), conv_bias.view(), lay);
      }
      for_both(std::array{s.d_ssm}, m.norm_weight_.value(), norm_weight.view(), lay);
      if (m.init_states_) {
        init_states = Tensor<R, 3, D>::uninitialized(Extents{2 * s.nheads, s.headdim, s.d_state});
        for_both(std::array{s.nheads}, m.init_states_.value(), init_states.view(), lay);
      }
      weights = {.in_proj_weight = m.in_proj_weight_.value(),
                 .in_proj_bias = m.in_proj_bias_.value(),
                 .conv_weight = conv_weight,
                 .conv_bias = conv_bias,
                 .dt_bias = m.dt_bias_.value(),
                 .A_log = m.A_log_.value(),
                 .D = m.D_.value(),
                 .norm_weight = norm_weight,
                 .init_states = init_states};
    }
    Laid(const Laid&) = delete;
    Laid& operator=(const Laid&) = delete;
  };

  differential_combine::Inputs<T, D> combine_inputs(const Tensor<T, 3, D>& gated, const Tensor<R, 1, D>& lambda) const {
    const Index width = sizes().d_ssm;
    differential_combine::Inputs<T, D> in{.y1 = gated.template slice<2>(0, width),
                                          .y2 = gated.template slice<2>(width, 2 * width)};
    if (options_.lambda != Lambda::none) in.lambda = lambda;
    in.subln_weight = subln_weight_.value();
    return in;
  }
  Tensor<T, 3, D> combine(const Tensor<T, 3, D>& gated, differential_combine::Saved<T, D>* saved) const {
    const auto lambda = lambda_.value();
    auto out = Tensor<T, 3, D>::uninitialized(Extents{gated.extent(0), gated.extent(1), sizes().d_ssm});
    differential_combine::forward(combine_inputs(gated, lambda),
                                  {.norm = Norm::after, .scale = lambda_.scale(), .eps = options_.eps}, {.out = out},
                                  saved);
    return out;
  }
  Tensor<T, 3, D> run(const View<const T, 3, D>& x, State* state) const {
    const Laid laid(*this);
    return out_proj_.forward(combine(core_.forward(laid.weights, core_.project(laid.weights, x), state), nullptr));
  }

  Options options_;
  Core core_;
  LambdaParameters<R, D> lambda_;
  Parameter<T, 2, D> in_proj_weight_;  // (2 * d_in_proj, d_model), stacked role by role
  Parameter<R, 1, D> in_proj_bias_;
  Parameter<R, 2, D> conv_weight_;  // (conv_dim, d_conv)
  Parameter<R, 1, D> conv_bias_;
  Parameter<R, 1, D> dt_bias_, A_log_, D_;  // of both paths
  Parameter<R, 1, D> norm_weight_;
  Parameter<R, 3, D> init_states_;
  Linear<T, D> out_proj_;
  Parameter<R, 1, D> subln_weight_;
};

}  // namespace diffmamba
