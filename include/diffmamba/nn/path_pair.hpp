// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>   // std::shared_ptr
#include <utility>  // std::pair

#include "diffmamba/nn/projected_mixer.hpp"
#include "diffmamba/nn/scan_parts.hpp"  // add_to
#include "diffmamba/ops/fold_difference/fold_difference_backward.hpp"
#include "diffmamba/ops/fold_difference/fold_difference_forward.hpp"
#include "diffmamba/ops/matmul/matmul_forward.hpp"

// The two paths m1 and m2 of a differential mixer.
namespace diffmamba {

/// The two paths of a mixer that has an axis of paths, run as one: one input projection, one convolution, one scan.
/// What they hand to their output projections lies side by side, and so the difference is one product more,
///
///   m1(x) - lambda m2(x) = [g1 | g2] [W1 | -lambda W2]^T + b1 - lambda b2
///
/// with -lambda (one number, or one for each row of W2) folded into a copy of the weights; only who needs both results
/// by themselves, to normalise them, computes two products. Backwards, with dW = dL/d[W1 | -lambda W2] of that one
/// product,
///
///   dW1 += dW_1      dW2 += -lambda dW_2      dlambda = -sum(W2 * dW_2)         (and the biases alike)
template <class MixerType>
class PathsAsOne {
 public:
  using Inner = typename MixerType::Inner;
  using T = typename MixerType::value_type;
  using D = typename MixerType::device_type;
  using R = accumulate_t<T>;
  /// scale * [W1 | -lambda W2], its columns in the order of the gated tensor, and the bias to it.
  struct Folded {
    Tensor<T, 2, D> weight;
    Tensor<R, 1, D> bias = {};
  };
  /// The inner's, and the folded weight of the parameters as they were when the state was made, one for all copies.
  struct State : Inner::State {
    std::shared_ptr<const Folded> folded;
  };
  using Pair = std::pair<Tensor<T, 3, D>, Tensor<T, 3, D>>;
  static constexpr bool as_one = true, leaves_input = InnerLeavesInput<Inner>;

  /// The inner's, and per token sizeof(T) * d_model (x), unless x is left to the caller; the gated tensor (2 width)
  /// only where the inner's backward pass cannot write it again. For differences also the folded weight, whatever the
  /// number of tokens.
  struct Saved {
    Tensor<T, 3, D> x, gated;
    typename Inner::Saved inner;
    Folded folded;
  };

  explicit PathsAsOne(const typename MixerType::Options& options)
      : inner_(options, 2), width_(width_of(inner_)), weight_(Extents{Index{2}, inner_.d_model(), width_}) {
    if (inner_.bias()) bias_ = Parameter<R, 2, D>(Extents{Index{2}, inner_.d_model()}, Decay::no);
    weight_.set_written_whole();
    bias_.set_written_whole();
  }

  Index d_model() const { return inner_.d_model(); }
  void set_recompute_convolution(bool recompute) { diffmamba::set_recompute_convolution(inner_, recompute); }

  void initialize(Philox random, const Initialization& how) {
    inner_.initialize(random, how);
    const auto draw_paths = [&](auto& parameter, std::uint64_t number, double scale) {
      draw_parameter(parameter, [&](auto& values) {
        for (Index path = 0; path < 2; ++path)
          fill_linear(values.template select<0>(path), width_,
                      random.child(1).child(static_cast<std::uint64_t>(path)).child(number), scale);
      });
    };
    draw_paths(weight_, 0, how.residual_scale);
    if (bias_ && !how.zero_biases) draw_paths(bias_, 1, 1.0);
    if (bias_ && how.zero_biases) fill_zeros(bias_);
  }

