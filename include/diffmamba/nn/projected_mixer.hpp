// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/decoding.hpp"
#include "diffmamba/nn/linear_layer.hpp"
#include "diffmamba/nn/mixer.hpp"

namespace diffmamba {

/// The part of a mixer before its output projection, over any number of paths at once: the same computation with
/// weights of its own for each path, all of them in one call.
///
///   Inner(const Options&, Index paths);
///   std::array<Index, n> roles() const;            // widths of what one path hands to out_proj, see below
///   Index d_model() const;   bool bias() const;    // whether out_proj has a bias
///   Tensor forward(View x, Saved&) const;          // (batch, length, d_model) -> (batch, length, paths * width)
///   Tensor forward(View x, State* = nullptr) const;
///   Tensor backward(View x, View dgated, Saved&);  // dx; dgated may be overwritten; x as forward got it
///   State make_state(Index batch) const;
///   void initialize(Philox, const Initialization&);
///   static void parameters(Self&, Index path, F&&);
///
/// An inner that can write its result again in the backward pass, so that nobody keeps it, says so, and has
///
///   bool rebuilds_gated() const;                   // whether it does with these options
///   Tensor backward(View x, View dgated, Saved&, use);   // calls use(View gated) as soon as it has that
///
/// One that needs x only at the end has that backward in two parts, and its mixer leaves x to the caller (LeavesInput):
///
///   Tensor backward_to_input(View dgated, Saved&, use);  // dx
///   void backward_of_parameters(View x, Saved&);         // the gradients of its projection
///
/// The result is stacked role by role: [role 1 of path 1, of path 2 | role 2 of path 1, of path 2 | ...]. Most inners
/// have one role.
template <class Inner>
concept InnerOfPaths = requires(Inner& inner, const Inner& constant, const typename Inner::Options& options,
                                View<const typename Inner::value_type, 3, typename Inner::device_type> x,
                                View<typename Inner::value_type, 3, typename Inner::device_type> dgated,
                                typename Inner::Saved& saved, typename Inner::State* state) {
  Inner(options, Index{});
  constant.roles()[0];
  { constant.d_model() } -> std::convertible_to<Index>;
  { constant.bias() } -> std::convertible_to<bool>;
  constant.forward(x, saved);
  constant.forward(x, state);
  inner.backward(x, dgated, saved);
  { constant.make_state(Index{}) } -> std::same_as<typename Inner::State>;
};

/// A mixer that can run several paths as one: it has an Inner.
template <class M>
concept MixerOfPaths = Mixer<M> && InnerOfPaths<typename M::Inner>;

/// What one path hands to out_proj: the sum of its roles.
template <class Inner>
Index width_of(const Inner& inner) {
  Index width = 0;
  for (const Index role : inner.roles()) width += role;
  return width;
}

/// Whether an inner's result need not be kept: its backward pass writes it again.
template <class Inner>
bool rebuilds_gated(const Inner& inner) {
  if constexpr (requires { inner.rebuilds_gated(); })
    return inner.rebuilds_gated();
  else
    return false;
}

/// dL/dx of an inner from dL/d(its result). use(gated) sees the result: `kept`, or written again where that is empty.
template <class Inner, class T, class D, class Use>
Tensor<T, 3, D> backward_through(Inner& inner, const View<const T, 3, D>& x, const View<T, 3, D>& dgated,
                                 Tensor<T, 3, D> kept, typename Inner::Saved& saved, Use&& use) {
  if constexpr (requires { inner.rebuilds_gated(); })
    if (!kept) return inner.backward(x, dgated, saved, use);
  use(std::as_const(kept).view());
  kept = {};
  return inner.backward(x, dgated, saved);
}

/// An inner whose backward pass comes in two parts.
template <class Inner>
concept InnerLeavesInput = requires(Inner& inner,
                                    View<const typename Inner::value_type, 3, typename Inner::device_type> x,
                                    View<typename Inner::value_type, 3, typename Inner::device_type> dgated,
                                    typename Inner::Saved& saved) {
  inner.backward_to_input(dgated, saved, nullptr);
  inner.backward_of_parameters(x, saved);
};

/// backward_through, but for the gradients that need x.
template <InnerLeavesInput Inner, class T, class D, class Use>
Tensor<T, 3, D> backward_to_input_through(Inner& inner, const View<T, 3, D>& dgated, Tensor<T, 3, D> kept,
                                          typename Inner::Saved& saved, Use&& use) {
  if (!kept) return inner.backward_to_input(dgated, saved, use);
  use(std::as_const(kept).view());
  kept = {};
  return inner.backward_to_input(dgated, saved, nullptr);
}

/// An inner of one path and an output projection: Mamba and Mamba-2.
template <InnerOfPaths InnerType>
class ProjectedMixer : public Module<ProjectedMixer<InnerType>> {
 public:
  using Inner = InnerType;
  using value_type = typename Inner::value_type;
  using device_type = typename Inner::device_type;
  using Options = typename Inner::Options;
  using State = typename Inner::State;
  using T = value_type;
  using D = device_type;

