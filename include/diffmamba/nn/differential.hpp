// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/lambda_parameters.hpp"
#include "diffmamba/nn/mamba.hpp"
#include "diffmamba/nn/mamba2.hpp"
#include "diffmamba/nn/path_pair.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_backward.hpp"
#include "diffmamba/ops/differential_combine/differential_combine_forward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"

namespace diffmamba {

/// How a differential mixer subtracts. The defaults are the paper's primary variant as published for Mamba-2.
struct DifferentialOptions {
  Index depth = 0;  // of the layer, from 0: lambda_init = 0.8 - 0.6 exp(-0.3 depth)
  Norm norm = Norm::after;
  Lambda lambda = Lambda::sigmoid_sum;
  Index lambda_size = 0;  // of each vector; 0: d_model, and d_state in the exponential form
  LambdaInit lambda_initialization = LambdaInit::official;
  double eps = 1e-5;

  template <class Self, class F>
  static void fields(Self& o, F&& f) {
    f("norm", o.norm), f("lambda", o.lambda), f("lambda_size", o.lambda_size);
    f("lambda_initialization", o.lambda_initialization), f("subln_eps", o.eps);
  }
};

/// Options of Differential<Mixer>: those of the mixer and of the subtraction.
template <class MixerOptions>
struct DifferentialMixerOptions {
  MixerOptions mixer;
  DifferentialOptions differential = {};

  template <class Self, class F>
  static void fields(Self& o, F&& f) {
    visit_options(o.mixer, f);
    DifferentialOptions::fields(o.differential, f);
  }
};

/// The lambda that was published with a mixer: the exponential form with Mamba, the sigmoid of a sum otherwise.
template <class M>
inline constexpr Lambda published_lambda = Lambda::sigmoid_sum;
template <class T, Device DeviceType>
inline constexpr Lambda published_lambda<Mamba<T, DeviceType>> = Lambda::exponential;

/// A differential mixer made of two of any kind (Differential Mamba, arXiv 2507.06204, Eq. 20):
///
///   y = (1 - lambda_init) N(m1(x) - lambda m2(x))
///
/// and its published variants, each by name: N = RMSNorm after the subtraction, before it, both, or none; lambda from a
/// sigmoid of a sum, of one number, of one for each channel, in exponential form, or 1.
///
///   dm::Differential<dm::Mamba2<float>> mixer({.d_model = 256, .d_state = 64, .expand = 1}, {.depth = 3});
///
/// A mixer with an axis of paths (ours) runs both paths as one: one input projection, one convolution, one scan, and
/// with the norm after the subtraction, or none, one output projection with -lambda folded into its weight; with expand
/// halved it costs what the plain mixer of as many parameters costs. A mixer without (yours, perhaps) is called twice.
///
/// A state of paths that run as one also holds the folded projection, of the parameters as they were when it was made;
/// copies share it.
///
/// Saved, besides the paths': the difference, sizeof(T) * d_model per token, before the norm after it; two such tensors
/// with a norm before. The parameters are m1.*, m2.* (each under the mixer's names), lambda_q1 (lambda_k1, lambda_q2,
/// lambda_k2), norm.weight of a norm before, subln.weight of the norm after.
template <Mixer MixerType>
class Differential : public Module<Differential<MixerType>> {
  using Paths = typename std::conditional_t<MixerOfPaths<MixerType>, std::type_identity<PathsAsOne<MixerType>>,
                                            std::type_identity<PathsAsTwo<MixerType>>>::type;

 public:
  using value_type = typename MixerType::value_type;
  using device_type = typename MixerType::device_type;
  using T = value_type;
  using D = device_type;
  using R = accumulate_t<T>;
  using State = typename Paths::State;

  /// Whether x is needed only at the end of backward, so that the caller need not keep it.
  static constexpr bool leaves_input = Paths::leaves_input;

  using Options = DifferentialMixerOptions<typename MixerType::Options>;
  struct Saved {
    typename Paths::Saved paths;
    Tensor<T, 3, D> y1, y2;  // of each path with a norm before; else y1 is their difference, with a norm after
    rms_norm::Saved<T, D> norm;
    differential_combine::Saved<T, D> combine;
  };

