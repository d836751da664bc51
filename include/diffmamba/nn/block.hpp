// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/add_norm.hpp"
#include "diffmamba/nn/mixer.hpp"
#include "diffmamba/ops/dropout/dropout_backward.hpp"
#include "diffmamba/ops/dropout/dropout_forward.hpp"

namespace diffmamba {

struct BlockOptions {
  NormKind norm = NormKind::rms_norm;
  double eps = 1e-5;
  double dropout = 0.0;  // of the mixer's output, while training
  Recompute recompute = Recompute::nothing;
};

/// A pre-norm residual block around any mixer, as the official one: the residual stream, which stays in float, is added
/// to in the norm of the next block, so that sum and norm are one pass.
///
///   residual = hidden + residual;   hidden = mixer(norm(residual))
///
/// In a stack of blocks the first one has no residual, and the model's last norm adds the last hidden to it.
/// Parameters: norm.weight, norm.bias (LayerNorm), mixer.*.
template <Mixer MixerType>
class Block : public Module<Block<MixerType>> {
 public:
  using mixer_type = MixerType;
  using value_type = typename MixerType::value_type;
  using device_type = typename MixerType::device_type;
  using T = value_type;
  using D = device_type;
  using R = accumulate_t<T>;
  using State = typename MixerType::State;

  /// The norm's and the mixer's; with Recompute::mixer the norm's and sizeof(T) * d_model per token.
  struct Saved {
    typename AddNorm<T, D>::Saved norm;
    typename MixerType::Saved mixer;
    Tensor<T, 3, D> mixer_input;  // with Recompute::mixer, instead of the mixer's
    StepRandom random;            // of the dropout
    /// The residual stream as it left the block: what the next one adds to. Lives until backward.
    const Tensor<R, 3, D>& residual() const { return norm.residual; }
  };

  Block(Index d_model, const typename MixerType::Options& mixer, const BlockOptions& o = {})
      : options_(o), norm_(d_model, o.norm, o.eps), mixer_(mixer) {
    require(0 <= o.dropout && o.dropout < 1, "block: dropout is ", o.dropout, ", expected 0 or more and less than 1");
    set_recompute(o.recompute);
  }

  void initialize(Philox random, const Initialization& how = {}) {
    norm_.initialize();
    mixer_.initialize(random, how);
  }

  /// Training: the hidden states that leave the block; the residual stream is saved.residual(). An absent residual is
  /// zero. `random` draws the dropout and must differ from block to block and step to step.
  Tensor<T, 3, D> forward(const View<const T, 3, D>& hidden, const View<const R, 3, D>& residual, Saved& saved,
                          const StepRandom& random = {}) const {
    auto out = mix(norm_.forward(hidden, residual, saved.norm), saved);
    saved.random = random;
    if (options_.dropout > 0)
      dropout::forward(View<const T, 3, D>(out.view()), {.p = options_.dropout, .random = random}, out.view());
    return out;
  }
  /// From dL/d(hidden out) and, in `dresidual`, dL/d(residual out): dresidual becomes dL/d(hidden in) = dL/d(residual
  /// in), and `dhidden_in`, where it is given, the same in T. With activations in the type of sums, dhidden and
  /// dresidual may be the same memory; else dhidden and dhidden_in. Adds into the parameters' gradients.
  void backward(const View<const T, 3, D>& dhidden, const View<R, 3, D>& dresidual, Saved& saved,
                const View<T, 3, D>& dhidden_in = {}) {
    const bool again = bool(saved.mixer_input);
    if (again) (void)mixer_.forward(std::move(saved.mixer_input), saved.mixer);
    Tensor<T, 3, D> dropped;
    if (options_.dropout > 0) {
      dropped = Tensor<T, 3, D>::uninitialized(dhidden.extents());
      dropout::backward(dhidden, {.p = options_.dropout, .random = saved.random}, dropped.view());
    }
    const View<const T, 3, D> dout = dropped ? std::as_const(dropped).view() : dhidden;
    if constexpr (LeavesInput<MixerType>)
      if (!again) {
        const auto dmixed = mixer_.backward_to_input(dout, saved.mixer);
        auto x = Tensor<T, 3, D>::uninitialized(dmixed.extents());
        norm_.backward(dmixed, dresidual, dresidual, dhidden_in, saved.norm, x.view());
        mixer_.backward_of_parameters(x, saved.mixer);
        return;
      }
    const auto dmixed = mixer_.backward(dout, saved.mixer);
    norm_.backward(dmixed, dresidual, dresidual, dhidden_in, saved.norm);
  }

  /// Inference. residual (batch, length, d_model) is read unless `first`, and written.
  Tensor<T, 3, D> infer(const View<const T, 3, D>& hidden, const View<R, 3, D>& residual, bool first = false) const {
    return diffmamba::infer(mixer_, add_norm(hidden, residual, first).view());
  }
  /// The same for tokens that come after those which `state` has seen.
  Tensor<T, 3, D> prefill(const View<const T, 3, D>& hidden, const View<R, 3, D>& residual, State& state,
                          bool first = false) const {
    return mixer_.prefill(add_norm(hidden, residual, first), state);
  }
  /// One token of each sequence, from what the block before left to what this one leaves. residual (batch, 1, d_model)
  /// is absent in the first block; residual_out, other memory, is written.
  Hidden<T, D> decode(Hidden<T, D> hidden, const View<const R, 3, D>& residual, const View<R, 3, D>& residual_out,
                      State& state) const {
    if constexpr (requires(const normed_linear::Source<T, D>& source) { mixer_.decode(source, state); }) {
      if (const auto source = norm_.source(hidden, residual, residual_out))
        if (auto out = mixer_.decode(*source, state); out.rows) return out;
    }
    const auto rows = settled(std::move(hidden));
    return {mixer_.prefill(norm_.forward(rows, residual, residual_out), state)};
  }
  State make_state(Index batch) const { return mixer_.make_state(batch); }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    self.norm_.visit(prefixed("norm.", f));
    self.mixer_.visit(prefixed("mixer.", f));
  }

  /// From the next forward pass on.
  void set_recompute(Recompute recompute) {
    options_.recompute = recompute;
    set_recompute_convolution(mixer_, recompute == Recompute::convolution);
  }

  MixerType& mixer() { return mixer_; }
  const MixerType& mixer() const { return mixer_; }
  static constexpr std::string_view name() { return MixerType::name(); }

 private:
  Tensor<T, 3, D> mix(Tensor<T, 3, D> x, Saved& saved) const {
    if (options_.recompute == Recompute::mixer) {
      typename MixerType::Saved forgotten;
      saved.mixer_input = x;
      return mixer_.forward(std::move(x), forgotten);
    }
    if constexpr (LeavesInput<MixerType>)
      return mixer_.forward_leaving_input(x, saved.mixer);
    else
      return mixer_.forward(std::move(x), saved.mixer);
  }
  Tensor<T, 3, D> add_norm(const View<const T, 3, D>& hidden, const View<R, 3, D>& residual, bool first) const {
    return norm_.forward(hidden, first ? View<const R, 3, D>{} : View<const R, 3, D>(residual), residual);
  }

  BlockOptions options_;
  AddNorm<T, D> norm_;
  MixerType mixer_;
};

}  // namespace diffmamba