  /// scale * (m1(x) - lambda m2(x))
  Tensor<T, 3, D> difference(Tensor<T, 3, D> x, const View<const R, 1, D>& lambda, double scale, Saved& saved) const {
    saved.x = std::move(x);
    return difference_leaving_input(std::as_const(saved.x), lambda, scale, saved);
  }
  /// The same; x is the caller's to keep or write again (LeavesInput).
  Tensor<T, 3, D> difference_leaving_input(const View<const T, 3, D>& x, const View<const R, 1, D>& lambda,
                                           double scale, Saved& saved) const {
    auto gated = inner_.forward(x, saved.inner);
    saved.folded = fold(fold_inputs(lambda), fold_options(scale));
    auto out = project(gated, saved.folded);
    if (!rebuilds_gated(inner_)) saved.gated = std::move(gated);
    return out;
  }
  Tensor<T, 3, D> difference(const View<const T, 3, D>& x, const View<const R, 1, D>& lambda, double scale) const {
    return difference_of(inner_.forward(x), lambda, scale);
  }
  /// The same from a state on, with the lambda and the factor that it was made for.
  Tensor<T, 3, D> difference(const View<const T, 3, D>& x, State& state) const {
    return project(inner_.forward(x, &state), *state.folded);
  }
  /// The same for one token, as Hidden says.
  Tensor<T, 3, D> decode(const normed_linear::Source<T, D>& source, State& state) const {
    if constexpr (requires { inner_.decode(source, state.folded->weight.view(), state.folded->bias.view(), state); }) {
      if (state.folded != nullptr)
        return inner_.decode(source, state.folded->weight.view(), state.folded->bias.view(), state);
    }
    return {};
  }
  /// dx; adds the gradients of the weights to theirs, and dL/dlambda to dlambda, which is zero before.
  Tensor<T, 3, D> difference_backward(const View<const T, 3, D>& dout, const View<const R, 1, D>& lambda, double scale,
                                      Saved& saved, const View<R, 1, D>& dlambda) {
    require(bool(saved.x), "backward without a forward before it; every Saved serves once");
    const auto x = std::move(saved.x);
    return difference_backward(dout, lambda, scale, saved, dlambda, through(x, saved));
  }
  Tensor<T, 3, D> difference_backward_to_input(const View<const T, 3, D>& dout, const View<const R, 1, D>& lambda,
                                               double scale, Saved& saved,
                                               const View<R, 1, D>& dlambda) requires InnerLeavesInput<Inner> {
    return difference_backward(dout, lambda, scale, saved, dlambda, through(saved));
  }
  void backward_of_parameters(const View<const T, 3, D>& x, Saved& saved) requires InnerLeavesInput<Inner> {
    inner_.backward_of_parameters(x, saved.inner);
  }

  /// m1(x) and m2(x)
  Pair both(Tensor<T, 3, D> x, Saved& saved) const {
    saved.x = std::move(x);
    return both_leaving_input(std::as_const(saved.x), saved);
  }
  Pair both_leaving_input(const View<const T, 3, D>& x, Saved& saved) const {
    auto gated = inner_.forward(x, saved.inner);
    Pair both{project(gated, 0), project(gated, 1)};
    if (!rebuilds_gated(inner_)) saved.gated = std::move(gated);
    return both;
  }
  Pair both(const View<const T, 3, D>& x, State* state) const {
    const auto gated = inner_.forward(x, state);
    return {project(gated, 0), project(gated, 1)};
  }
  Tensor<T, 3, D> both_backward(const View<const T, 3, D>& dy1, const View<const T, 3, D>& dy2, Saved& saved) {
    require(bool(saved.x), "backward without a forward before it; every Saved serves once");
    const auto x = std::move(saved.x);
    return both_backward(dy1, dy2, through(x, saved));
  }
  Tensor<T, 3, D> both_backward_to_input(const View<const T, 3, D>& dy1, const View<const T, 3, D>& dy2,
                                         Saved& saved) requires InnerLeavesInput<Inner> {
    return both_backward(dy1, dy2, through(saved));
  }

  /// For differences by itself, or with no lambda for both results.
  State make_state(Index batch, const View<const R, 1, D>& lambda, double scale) const {
    State state{inner_.make_state(batch), nullptr};
    if (lambda) state.folded = std::make_shared<const Folded>(fold(fold_inputs(lambda), fold_options(scale)));
    return state;
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    for (Index path = 0; path < 2; ++path) {
      const auto named = prefixed(path == 0 ? "m1." : "m2.", f);
      Inner::parameters(self.inner_, path, named);
      auto weight = path_of(self.weight_, path, Extents{self.inner_.d_model(), self.width_});
      named("out_proj.weight", weight);
      if (!self.bias_) continue;
      auto bias = path_of(self.bias_, path, Extents<1>{self.inner_.d_model()});
      named("out_proj.bias", bias);
    }
  }