  /// "diff_mamba2" of "mamba2".
  static constexpr std::string_view name() { return {name_.data(), name_.size()}; }
  /// What was published for this mixer: half the width, so that both paths together have the parameters of one.
  static Options options(Index d_model, Index depth) {
    auto mixer = mixer_options<MixerType>(d_model, depth);
    if constexpr (requires { mixer.expand = 1; }) mixer.expand = 1;
    return {.mixer = mixer, .differential = {.depth = depth, .lambda = published_lambda<MixerType>}};
  }

  explicit Differential(const Options& o) : Differential(o.mixer, o.differential) {}
  Differential(const typename MixerType::Options& mixer, const DifferentialOptions& differential)
      : options_(differential),
        paths_(mixer),
        lambda_(differential.lambda, paths_.d_model(), lambda_size(mixer, differential),
                lambda_init(differential.depth)) {
    const Extents<1> channels{paths_.d_model()};
    require(options_.eps >= 0, name(), ": eps is ", options_.eps, ", expected 0 or more");
    if (norm_before()) norm_weight_ = Parameter<R, 1, D>(channels, Decay::no);
    if (norm_after()) subln_weight_ = Parameter<R, 1, D>(channels, Decay::no);
  }

  void initialize(Philox random, const Initialization& how = {}) {
    paths_.initialize(random.child(0), how);
    lambda_.initialize(random.child(1), options_.lambda_initialization);
    if (norm_weight_) fill_ones(norm_weight_);
    if (subln_weight_) fill_ones(subln_weight_);
  }

  Tensor<T, 3, D> forward(Tensor<T, 3, D> x, Saved& saved) const {
    const auto lambda = lambda_.value();
    if constexpr (Paths::as_one) {
      if (!norm_before()) {
        auto y = paths_.difference(std::move(x), lambda, folded_scale(), saved.paths);
        if (!norm_after()) return y;
        saved.y1 = std::move(y);
        return normalize(saved.y1, &saved.norm);
      }
    }
    std::tie(saved.y1, saved.y2) = paths_.both(std::move(x), saved.paths);
    return combine(saved.y1, saved.y2, lambda, &saved.combine);
  }
  /// See LeavesInput.
  Tensor<T, 3, D> forward_leaving_input(const View<const T, 3, D>& x, Saved& saved) const requires leaves_input {
    const auto lambda = lambda_.value();
    if (norm_before()) {
      std::tie(saved.y1, saved.y2) = paths_.both_leaving_input(x, saved.paths);
      return combine(saved.y1, saved.y2, lambda, &saved.combine);
    }
    auto y = paths_.difference_leaving_input(x, lambda, folded_scale(), saved.paths);
    if (!norm_after()) return y;
    saved.y1 = std::move(y);
    return normalize(saved.y1, &saved.norm);
  }
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x) const { return run(x, nullptr); }

  Tensor<T, 3, D> backward(const View<const T, 3, D>& dout, Saved& saved) { return run_backward<false>(dout, saved); }
  Tensor<T, 3, D> backward_to_input(const View<const T, 3, D>& dout, Saved& saved) requires leaves_input {
    return run_backward<true>(dout, saved);
  }
  void backward_of_parameters(const View<const T, 3, D>& x, Saved& saved) requires leaves_input {
    paths_.backward_of_parameters(x, saved.paths);
  }

  void set_recompute_convolution(bool recompute) { paths_.set_recompute_convolution(recompute); }
  State make_state(Index batch) const {
    const auto lambda = lambda_.value();
    return paths_.make_state(batch, norm_before() ? View<const R, 1, D>{} : lambda.view(), folded_scale());
  }
  Tensor<T, 3, D> prefill(const View<const T, 3, D>& x, State& state) const { return run(x, &state); }
  Tensor<T, 2, D> step(const View<const T, 2, D>& x, State& state) const {
    const auto out = run(x.reshape(Extents{x.extent(0), Index{1}, x.extent(1)}), &state);
    return to_tensor(out.reshape(Extents{x.extent(0), x.extent(1)}));
  }