  /// The inner's, and per token sizeof(T) * d_model: x, unless it is left to the caller. What goes into out_proj is
  /// kept only (sizeof(T) * width) where the inner's backward pass cannot write it again.
  struct Saved {
    Tensor<T, 3, D> x, gated;
    typename Inner::Saved inner;
  };

  explicit ProjectedMixer(const Options& options)
      : inner_(options, 1), out_proj_(width_of(inner_), inner_.d_model(), inner_.bias()) {}

  void initialize(Philox random, const Initialization& how = {}) {
    inner_.initialize(random, how);
    out_proj_.initialize(random.child(1), how);
    scale_by(out_proj_.weight, how.residual_scale);
  }

  Tensor<T, 3, D> forward(Tensor<T, 3, D> x, Saved& saved) const {
    saved.x = std::move(x);
    return project(inner_.forward(std::as_const(saved.x), saved.inner), saved);
  }
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x) const { return out_proj_.forward(inner_.forward(x)); }

  Tensor<T, 3, D> backward(const View<const T, 3, D>& dout, Saved& saved) {
    require(bool(saved.x), "backward without a forward before it; every Saved serves once");
    auto dgated = out_proj_.backward_input(dout);
    const auto x = std::move(saved.x);
    return backward_through(inner_, x.view(), dgated.view(), std::move(saved.gated), saved.inner,
                            [&](const View<const T, 3, D>& gated) { out_proj_.backward_parameters(gated, dout); });
  }

  // See LeavesInput.
  Tensor<T, 3, D> forward_leaving_input(const View<const T, 3, D>& x,
                                        Saved& saved) const requires InnerLeavesInput<Inner> {
    return project(inner_.forward(x, saved.inner), saved);
  }
  Tensor<T, 3, D> backward_to_input(const View<const T, 3, D>& dout, Saved& saved) requires InnerLeavesInput<Inner> {
    auto dgated = out_proj_.backward_input(dout);
    return backward_to_input_through(
        inner_, dgated.view(), std::move(saved.gated), saved.inner,
        [&](const View<const T, 3, D>& gated) { out_proj_.backward_parameters(gated, dout); });
  }
  void backward_of_parameters(const View<const T, 3, D>& x, Saved& saved) requires InnerLeavesInput<Inner> {
    inner_.backward_of_parameters(x, saved.inner);
  }

  void set_recompute_convolution(bool recompute) { diffmamba::set_recompute_convolution(inner_, recompute); }
  State make_state(Index batch) const { return inner_.make_state(batch); }
  Tensor<T, 3, D> prefill(const View<const T, 3, D>& x, State& state) const {
    return out_proj_.forward(inner_.forward(x, &state));
  }
  /// One token of each sequence: (batch, d_model) to the same.
  Tensor<T, 2, D> step(const View<const T, 2, D>& x, State& state) const {
    const auto gated = inner_.forward(x.reshape(Extents{x.extent(0), Index{1}, x.extent(1)}), &state);
    auto out = Tensor<T, 2, D>::uninitialized(Extents{x.extent(0), inner_.d_model()});
    linear::forward(
        linear::Inputs<T, D>{.x = as_rows(gated), .weight = out_proj_.weight.value(), .bias = out_proj_.bias.value()},
        out.view());
    return out;
  }

  Hidden<T, D> decode(const normed_linear::Source<T, D>& source, State& state) const {
    if constexpr (requires { inner_.decode(source, out_proj_.weight.value(), out_proj_.bias.value(), state); })
      return {inner_.decode(source, out_proj_.weight.value(), out_proj_.bias.value(), state)};
    else
      return {};
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    Inner::parameters(self.inner_, 0, f);
    Linear<T, D>::parameters(self.out_proj_, prefixed("out_proj.", f));
  }

  const Inner& inner() const { return inner_; }

 private:
  Tensor<T, 3, D> project(Tensor<T, 3, D> gated, Saved& saved) const {
    auto out = out_proj_.forward(gated);
    if (!rebuilds_gated(inner_)) saved.gated = std::move(gated);
    return out;
  }

  Inner inner_;
  Linear<T, D> out_proj_;
};

}  // namespace diffmamba
