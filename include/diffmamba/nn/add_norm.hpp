// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>  // std::optional

#include "diffmamba/nn/decoding.hpp"
#include "diffmamba/nn/linear_layer.hpp"  // fill_ones
#include "diffmamba/ops/layer_norm/layer_norm_backward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_forward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"

namespace diffmamba {

/// Which normalisation a model uses.
enum class NormKind { rms_norm, layer_norm };
template <>
struct EnumNames<NormKind> {
  static constexpr std::array<std::string_view, 2> values{"rms_norm", "layer_norm"};
};

/// The normalisation at the entrance of a block or before the head, fused with the addition to the residual stream:
///
///   residual_out = hidden + residual            (kept in float, also with 16-bit activations)
///   out          = norm(residual_out) * weight (+ bias, LayerNorm only)
template <class T, Device DeviceType = cpu>
class AddNorm : public Module<AddNorm<T, DeviceType>> {
  using D = DeviceType;
  using R = accumulate_t<T>;

 public:
  using value_type = T;
  using device_type = DeviceType;

  /// sizeof(T) * d_model per token (residual_out), and one or two numbers per token.
  struct Saved {
    Tensor<R, 3, D> residual;  // residual_out
    rms_norm::Saved<T, D> rms;
    layer_norm::Saved<T, D> layer;
  };

  explicit AddNorm(Index d_model, NormKind kind = NormKind::rms_norm, double eps = 1e-5)
      : kind_(kind), eps_(eps), weight_(Extents<1>{d_model}, Decay::no) {
    require(d_model >= 1, "AddNorm: d_model is ", d_model, ", expected 1 or more");
    require(eps >= 0, "AddNorm: eps is ", eps, ", expected 0 or more");
    if (kind == NormKind::layer_norm) bias_ = Parameter<R, 1, D>(Extents<1>{d_model}, Decay::no);
  }

  void initialize(Philox = {}, const Initialization& = {}) {
    fill_ones(weight_);
    if (bias_) fill_zeros(bias_);
  }

  /// The normalised sum; the sum itself is saved.residual, which the next block adds to. An absent residual is zero.
  Tensor<T, 3, D> forward(const View<const T, 3, D>& hidden, const View<const R, 3, D>& residual, Saved& saved) const {
    saved.residual = Tensor<R, 3, D>::uninitialized(hidden.extents());
    return run(hidden, residual, saved.residual.view(), &saved);
  }
  /// Inference: residual_out (which may be the memory of residual) is the sum; absent, it is not kept.
  Tensor<T, 3, D> forward(const View<const T, 3, D>& hidden, const View<const R, 3, D>& residual,
                          const View<R, 3, D>& residual_out) const {
    return run(hidden, residual, residual_out, nullptr);
  }
  /// The same for one token, as the beginning of the product behind it. LayerNorm has no such form: nothing.
  std::optional<normed_linear::Source<T, D>> source(const Hidden<T, D>& hidden, const View<const R, 3, D>& residual,
                                                    const View<R, 3, D>& residual_out) const {
    if (kind_ != NormKind::rms_norm) return std::nullopt;
    return normed_linear::Source<T, D>{.x = as_rows(hidden.rows),
                                       .before = hidden.due,
                                       .residual = residual ? as_rows(residual) : View<const R, 2, D>{},
                                       .residual_out = as_rows(residual_out),
                                       .norm = {.weight = weight_.value(), .eps = eps_}};
  }
  /// From dL/d(out) and dL/d(residual_out), which is absent where nothing uses the sum: dresidual, which may be the
  /// memory of dresidual_out, becomes dL/d(hidden) = dL/d(residual), and with 16-bit activations `dhidden`, which may
  /// be the memory of dout, the same rounded. Adds into the parameters' gradients. `out` becomes what forward returned.
  void backward(const View<const T, 3, D>& dout, const View<const R, 3, D>& dresidual_out,
                const View<R, 3, D>& dresidual, const View<T, 3, D>& dhidden, Saved& saved,
                const View<T, 3, D>& out = {}) {
    require(bool(saved.residual), "AddNorm: backward without a forward before it; every Saved serves once");
    const rms_norm::Inputs<T, D> in{.x = View<const T, 3, D>(nullptr, saved.residual.extents()),
                                    .weight = std::as_const(weight_).value(),
                                    .bias = std::as_const(bias_).value()};
    const rms_norm::OutputGradients<T, D> upstream{
        .dout = dout, .dresidual_out = dresidual_out, .residual_out = saved.residual};
    const rms_norm::GradientViews<T, D> gradients{
        .dx = dhidden, .dresidual = dresidual, .dweight = weight_.gradient(), .dbias = bias_.gradient(), .out = out};
    if (kind_ == NormKind::rms_norm) {
      Workspace<D> workspace(rms_norm::workspace_bytes(in));
      rms_norm::backward(in, saved.rms, upstream, gradients, workspace, GradientMode::add);
    } else {
      Workspace<D> workspace(layer_norm::workspace_bytes(in));
      layer_norm::backward(in, saved.layer, upstream, gradients, workspace, GradientMode::add);
    }
    saved.residual = {};
  }
  /// Where activations have the type of sums: dresidual holds dL/d(residual_out) and becomes dL/d(hidden).
  void backward(const View<const T, 3, D>& dout, const View<R, 3, D>& dresidual, Saved& saved) {
    backward(dout, dresidual, dresidual, {}, saved);
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    f("weight", self.weight_);
    if (self.bias_) f("bias", self.bias_);
  }

 private:
  Tensor<T, 3, D> run(const View<const T, 3, D>& hidden, const View<const R, 3, D>& residual,
                      const View<R, 3, D>& residual_out, Saved* saved) const {
    auto out = Tensor<T, 3, D>::uninitialized(hidden.extents());
    const rms_norm::Inputs<T, D> in{
        .x = hidden, .weight = weight_.value(), .bias = bias_.value(), .residual = residual};
    const rms_norm::OutputViews<T, D> outputs{.out = out, .residual_out = residual_out};
    const rms_norm::Options options{.eps = eps_};
    if (kind_ == NormKind::rms_norm)
      rms_norm::forward(in, options, outputs, saved != nullptr ? &saved->rms : nullptr);
    else
      layer_norm::forward(in, options, outputs, saved != nullptr ? &saved->layer : nullptr);
    return out;
  }

  NormKind kind_;
  double eps_;
  Parameter<R, 1, D> weight_, bias_;
};

}  // namespace diffmamba