  Hidden<T, D> decode(const normed_linear::Source<T, D>& source, State& state) const {
    Hidden<T, D> out;
    if constexpr (Paths::as_one) {
      if (norm_before()) return out;
      out.rows = paths_.decode(source, state);
      if (out.rows && norm_after())
        out.due = {.weight = subln_weight_.value(), .eps = options_.eps, .scale = lambda_.scale()};
    }
    return out;
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    Paths::parameters(self.paths_, f);
    LambdaParameters<R, D>::parameters(self.lambda_, f);
    if (self.norm_weight_) f("norm.weight", self.norm_weight_);
    if (self.subln_weight_) f("subln.weight", self.subln_weight_);
  }

  const DifferentialOptions& differential_options() const { return options_; }
  /// The lambda of this layer as its parameters now stand: one number, or one for each channel.
  Tensor<R, 1, D> lambda() const { return lambda_.value(); }

 private:
  /// dL/dx; with `to_input` without the gradients that need x.
  template <bool to_input>
  Tensor<T, 3, D> run_backward(const View<const T, 3, D>& dout, Saved& saved) {
    const auto lambda = lambda_.value();
    Tensor<R, 1, D> dlambda(lambda.extents());
    Tensor<T, 3, D> dx;
    const bool combined = !Paths::as_one || norm_before();
    if (combined) {
      require(bool(saved.y1), name(), ": backward without a forward before it; every Saved serves once");
      auto dy1 = Tensor<T, 3, D>::uninitialized(saved.y1.extents());
      auto dy2 = Tensor<T, 3, D>::uninitialized(saved.y2.extents());
      {
        const auto in = combine_inputs(saved.y1, saved.y2, lambda);
        Workspace<D> workspace(differential_combine::workspace_bytes(in));
        differential_combine::GradientViews<T, D> gradients{.dy1 = dy1.view(), .dy2 = dy2.view()};
        if (in.lambda) gradients.dlambda = dlambda.view();
        gradients.dnorm_weight = norm_weight_.gradient();
        gradients.dsubln_weight = subln_weight_.gradient();
        differential_combine::backward(in, saved.combine, {.dout = dout}, gradients, workspace, GradientMode::add);
      }
      saved.y1 = {};
      saved.y2 = {};
      if constexpr (to_input)
        dx = paths_.both_backward_to_input(dy1, dy2, saved.paths);
      else
        dx = paths_.both_backward(dy1, dy2, saved.paths);
    } else if constexpr (Paths::as_one) {
      if (norm_after()) {
        require(bool(saved.y1), name(), ": backward without a forward before it; every Saved serves once");
        auto dy = Tensor<T, 3, D>::uninitialized(saved.y1.extents());
        const rms_norm::Inputs<T, D> in{.x = saved.y1, .weight = std::as_const(subln_weight_).value()};
        Workspace<D> workspace(rms_norm::workspace_bytes(in));
        rms_norm::backward(in, saved.norm, {.dout = dout}, {.dx = dy.view(), .dweight = subln_weight_.gradient()},
                           workspace, GradientMode::add);
        saved.y1 = {};
        dx = difference_backward<to_input>(dy, lambda, 1.0, saved.paths, dlambda);
      } else {
        dx = difference_backward<to_input>(dout, lambda, lambda_.scale(), saved.paths, dlambda);
      }
    }
    if (options_.lambda != Lambda::none) lambda_.backward(dlambda);
    return dx;
  }
  template <bool to_input>
  Tensor<T, 3, D> difference_backward(const View<const T, 3, D>& dy, const View<const R, 1, D>& lambda, double scale,
                                      typename Paths::Saved& saved, const View<R, 1, D>& dlambda) {
    if constexpr (to_input)
      return paths_.difference_backward_to_input(dy, lambda, scale, saved, dlambda);
    else
      return paths_.difference_backward(dy, lambda, scale, saved, dlambda);
  }

  bool norm_before() const { return options_.norm == Norm::before || options_.norm == Norm::before_and_after; }
  bool norm_after() const { return options_.norm == Norm::after || options_.norm == Norm::before_and_after; }