 private:
  /// How a backward pass goes through the inner part: to dx, with or without the gradients that need x.
  auto through(const Tensor<T, 3, D>& x, Saved& saved) {
    return [this, &x, &saved](const View<T, 3, D>& dgated, auto&& use) {
      return backward_through(inner_, x.view(), dgated, std::move(saved.gated), saved.inner, use);
    };
  }
  auto through(Saved& saved) requires InnerLeavesInput<Inner> {
    return [this, &saved](const View<T, 3, D>& dgated, auto&& use) {
      return backward_to_input_through(inner_, dgated, std::move(saved.gated), saved.inner, use);
    };
  }
  template <class Through>
  Tensor<T, 3, D> difference_backward(const View<const T, 3, D>& dout, const View<const R, 1, D>& lambda, double scale,
                                      Saved& saved, const View<R, 1, D>& dlambda, Through&& backward_through_inner) {
    require(bool(saved.folded.weight), "differential: backward without a forward before it; every Saved serves once");
    const auto in = fold_inputs(lambda);
    const auto options = fold_options(scale);
    const Folded folded = std::move(saved.folded);
    const Rows<T, D> dout_rows(dout);
    auto dgated = Tensor<T, 3, D>::uninitialized(Extents{dout.extent(0), dout.extent(1), 2 * width_});
    linear::backward(inputs(dgated.view(), folded), dout_rows.view(),
                     linear::GradientViews<T, D>{.dx = as_rows(dgated)});
    return backward_through_inner(dgated.view(), [&](const View<const T, 3, D>& gated) {
      auto dweight = Tensor<R, 2, D>::uninitialized(folded.weight.extents());
      Tensor<R, 1, D> dbias;
      if (bias_) dbias = Tensor<R, 1, D>::uninitialized(folded.bias.extents());
      linear::backward(inputs(gated, folded), dout_rows.view(),
                       linear::GradientViews<T, D>{.dweight = dweight, .dbias = dbias});
      Workspace<D> workspace(fold_difference::workspace_bytes(in));
      const GradientMode mode = gradient_mode(weight_, bias_);
      fold_difference::backward(in, options, {.dweight = dweight.view(), .dbias = std::as_const(dbias).view()},
                                {.dweight = weight_.gradient(), .dbias = bias_.gradient(), .dlambda = dlambda},
                                workspace, mode);
    });
  }
  template <class Through>
  Tensor<T, 3, D> both_backward(const View<const T, 3, D>& dy1, const View<const T, 3, D>& dy2,
                                Through&& backward_through_inner) {
    const Rows<T, D> rows1(dy1), rows2(dy2);
    const auto dy = [&](Index path) { return path == 0 ? rows1.view() : rows2.view(); };
    const auto weight = std::as_const(weight_).value();
    auto dgated = Tensor<T, 3, D>::uninitialized(Extents{dy1.extent(0), dy1.extent(1), 2 * width_});
    for (Index path = 0; path < 2; ++path)
      for_roles(path, [&](Index from, Index to, Index at) {
        matmul(dy(path), weight.template select<0>(path).template slice<1>(from, to),
               as_rows(dgated.template slice<2>(at, at + to - from)));
      });
    return backward_through_inner(dgated.view(), [&](const View<const T, 3, D>& gated) {
      for (Index path = 0; path < 2; ++path)
        for_roles(path, [&](Index from, Index to, Index at) {
          View<R, 1, D> dbias;
          if (bias_ && from == 0) dbias = bias_.gradient().template select<0>(path);
          const linear::Inputs<T, D> in{.x = as_rows(gated.template slice<2>(at, at + to - from)),
                                        .weight = weight.template select<0>(path).template slice<1>(from, to)};
          linear::backward(
              in, dy(path),
              linear::GradientViews<T, D>{
                  .dweight = weight_.gradient().template select<0>(path).template slice<1>(from, to), .dbias = dbias},
              GradientMode::add);
        });
    });
  }

  /// f(from, to, at) for every role: columns [from, to) of a path's out_proj.weight, and where they begin in the gated
  /// tensor of both paths.
  template <class F>
  void for_roles(Index path, F&& f) const {
    Index before = 0;
    for (const Index size : inner_.roles()) {
      if (size > 0) f(before, before + size, 2 * before + path * size);
      before += size;
    }
  }

