// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

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

  /// The inner's, and per token sizeof(T) * (d_model + width): x and what goes into out_proj.
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
    saved.gated = inner_.forward(std::as_const(saved.x), saved.inner);
    return out_proj_.forward(saved.gated);
  }
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x) const { return out_proj_.forward(inner_.forward(x)); }

  Tensor<T, 3, D> backward(const View<const T, 3, D>& dout, Saved& saved) {
    require(bool(saved.gated), "backward without a forward before it; every Saved serves once");
    auto dgated = out_proj_.backward(saved.gated, dout);
    saved.gated = {};
    auto dx = inner_.backward(saved.x, dgated, saved.inner);
    saved.x = {};
    return dx;
  }

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

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    Inner::parameters(self.inner_, 0, f);
    Linear<T, D>::parameters(self.out_proj_, prefixed("out_proj.", f));
  }

  const Inner& inner() const { return inner_; }

 private:
  Inner inner_;
  Linear<T, D> out_proj_;
};

}  // namespace diffmamba