  static Index lambda_size(const typename MixerType::Options& mixer, const DifferentialOptions& o) {
    require(o.lambda_size >= 0, name(), ": lambda_size is ", o.lambda_size, ", expected 0 (the default) or more");
    if (o.lambda_size > 0) return o.lambda_size;
    if constexpr (requires { mixer.d_state; })
      if (o.lambda == Lambda::exponential) return mixer.d_state;
    return mixer.d_model;
  }

  /// Few rows do not pay for a folded copy of the weight: the two products read each weight once.
  static constexpr Index rows_that_fold = 32;
  Tensor<T, 3, D> run(const View<const T, 3, D>& x, State* state) const {
    if constexpr (Paths::as_one)
      if (!norm_before() && state != nullptr) return finish(paths_.difference(x, *state));
    const auto lambda = lambda_.value();
    if constexpr (Paths::as_one)
      if (!norm_before() && x.extent(0) * x.extent(1) >= rows_that_fold)
        return finish(paths_.difference(x, lambda, folded_scale()));
    const auto [y1, y2] = paths_.both(x, state);
    return combine(y1, y2, lambda, nullptr);
  }

  /// What of the factor 1 - lambda_init the projection takes: the norm behind it would undo it.
  double folded_scale() const { return norm_after() ? 1.0 : lambda_.scale(); }
  Tensor<T, 3, D> finish(Tensor<T, 3, D> y) const { return norm_after() ? normalize(y, nullptr) : std::move(y); }
  Tensor<T, 3, D> normalize(const Tensor<T, 3, D>& y, rms_norm::Saved<T, D>* saved) const {
    auto out = Tensor<T, 3, D>::uninitialized(y.extents());
    rms_norm::forward(rms_norm::Inputs<T, D>{.x = y, .weight = subln_weight_.value()},
                      {.eps = options_.eps, .scale = lambda_.scale()}, {.out = out}, saved);
    return out;
  }
  differential_combine::Inputs<T, D> combine_inputs(const Tensor<T, 3, D>& y1, const Tensor<T, 3, D>& y2,
                                                    const Tensor<R, 1, D>& lambda) const {
    differential_combine::Inputs<T, D> in{.y1 = y1, .y2 = y2};
    if (options_.lambda != Lambda::none) in.lambda = lambda;
    in.norm_weight = norm_weight_.value();
    in.subln_weight = subln_weight_.value();
    return in;
  }
  Tensor<T, 3, D> combine(const Tensor<T, 3, D>& y1, const Tensor<T, 3, D>& y2, const Tensor<R, 1, D>& lambda,
                          differential_combine::Saved<T, D>* saved) const {
    auto out = Tensor<T, 3, D>::uninitialized(y1.extents());
    differential_combine::forward(combine_inputs(y1, y2, lambda),
                                  {.norm = options_.norm, .scale = lambda_.scale(), .eps = options_.eps}, {.out = out},
                                  saved);
    return out;
  }

  static constexpr auto name_ = [] {
    constexpr std::string_view prefix = "diff_", inner = MixerType::name();
    std::array<char, prefix.size() + inner.size()> result{};
    for (std::size_t i = 0; i < prefix.size(); ++i) result[i] = prefix[i];
    for (std::size_t i = 0; i < inner.size(); ++i) result[prefix.size() + i] = inner[i];
    return result;
  }();

  DifferentialOptions options_;
  Paths paths_;
  LambdaParameters<R, D> lambda_;
  Parameter<R, 1, D> norm_weight_, subln_weight_;
};

/// The published models: Diff-Mamba on Mamba (lambda in exponential form) and on Mamba-2 (sigmoid of a sum), each path
/// with expand 1: DiffMamba2<float> mixer(DiffMamba2<float>::options(256, 3)), or with options of your own.
template <class T, Device DeviceType = cpu>
using DiffMamba = Differential<Mamba<T, DeviceType>>;
template <class T, Device DeviceType = cpu>
using DiffMamba2 = Differential<Mamba2<T, DeviceType>>;

}  // namespace diffmamba