  fold_difference::Inputs<T, D> fold_inputs(const View<const R, 1, D>& lambda) const {
    return {.weight = weight_.value(), .lambda = lambda, .bias = bias_.value()};
  }
  fold_difference::Options fold_options(double scale) const {
    return fold_difference::options_of(scale, inner_.roles());
  }
  static Folded fold(const fold_difference::Inputs<T, D>& in, const fold_difference::Options& options) {
    Folded folded{.weight = Tensor<T, 2, D>::uninitialized(Extents{in.weight.extent(1), 2 * in.weight.extent(2)})};
    if (in.bias) folded.bias = Tensor<R, 1, D>::uninitialized(Extents<1>{in.weight.extent(1)});
    fold_difference::forward(in, options, {.weight = folded.weight, .bias = folded.bias});
    return folded;
  }
  static linear::Inputs<T, D> inputs(const View<const T, 3, D>& gated, const Folded& folded) {
    return {.x = as_rows(gated), .weight = folded.weight, .bias = folded.bias};
  }
  static Tensor<T, 3, D> project(const Tensor<T, 3, D>& gated, const Folded& folded) {
    auto out = Tensor<T, 3, D>::uninitialized(Extents{gated.extent(0), gated.extent(1), folded.weight.extent(0)});
    linear::forward(inputs(gated, folded), as_rows(out));
    return out;
  }
  Tensor<T, 3, D> difference_of(const Tensor<T, 3, D>& gated, const View<const R, 1, D>& lambda, double scale) const {
    return project(gated, fold(fold_inputs(lambda), fold_options(scale)));
  }
  /// gated of one path -> y of this path
  Tensor<T, 3, D> project(const Tensor<T, 3, D>& gated, Index path) const {
    auto out = Tensor<T, 3, D>::uninitialized(Extents{gated.extent(0), gated.extent(1), inner_.d_model()});
    const auto weight = weight_.value().template select<0>(path);
    bool first = true;
    for_roles(path, [&](Index from, Index to, Index at) {
      const auto x = as_rows(gated.template slice<2>(at, at + to - from));
      const auto w = weight.template slice<1>(from, to);
      if (first) {
        View<const R, 1, D> bias;
        if (bias_) bias = bias_.value().template select<0>(path);
        linear::forward(linear::Inputs<T, D>{.x = x, .weight = w, .bias = bias}, as_rows(out));
      } else {
        matmul(x, w.template permute<1, 0>(), as_rows(out), {.beta = 1});
      }
      first = false;
    });
    return out;
  }

  Inner inner_;
  Index width_;
  Parameter<T, 3, D> weight_;  // (2, d_model, width)
  Parameter<R, 2, D> bias_;    // (2, d_model), or absent
};

/// Two mixers of any kind, called one after the other on the same x: what a mixer of your own becomes that has no
/// Inner. Costs what two mixers cost.
template <class MixerType>
class PathsAsTwo {
 public:
  using T = typename MixerType::value_type;
  using D = typename MixerType::device_type;
  using Pair = std::pair<Tensor<T, 3, D>, Tensor<T, 3, D>>;
  static constexpr bool as_one = false, leaves_input = false;

  struct Saved {
    typename MixerType::Saved m1, m2;
  };
  struct State {
    typename MixerType::State m1, m2;
  };

  explicit PathsAsTwo(const typename MixerType::Options& options)
      : d_model_(options.d_model), m1_(options), m2_(options) {}

  Index d_model() const { return d_model_; }
  void set_recompute_convolution(bool recompute) {
    diffmamba::set_recompute_convolution(m1_, recompute);
    diffmamba::set_recompute_convolution(m2_, recompute);
  }
  void initialize(Philox random, const Initialization& how) {
    m1_.initialize(random.child(0), how);
    m2_.initialize(random.child(1), how);
  }

  Pair both(Tensor<T, 3, D> x, Saved& saved) const {
    auto y1 = m1_.forward(Tensor<T, 3, D>(x), saved.m1);
    return {std::move(y1), m2_.forward(std::move(x), saved.m2)};
  }
  Pair both(const View<const T, 3, D>& x, State* state) const {
    if (state == nullptr) return {infer(m1_, x), infer(m2_, x)};
    return {m1_.prefill(x, state->m1), m2_.prefill(x, state->m2)};
  }
  Tensor<T, 3, D> both_backward(const View<const T, 3, D>& dy1, const View<const T, 3, D>& dy2, Saved& saved) {
    auto dx = m1_.backward(dy1, saved.m1);
    const auto dx2 = m2_.backward(dy2, saved.m2);
    add_to(dx2.view(), dx.view());
    return dx;
  }
  State make_state(Index batch, const View<const accumulate_t<T>, 1, D>&, double) const {
    return {m1_.make_state(batch), m2_.make_state(batch)};
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    self.m1_.visit(prefixed("m1.", f));
    self.m2_.visit(prefixed("m2.", f));
  }

 private:
  Index d_model_;
  MixerType m1_, m2_;
};

}  // namespace diffmamba
