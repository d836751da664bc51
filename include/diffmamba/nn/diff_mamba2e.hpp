// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>  // std::shared_ptr

#include "diffmamba/nn/differential.hpp"  // LambdaParameters, DifferentialOptions' enumerations

namespace diffmamba {

/// Options of DiffMamba2E: those of Mamba-2 and of the subtraction.
struct DiffMamba2EOptions {
  Mamba2Options mixer;
  Index depth = 0;  // of the layer, from 0
  Lambda lambda = Lambda::sigmoid_sum;
  LambdaInit lambda_initialization = LambdaInit::official;
  double eps = 1e-5;

  template <class Self, class F>
  static void fields(Self& o, F&& f) {
    Mamba2Options::fields(o.mixer, f);
    f("lambda", o.lambda), f("lambda_initialization", o.lambda_initialization), f("subln_eps", o.eps);
  }
};

/// DiffMamba2E of the Diff-Mamba repository: one Mamba-2 whose output is cut in halves that are subtracted. With y =
/// [y2 | y1] the output of the block (the second half is the minuend) and u = y1 - lambda y2,
///
///   out = (1 - lambda_init) w * RMS([u | u])
///
/// The halves are rows of out_proj: u = gated (W_1 - lambda W_2)^T, a product of half the size. And as the mean square
/// of [u | u] is that of u, the norm is taken once and written twice, with the two halves of w.
template <class T, Device DeviceType = cpu>
class DiffMamba2E : public Module<DiffMamba2E<T, DeviceType>> {
  using D = DeviceType;
  using R = accumulate_t<T>;
  using Inner = Mamba2Inner<T, D>;

 public:
  using value_type = T;
  using device_type = DeviceType;

 private:
  struct Folded;

 public:
  /// Mamba-2's, and the folded projection of the parameters as they were when the state was made; copies share it.
  struct State : Inner::State {
    std::shared_ptr<const Folded> folded;
  };

  using Options = DiffMamba2EOptions;
  /// Mamba-2's of one mixer, and sizeof(T) * d_model / 2 per token.
  struct Saved {
    Tensor<T, 3, D> x, gated, u;
    typename Inner::Saved inner;
    rms_norm::Saved<T, D> norm;
  };

  static constexpr std::string_view name() { return "diff_mamba2e"; }
  static Options options(Index d_model, Index depth) { return {.mixer = {.d_model = d_model}, .depth = depth}; }

  explicit DiffMamba2E(const Options& o)
      : options_(o),
        inner_(o.mixer, 1),
        half_(inner_.d_model() / 2),
        lambda_(o.lambda, half_, inner_.d_model(), lambda_init(o.depth)),
        out_proj_(width_of(inner_), inner_.d_model(), o.mixer.bias),
        subln_weight_(Extents<1>{inner_.d_model()}, Decay::no) {
    require(inner_.d_model() % 2 == 0, name(), ": d_model ", inner_.d_model(), " has no halves");
  }

  void initialize(Philox random, const Initialization& how = {}) {
    inner_.initialize(random, how);
    out_proj_.initialize(random.child(1), how);
    scale_by(out_proj_.weight, how.residual_scale);
    lambda_.initialize(random.child(2), options_.lambda_initialization);
    fill_ones(subln_weight_);
  }

  Tensor<T, 3, D> forward(Tensor<T, 3, D> x, Saved& saved) const {
    saved.x = std::move(x);
    auto gated = inner_.forward(std::as_const(saved.x), saved.inner);
    saved.u = folded_difference(gated);
    if (!rebuilds_gated(inner_)) saved.gated = std::move(gated);
    return normalize(saved.u, &saved.norm);
  }
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x) const {
    return normalize(difference(inner_.forward(x)), nullptr);
  }

  Tensor<T, 3, D> backward(const View<const T, 3, D>& dout, Saved& saved) {
    require(bool(saved.u), name(), ": backward without a forward before it; every Saved serves once");
    const Index d = inner_.d_model();
    auto du = Tensor<T, 3, D>::uninitialized(saved.u.extents());
    {
      const auto in = norm_inputs(saved.u);
      Workspace<D> workspace(rms_norm::workspace_bytes(in));
      const auto dw = subln_weight_.gradient();
      rms_norm::backward(
          in, saved.norm, {.dout = dout.template slice<2>(0, half_), .dout1 = dout.template slice<2>(half_, d)},
          {.dx = du.view(), .dweight = dw.template slice<0>(0, half_), .dweight1 = dw.template slice<0>(half_, d)},
          workspace, GradientMode::add);
      saved.u = {};
    }
    const auto lambda = lambda_.value();
    Tensor<R, 1, D> dlambda(lambda.extents());
    const Folded folded(*this, lambda);
    auto dgated = Tensor<T, 3, D>::uninitialized(Extents{du.extent(0), du.extent(1), folded.weight.extent(1)});
    linear::backward(folded.inputs(dgated.view()), as_rows(std::as_const(du)),
                     linear::GradientViews<T, D>{.dx = as_rows(dgated)});
    const auto x = std::move(saved.x);
    return backward_through(
        inner_, x.view(), dgated.view(), std::move(saved.gated), saved.inner, [&](const View<const T, 3, D>& gated) {
          auto dweight = Tensor<R, 2, D>::uninitialized(folded.weight.extents());
          Tensor<R, 2, D> dbias;
          if (out_proj_.bias) dbias = Tensor<R, 2, D>::uninitialized(folded.bias.extents());
          linear::backward(folded.inputs(gated), as_rows(std::as_const(du)),
                           linear::GradientViews<T, D>{.dweight = dweight, .dbias = column(dbias.view())});
          fold_halves_backward(std::as_const(out_proj_.weight).value(), lambda.view(), std::as_const(dweight).view(),
                               out_proj_.weight.gradient(), dlambda.view());
          if (out_proj_.bias)
            fold_halves_backward(matrix(std::as_const(out_proj_.bias).value()), lambda.view(),
                                 std::as_const(dbias).view(), matrix(out_proj_.bias.gradient()), dlambda.view());
          if (options_.lambda != Lambda::none) lambda_.backward(dlambda);
        });
  }

  void set_recompute_convolution(bool recompute) { inner_.set_recompute_convolution(recompute); }
  State make_state(Index batch) const {
    return {inner_.make_state(batch), std::make_shared<const Folded>(*this, lambda_.value())};
  }
  Tensor<T, 3, D> prefill(const View<const T, 3, D>& x, State& state) const {
    return normalize(project(inner_.forward(x, &state), *state.folded), nullptr);
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    Inner::parameters(self.inner_, 0, f);
    Linear<T, D>::parameters(self.out_proj_, prefixed("out_proj.", f));
    LambdaParameters<R, D>::parameters(self.lambda_, f);
    f("subln.weight", self.subln_weight_);
  }

 private:
  static constexpr Index rows_that_fold = 32;  // fewer do not pay for a folded copy of the weight

  /// A bias as a matrix of one column.
  template <class E>
  static View<E, 2, D> matrix(const View<E, 1, D>& bias) {
    return bias.reshape(Extents{bias.extent(0), Index{1}});
  }
  template <class E>
  static View<E, 1, D> column(const View<E, 2, D>& bias) {
    return bias ? bias.template select<1>(0) : View<E, 1, D>{};
  }
  /// W_1 - lambda W_2 and the bias to it.
  struct Folded {
    Tensor<T, 2, D> weight;  // (half, width)
    Tensor<R, 2, D> bias;    // (half, 1)

    Folded(const DiffMamba2E& m, const Tensor<R, 1, D>& lambda)
        : weight(Tensor<T, 2, D>::uninitialized(Extents{m.half_, m.out_proj_.weight.extent(1)})) {
      fold_halves(m.out_proj_.weight.value(), lambda.view(), weight.view());
      if (!m.out_proj_.bias) return;
      bias = Tensor<R, 2, D>::uninitialized(Extents{m.half_, Index{1}});
      fold_halves(matrix(m.out_proj_.bias.value()), lambda.view(), bias.view());
    }
    linear::Inputs<T, D> inputs(const View<const T, 3, D>& gated) const {
      return {.x = as_rows(gated), .weight = weight, .bias = column(bias.view())};
    }
  };
  Tensor<T, 3, D> folded_difference(const Tensor<T, 3, D>& gated) const {
    return project(gated, Folded(*this, lambda_.value()));
  }
  Tensor<T, 3, D> project(const Tensor<T, 3, D>& gated, const Folded& folded) const {
    auto u = Tensor<T, 3, D>::uninitialized(Extents{gated.extent(0), gated.extent(1), half_});
    linear::forward(folded.inputs(gated), as_rows(u));
    return u;
  }
  Tensor<T, 3, D> difference(const Tensor<T, 3, D>& gated) const {
    if (gated.extent(0) * gated.extent(1) >= rows_that_fold) return folded_difference(gated);
    const auto y = out_proj_.forward(gated);
    const auto lambda = lambda_.value();
    auto u = Tensor<T, 3, D>::uninitialized(Extents{gated.extent(0), gated.extent(1), half_});
    differential_combine::forward(
        differential_combine::Inputs<T, D>{
            .y1 = y.template slice<2>(half_, 2 * half_), .y2 = y.template slice<2>(0, half_), .lambda = lambda},
        {.norm = Norm::none}, {.out = u}, nullptr);
    return u;
  }
  rms_norm::Inputs<T, D> norm_inputs(const Tensor<T, 3, D>& u) const {
    const auto w = subln_weight_.value();
    return {.x = u, .weight = w.template slice<0>(0, half_), .weight1 = w.template slice<0>(half_, 2 * half_)};
  }
  Tensor<T, 3, D> normalize(const Tensor<T, 3, D>& u, rms_norm::Saved<T, D>* saved) const {
    auto out = Tensor<T, 3, D>::uninitialized(Extents{u.extent(0), u.extent(1), 2 * half_});
    rms_norm::forward(norm_inputs(u), {.eps = options_.eps, .scale = lambda_.scale()},
                      {.out = out.template slice<2>(0, half_), .out1 = out.template slice<2>(half_, 2 * half_)}, saved);
    return out;
  }

  Options options_;
  Inner inner_;
  Index half_;
  LambdaParameters<R, D> lambda_;
  Linear<T, D> out_proj_;
  Parameter<R, 1, D> subln_weight_;
};

}  // namespace diffmamba
