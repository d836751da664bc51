// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::all_of, std::min
#include <cmath>      // std::sqrt, std::isfinite
#include <cstdint>    // std::int32_t
#include <string>     // std::string
#include <utility>    // std::as_const
#include <variant>    // std::variant, std::visit
#include <vector>     // std::vector

#include "diffmamba/model/builtin_mixers.hpp"
#include "diffmamba/model/model_config.hpp"
#include "diffmamba/nn/add_norm.hpp"
#include "diffmamba/nn/block.hpp"
#include "diffmamba/nn/linear_layer.hpp"  // as_rows, draw_linear
#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"
#include "diffmamba/ops/dropout/dropout_backward.hpp"
#include "diffmamba/ops/dropout/dropout_forward.hpp"
#include "diffmamba/ops/embedding/embedding_backward.hpp"
#include "diffmamba/ops/embedding/embedding_forward.hpp"

namespace diffmamba {

/// What a training step needs to know besides the batch.
struct BackwardOptions {
  double scale = 1.0;       // of the loss whose gradient is taken: 1 / n when n batches are accumulated
  StepRandom dropout = {};  // one of its own for each batch; nothing is drawn if the model's dropout is 0
  GradientMode gradients = GradientMode::add;  // assign: what the parameters' gradients were counts no more
};

namespace detail {

/// Host memory where the model's device reads it: on the CPU the same, on a GPU a copy.
template <class T, int Rank, Device DeviceType>
class OnDevice {
 public:
  explicit OnDevice(const View<const T, Rank, cpu>& host) : copy_(to<DeviceType>(host)) {}
  View<const T, Rank, DeviceType> view() const { return copy_.view(); }

 private:
  Tensor<T, Rank, DeviceType> copy_;
};
template <class T, int Rank>
class OnDevice<T, Rank, cpu> {
 public:
  explicit OnDevice(const View<const T, Rank, cpu>& host) : view_(host) {}
  const View<const T, Rank, cpu>& view() const { return view_; }

 private:
  View<const T, Rank, cpu> view_;
};

}  // namespace detail

/// A language model: embedding, residual blocks of any mixers, a norm, and a head that is the embedding again or a
/// matrix of its own.
///
///   dm::LanguageModel<dm::cpu> model({.d_model = 256, .vocab_size = 256, .layers = dm::all("diff_mamba2", 4)});
///   dm::initialize(model, dm::Philox{1});
///   model.zero_gradients();
///   double loss = model.forward_backward(batch.inputs, batch.targets);  // adds into the parameters' gradients
///   auto state = model.prefill(prompt);                                 // (1, length) tokens, in one pass
///   model.step(token, state);                                           // constant time; state.logits are the next
///   ones
///
/// Which mixer stands in which layer is data: the configuration's names are matched with the name() of the mixer types
/// that the model knows, which are the library's own unless they are listed, as in LanguageModel<cpu, float, float,
/// Mamba2<float>, MyMixer>. Parameters lie in one flat array, gradients in another one that a model which only infers
/// never has (`flat`); `visit` hands them out under the names of the official checkpoints.
///
/// Compute is the type of activations and of the matrices that operators multiply with, Param that in which all
/// parameters, their gradients and the residual stream are kept: the type of sums. On the CPU both are float or both
/// double. On a GPU, LanguageModel<cuda, bfloat16> has float parameters with a bfloat16 shadow of the matrices;
/// `release_masters` gives up what only training needs. The source is the same for both devices, and so is what it
/// computes, up to rounding.
///
/// Tokens come from the host: they are checked and uploaded. The members whose names end in _on_device take tokens that
/// already lie there, look at no value, wait for nothing and take memory from the arena only, so that after a first
/// call for a shape they can be captured in a graph; they are what the others are made of.
///
/// Memory that a training step over n = batch * length tokens takes besides parameters and gradients, in elements:
///
///   n * (2 d_model + 1 + sum over the layers of (d_model + 1 + what the mixer states))   kept by forward for backward
///   + min(n, head_rows) * padded_vocab_size                                              logits, then their gradients
///   + n * (3 d_model + what one mixer's backward pass takes)                             gradients, a layer at a time
///
/// Of the last two lines the larger counts: the logits are gone when the layers' turn comes. For Mamba-2 and its
/// differential form the third names Mamba2Sizes::backward_elements, and a scan takes up to a tenth of the line more
/// for its chunks. Nothing is ever taken per layer but what the first line says; `saved_bytes` is its value in the last
/// step, counted. All grow at most in proportion to n: the arena's peak_bytes after a step on a small batch tells that
/// of a large one. On the CPU the process grows by some 15 MiB beyond the arena (stacks and packed operands of
/// threads).
///
/// A mixer that leaves its input to its block (LeavesInput) counts without it. With set_recompute(Recompute::mixer) a
/// layer keeps 2 d_model + 1 (the residual stream and the mixer's input) instead of d_model + 1 and what the mixer
/// states, which exists for one layer at a time, and each mixer's forward pass is run twice; with
/// Recompute::convolution it keeps all but the result of the convolution.
///
/// Const members may be called from several threads at once, each with a State of its own.
template <Device DeviceType, class Compute = float, class Param = accumulate_t<Compute>, class... Mixers>
class LanguageModel : public Module<LanguageModel<DeviceType, Compute, Param, Mixers...>> {
  static_assert(std::is_same_v<Param, accumulate_t<Compute>>,
                "LanguageModel: parameters are kept in the type of sums: float, and double with double activations");
  static_assert(!std::is_same_v<DeviceType, cpu> || std::is_same_v<Compute, Param>,
                "LanguageModel: on the CPU activations and weights are both float or both double");
  static_assert((Mixer<Mixers> && ...),
                "LanguageModel: every type after Param must be a Mixer; nn/mixer.hpp says what that is");

 public:
  using value_type = Compute;
  using device_type = DeviceType;
  using T = Compute;
  using R = Param;
  using D = DeviceType;
  using Tokens = View<const std::int32_t, 2, cpu>;      // (batch, length)
  using DeviceTokens = View<const std::int32_t, 2, D>;  // the same where the model is
  using Labels = View<const std::int32_t, 1, D>;

  /// The mixers that a configuration can name.
  using Known = typename std::conditional_t<sizeof...(Mixers) == 0, BuiltinMixers<T, D>,
                                            std::type_identity<MixerList<Mixers...>>>::type;
  using AnyBlock = typename Known::Blocks;

  /// Rows of the head's product at a time: more would not be faster, and no more logits exist at once.
  static constexpr Index head_rows = std::is_same_v<D, cpu> ? 2048 : 8192;

  /// What decoding carries along, a value: copy it, keep it, go back to it. Its tensors keep their memory while tokens
  /// are added.
  struct State {
    std::vector<typename Known::States> layers;
    Tensor<R, 2, D> logits;  // (batch, padded_vocab_size), of the token that follows
    Index position = 0;      // tokens seen
    /// On a GPU, for models of bfloat16 with Mamba-2 in all layers: the states of the scans are kept in bfloat16 from
    /// now on, which halves what a batch of sequences has to move for every token, and rounds them at every token (the
    /// error of the logits is then about a percent). Throws Error where a layer has no such form, before any is
    /// changed.
    void shorten() {
      const auto visit_layers = [this](auto&& what) {
        for (auto& layer : layers) std::visit(what, layer);
      };
      visit_layers([](auto& one) {
        require(
            requires { one.shorten(); }, "model: a layer whose states cannot be kept in 16 bits");
      });
      visit_layers([](auto& one) {
        if constexpr (requires { one.shorten(); }) one.shorten();
      });
    }
    Index batch() const { return logits.extent(0); }
  };

  explicit LanguageModel(const ModelConfig& config)
      : config_(checked(config)),
        embedding_(Extents{config_.padded_vocab_size(), config_.d_model.get()}),
        norm_f_(config_.d_model, block_options().norm, config_.norm_epsilon) {
    for (Index layer = 0; layer < layers(); ++layer) blocks_.push_back(make_block(layer));
    check_model_wide_options();
    if (!config_.tie_embeddings) lm_head_ = Parameter<T, 2, D>(embedding_.extents());
    embedding_.set_written_whole();
    lm_head_.set_written_whole();
    flat_ = bind(*this);
  }
  /// Copies are deep and have no gradients.
  LanguageModel(const LanguageModel& other)
      : config_(other.config_),
        embedding_(other.embedding_),
        blocks_(other.blocks_),
        norm_f_(other.norm_f_),
        lm_head_(other.lm_head_) {
    flat_ = bind(*this);
  }
  LanguageModel(LanguageModel&&) noexcept = default;
  LanguageModel& operator=(LanguageModel other) noexcept {
    std::swap(config_, other.config_);
    std::swap(embedding_, other.embedding_);
    std::swap(blocks_, other.blocks_);
    std::swap(norm_f_, other.norm_f_);
    std::swap(lm_head_, other.lm_head_);
    std::swap(flat_, other.flat_);
    saved_ = {};
    return *this;
  }

  const ModelConfig& config() const { return config_; }
  Index layers() const { return static_cast<Index>(config_.layers.size()); }
  std::vector<AnyBlock>& blocks() { return blocks_; }
  const std::vector<AnyBlock>& blocks() const { return blocks_; }
  /// All values and, once there are some, all gradients, as one array each.
  FlatParameters<T, D>& flat() { return flat_; }
  const FlatParameters<T, D>& flat() const { return flat_; }

  /// As the official package does: the embedding normal with initializer_range, weights that write into the residual
  /// stream divided by sqrt(layers), each mixer as its module does it; a head of its own as torch's Linear.
  void initialize(Philox random, const Initialization& how = {}) {
    draw_parameter(embedding_,
                   [&](auto& values) { fill_normal(values, random.child(0), 0.0, config_.initializer_range); });
    if (lm_head_) draw_linear(lm_head_, config_.d_model, random.child(1));
    norm_f_.initialize();
    Initialization inner = how;
    if (config_.rescale_prenorm_residual) inner.residual_scale /= std::sqrt(static_cast<double>(layers()));
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      std::visit([&](auto& block) { block.initialize(random.child(2 + i), inner); }, blocks_[i]);
  }

  /// Zeros in the flat array of gradients, which exists from the first call on.
  void zero_gradients() {
    bind_gradients(*this, flat_);
    const auto gradients = flat_.gradients();
    fill_elements(D{}, gradients.data(), gradients.size(), R{});
  }

  /// For inference only: gives up the gradients, and with 16-bit activations the float masters of the matrices, of
  /// which the 16-bit ones remain. From then on training throws. Nothing happens where Compute is Param.
  void release_masters() { diffmamba::release_masters(*this, flat_); }

  /// Trades time for memory: see above. Changes no bit of any result.
  void set_recompute(Recompute recompute) {
    for (auto& any : blocks_) std::visit([&](auto& block) { block.set_recompute(recompute); }, any);
  }

  /// Throws Error for a token out of range.
  void check_tokens(const Tokens& tokens) const {
    for (Index b = 0; b < tokens.extent(0); ++b)
      for (Index t = 0; t < tokens.extent(1); ++t)
        require(0 <= tokens(b, t) && tokens(b, t) < config_.vocab_size, "model: token ", tokens(b, t), " at position (",
                b, ", ", t, ") is out of range, the vocabulary has ", config_.vocab_size.get());
  }
  /// The same for a batch, its shapes, and its targets. Returns how many of them count.
  Index check_batch(const Tokens& tokens, const Tokens& targets) const {
    require(tokens.size() > 0, "model: a batch of shape ", tokens.extents(), " has no tokens");
    require_shape("model", "targets", targets, tokens.extents());
    require(targets.contiguous(), "model: targets must lie densely");
    check_tokens(tokens);
    Index kept = 0;
    for (Index b = 0; b < targets.extent(0); ++b)
      for (Index t = 0; t < targets.extent(1); ++t) {
        if (targets(b, t) == loss_options().ignore_index) continue;
        require(0 <= targets(b, t) && targets(b, t) < config_.vocab_size, "model: target ", targets(b, t),
                " at position (", b, ", ", t, ") is out of range, the vocabulary has ", config_.vocab_size.get());
        ++kept;
      }
    return kept;
  }

  /// Logits of every position: (batch, length) tokens to (batch, length, padded_vocab_size). Throws Error for a token
  /// out of range.
  Tensor<T, 3, D> forward(const Tokens& tokens) const {
    check_tokens(tokens);
    const auto hidden = infer(detail::OnDevice<std::int32_t, 2, D>(tokens).view());
    auto logits = Tensor<T, 3, D>::uninitialized({tokens.extent(0), tokens.extent(1), config_.padded_vocab_size()});
    linear::forward(linear::Inputs<T, D>{.x = as_rows(hidden), .weight = head()}, as_rows(logits));
    return logits;
  }

  /// Mean of -ln p(target) over the targets; those of -100 do not count. NaN if none does.
  double loss(const Tokens& tokens, const Tokens& targets) const {
    check_batch(tokens, targets);
    auto result = Tensor<R, 1, D>::uninitialized({1});
    loss_on_device(detail::OnDevice<std::int32_t, 2, D>(tokens).view(),
                   detail::OnDevice<std::int32_t, 2, D>(targets).view(), result.view());
    return number(result);
  }
  void loss_on_device(const DeviceTokens& tokens, const DeviceTokens& targets, const View<R, 1, D>& loss) const {
    const auto factors = kept_factors(targets, 1.0);
    const auto hidden = infer(tokens);
    over_head(as_rows(hidden), targets,
              [&](const View<T, 2, D>& logits, const Labels& labels, Index begin, auto& workspace) {
                cross_entropy::forward(cross_entropy::Inputs<T, std::int32_t, D>{.logits = logits, .labels = labels},
                                       loss_options(), loss, begin == 0 ? GradientMode::assign : GradientMode::add,
                                       workspace);
              });
    multiply_by(loss, View<const R, 1, D>(factors.template slice<0>(1, 2)));
  }

  /// The same while training, with dropout; adds the gradient of options.scale times it into the parameters' gradients.
  double forward_backward(const Tokens& tokens, const Tokens& targets, const BackwardOptions& options = {}) {
    check_batch(tokens, targets);
    auto result = Tensor<R, 1, D>::uninitialized({1});
    forward_backward_on_device(detail::OnDevice<std::int32_t, 2, D>(tokens).view(),
                               detail::OnDevice<std::int32_t, 2, D>(targets).view(), result.view(), options);
    return number(result);
  }
  /// Writes the mean loss to `loss`, (1).
  void forward_backward_on_device(const DeviceTokens& tokens, const DeviceTokens& targets, const View<R, 1, D>& loss,
                                  const BackwardOptions& options = {}) {
    begin_gradients(options.gradients);
    const std::size_t bytes_before = arena<D>().bytes_in_use();
    const auto hidden = forward_saving(tokens, options.dropout);
    saved_bytes_ = arena<D>().bytes_in_use() - bytes_before;
    auto dhidden = Tensor<T, 3, D>::uninitialized(hidden.extents());
    const auto rows = as_rows(hidden);
    const auto factors = kept_factors(targets, options.scale);
    const auto factor = factors.template slice<0>(0, 1);
    over_head(rows, targets, [&](const View<T, 2, D>& logits, const Labels& labels, Index begin, auto& workspace) {
      const auto& dlogits = logits;  // the gradient takes their place
      cross_entropy::forward_backward(cross_entropy::Inputs<T, std::int32_t, D>{.logits = logits, .labels = labels},
                                      loss_options(), dlogits, factor, loss,
                                      begin == 0 ? GradientMode::assign : GradientMode::add, workspace);
      const Index end = begin + logits.extent(0);
      const GradientMode mode = head_parameter().gradient_mode();
      linear::backward(
          linear::Inputs<T, D>{.x = rows.template slice<0>(begin, end), .weight = head()}, View<const T, 2, D>(dlogits),
          linear::GradientViews<T, D>{.dx = as_rows(dhidden).template slice<0>(begin, end), .dweight = head_gradient()},
          mode);
    });
    multiply_by(loss, View<const R, 1, D>(factors.template slice<0>(1, 2)));
    backward(tokens, std::move(dhidden), options.dropout);
  }
  /// Adds the gradients for a given dL/dlogits, (batch, length, padded_vocab_size), of the same tokens.
  void backward_from_logits(const Tokens& tokens, const View<const T, 3, D>& dlogits,
                            const BackwardOptions& options = {}) {
    require_shape("model", "dlogits", dlogits,
                  Extents{tokens.extent(0), tokens.extent(1), config_.padded_vocab_size()});
    check_tokens(tokens);
    begin_gradients(options.gradients);
    const detail::OnDevice<std::int32_t, 2, D> there(tokens);
    const auto hidden = forward_saving(there.view(), options.dropout);
    auto dhidden = Tensor<T, 3, D>::uninitialized(hidden.extents());
    const GradientMode mode = head_parameter().gradient_mode();
    linear::backward(linear::Inputs<T, D>{.x = as_rows(hidden), .weight = head()}, as_rows(dlogits),
                     linear::GradientViews<T, D>{.dx = as_rows(dhidden), .dweight = head_gradient()}, mode);
    backward(there.view(), std::move(dhidden), options.dropout);
  }

  /// Bytes that the last training step's forward pass kept for its backward pass.
  std::size_t saved_bytes() const { return saved_bytes_; }

  /// A state that has seen nothing; its logits are zero.
  State make_state(Index batch = 1) const {
    require(batch >= 0, "model: a state of ", batch, " sequences");
    State state;
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      state.layers.push_back(with_block(i, [&]<std::size_t place>(const auto& block) {
        return typename Known::States(std::in_place_index<place>, block.make_state(batch));
      }));
    state.logits = Tensor<R, 2, D>({batch, config_.padded_vocab_size()});
    return state;
  }
  /// Lets the state see (batch, length) more tokens in one pass. Only the last position's logits are computed.
  void prefill(const Tokens& tokens, State& state) const {
    check_tokens(tokens);
    prefill_on_device(detail::OnDevice<std::int32_t, 2, D>(tokens).view(), state);
  }
  void prefill_on_device(const DeviceTokens& tokens, State& state) const {
    const Index batch = tokens.extent(0), length = tokens.extent(1);
    require(batch == state.batch(), "model: ", batch, " rows of tokens for a state of ", state.batch(), " sequences");
    if (batch == 0 || length == 0) return;
    if (length == 1) return decode(tokens, state);
    auto hidden = embed(tokens);
    auto residual = Tensor<R, 3, D>::uninitialized(hidden.extents());
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      hidden = with_block(i, [&]<std::size_t place>(const auto& block) {
        return block.prefill(hidden, residual, std::get<place>(state.layers[i]), i == 0);
      });
    const auto last = norm_f_.forward(std::as_const(hidden).template slice<1>(length - 1, length),
                                      std::as_const(residual).template slice<1>(length - 1, length), {});
    linear::forward(linear::Inputs<T, D>{.x = as_rows(last), .weight = head()}, state.logits.view());
    state.position += length;
  }
  State prefill(const Tokens& tokens) const {
    State state = make_state(tokens.extent(0));
    prefill(tokens, state);
    return state;
  }
  /// One more token of each sequence, (batch). Constant time and memory; takes nothing from the system after the first.
  void step(const View<const std::int32_t, 1, cpu>& tokens, State& state) const {
    prefill(tokens.reshape(Extents{tokens.extent(0), Index{1}}), state);
  }
  void step(std::int32_t token, State& state) const { step(View<const std::int32_t, 1, cpu>(&token, {1}), state); }
  void step_on_device(const View<const std::int32_t, 1, D>& tokens, State& state) const {
    prefill_on_device(tokens.reshape(Extents{tokens.extent(0), Index{1}}), state);
  }

  /// The first thing that is not finite, in words, for the message of a training run that went wrong: a parameter by
  /// its name, else the layer whose output it is. Empty if there is none.
  std::string first_not_finite(const Tokens& tokens) const {
    std::string found;
    this->visit([&](std::string_view name, auto& parameter) {
      if (found.empty() && !all_finite(parameter.to_tensor())) found = "the parameter " + std::string(name);
    });
    if (!found.empty()) return found;
    check_tokens(tokens);
    auto hidden = embed(detail::OnDevice<std::int32_t, 2, D>(tokens).view());
    auto residual = Tensor<R, 3, D>::uninitialized(hidden.extents());
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      hidden = with_block(i, [&]<std::size_t>(const auto& block) { return block.infer(hidden, residual, i == 0); });
      if (!all_finite(hidden)) return "the output of layer " + std::to_string(i) + " (" + config_.layers[i].mixer + ")";
    }
    if (!all_finite(norm_f_.forward(hidden, residual, {}))) return "the output of the last norm";
    return "";
  }
  /// The last parameter, as backward meets them, whose gradient is not finite: where it began. Empty if there is none.
  std::string first_gradient_not_finite() const {
    std::string found;
    this->visit([&](std::string_view name, auto& parameter) {
      if (!all_finite(parameter.gradient_to_tensor())) found = "the gradient of " + std::string(name);
    });
    return found;
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    f("backbone.embedding.weight", self.embedding_);
    for (std::size_t i = 0; i < self.blocks_.size(); ++i) {
      auto named = prefixed("backbone.layers." + std::to_string(i) + ".", f);
      std::visit([&](auto& block) { block.visit(named); }, self.blocks_[i]);
    }
    self.norm_f_.visit(prefixed("backbone.norm_f.", f));
    if (self.lm_head_) f("lm_head.weight", self.lm_head_);
  }

 private:
  struct Saved {
    std::vector<typename Known::Saved> layers;
    typename AddNorm<T, D>::Saved norm;
  };

  static const ModelConfig& checked(const ModelConfig& config) {
    check(config);
    return config;
  }

  // Blocks by name: the first type whose mixer is called so.
  template <std::size_t place = 0>
  AnyBlock make_block(Index layer) const {
    const std::string& wanted = config_.layers[static_cast<std::size_t>(layer)].mixer;
    if constexpr (place == std::variant_size_v<AnyBlock>) {
      fail("model: layer ", layer, " is called \"", wanted, "\"; this model knows ", Known::names());
    } else {
      using B = std::variant_alternative_t<place, AnyBlock>;
      if (wanted != B::name()) return make_block<place + 1>(layer);
      using M = typename B::mixer_type;
      return AnyBlock(std::in_place_index<place>, config_.d_model.get(), layer_options<M>(config_, layer),
                      block_options());
    }
  }
  BlockOptions block_options() const {
    return {.norm = config_.rms_norm ? NormKind::rms_norm : NormKind::layer_norm,
            .eps = config_.norm_epsilon,
            .dropout = config_.dropout};
  }
  void check_model_wide_options() const {
    for (const auto& [name, value] : config_.mixer) {
      MixerOptions one;
      one.set(name, value);
      bool known = false;
      for (const auto& any : blocks_)
        known |= std::visit(
            [&](const auto& block) {
              using M = typename std::remove_cvref_t<decltype(block)>::mixer_type;
              auto options = mixer_options<M>(config_.d_model, 0);
              return detail::assign_options(options, one, M::name()) > 0;
            },
            any);
      require(known, "model: none of its mixers has an option ", name);
    }
  }

  // A layer's block, together with the place of its type, where Saved and State have theirs:
  // f.operator()<place>(block).
  template <class F>
  auto with_block(std::size_t layer, F&& f) const {
    return dispatch<0>(*this, layer, f);
  }
  template <class F>
  auto with_block(std::size_t layer, F&& f) {
    return dispatch<0>(*this, layer, f);
  }
  template <std::size_t place, class Self, class F>
  static auto dispatch(Self& self, std::size_t layer, F& f) {
    if constexpr (place + 1 < std::variant_size_v<AnyBlock>)
      if (self.blocks_[layer].index() != place) return dispatch<place + 1>(self, layer, f);
    return f.template operator()<place>(std::get<place>(self.blocks_[layer]));
  }

  /// One token of each sequence. The residual stream goes back and forth between two places.
  void decode(const DeviceTokens& tokens, State& state) const {
    Hidden<T, D> hidden{embed(tokens)};
    auto residual = Tensor<R, 3, D>::uninitialized(hidden.rows.extents());
    auto other = Tensor<R, 3, D>::uninitialized(hidden.rows.extents());
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      hidden = with_block(i, [&]<std::size_t place>(const auto& block) {
        const View<const R, 3, D> before = i == 0 ? View<const R, 3, D>{} : View<const R, 3, D>(residual.view());
        return block.decode(std::move(hidden), before, other.view(), std::get<place>(state.layers[i]));
      });
      std::swap(residual, other);
    }
    const auto last = norm_f_.forward(settled(std::move(hidden)), std::as_const(residual).view(), {});
    linear::forward(linear::Inputs<T, D>{.x = as_rows(last), .weight = head()}, state.logits.view());
    ++state.position;
  }

  View<const T, 2, D> head() const { return lm_head_ ? lm_head_.value() : embedding_.value(); }
  Parameter<T, 2, D>& head_parameter() { return lm_head_ ? lm_head_ : embedding_; }
  View<R, 2, D> head_gradient() { return head_parameter().gradient(); }
  void begin_gradients(GradientMode mode) {
    bind_gradients(*this, flat_);
    if (mode == GradientMode::assign) discard_gradients(*this, flat_);
  }

  Tensor<T, 3, D> embed(const DeviceTokens& tokens) const {
    auto hidden = Tensor<T, 3, D>::uninitialized({tokens.extent(0), tokens.extent(1), config_.d_model});
    embedding::forward(embedding::Inputs<T, std::int32_t, D>{.tokens = tokens, .weight = embedding_.value()},
                       hidden.view());
    return hidden;
  }
  dropout::Options embedding_dropout(const StepRandom& random) const {
    return {.p = config_.dropout, .random = random.child(0)};
  }

  /// (batch, length, d_model) as it enters the head.
  Tensor<T, 3, D> infer(const DeviceTokens& tokens) const {
    auto hidden = embed(tokens);
    auto residual = Tensor<R, 3, D>::uninitialized(hidden.extents());
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      hidden = with_block(i, [&]<std::size_t>(const auto& block) { return block.infer(hidden, residual, i == 0); });
    return norm_f_.forward(hidden, residual, {});
  }

  Tensor<T, 3, D> forward_saving(const DeviceTokens& tokens, const StepRandom& random) {
    saved_.layers.resize(blocks_.size());
    auto hidden = embed(tokens);
    if (config_.dropout > 0)
      dropout::forward(View<const T, 3, D>(hidden.view()), embedding_dropout(random), hidden.view());
    View<const R, 3, D> residual;
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      hidden = with_block(i, [&]<std::size_t place>(const auto& block) {
        auto& saved = Known::template saved<place>(saved_.layers[i]);
        auto out = block.forward(hidden, residual, saved, random.child(1 + i));
        residual = saved.residual();
        return out;
      });
    return norm_f_.forward(hidden, residual, saved_.norm);
  }
  void backward(const DeviceTokens& tokens, Tensor<T, 3, D> dhidden, const StepRandom& random) {
    auto dresidual = Tensor<R, 3, D>::uninitialized(dhidden.extents());
    const auto narrow = narrow_gradient(dhidden, dresidual);  // what a mixer takes, beside the residual stream's
    norm_f_.backward(dhidden, {}, dresidual.view(), narrow.written, saved_.norm);
    if (!narrow.written) dhidden = {};
    for (std::size_t i = blocks_.size(); i-- > 0;)
      with_block(i, [&]<std::size_t place>(auto& block) {
        block.backward(narrow.read, dresidual.view(), Known::template saved<place>(saved_.layers[i]),
                       i > 0 ? narrow.written : View<T, 3, D>{});
      });
    if (config_.dropout > 0)
      dropout::backward(View<const R, 3, D>(dresidual.view()), embedding_dropout(random), dresidual.view());
    const GradientMode mode = embedding_.gradient_mode();
    embedding::backward(embedding::Inputs<T, std::int32_t, D>{.tokens = tokens, .weight = embedding_.value()},
                        View<const R, 3, D>(dresidual.view()), embedding_.gradient(), mode);
    settle_gradients(*this);
  }
  /// The gradient that enters mixers: where activations have the type of sums the residual stream's own, else the same
  /// rounded, in the memory of dhidden.
  struct NarrowGradient {
    View<const T, 3, D> read;
    View<T, 3, D> written;
  };
  static NarrowGradient narrow_gradient(Tensor<T, 3, D>& dhidden, Tensor<R, 3, D>& dresidual) {
    if constexpr (std::is_same_v<T, R>)
      return {dresidual.view(), {}};
    else
      return {dhidden.view(), dhidden.view()};
  }

  cross_entropy::Options loss_options() const {
    return {.vocab_size = config_.vocab_size, .reduction = cross_entropy::Reduction::sum};
  }
  /// Where the targets are: scale over the number of those that count, and one over it.
  Tensor<R, 1, D> kept_factors(const DeviceTokens& targets, double scale) const {
    auto factors = Tensor<R, 1, D>::uninitialized({2});
    cross_entropy::kept_scale(targets.reshape(Extents<1>{targets.size()}), loss_options(), scale, factors.view());
    return factors;
  }
  /// The head, some rows at a time: use(logits, labels, begin, workspace) sees the logits of the rows from `begin` on,
  /// which it may overwrite, and has a workspace for the cross entropy of so many.
  template <class Use>
  void over_head(const View<const T, 2, D>& hidden, const DeviceTokens& targets, Use&& use) const {
    const Index rows = hidden.extent(0);
    const auto labels = targets.reshape(Extents<1>{rows});
    auto logits = Tensor<T, 2, D>::uninitialized({std::min(rows, head_rows), config_.padded_vocab_size()});
    Workspace<D> workspace(cross_entropy::workspace_bytes<T>(std::min(rows, head_rows)));
    for (Index begin = 0; begin < rows; begin += head_rows) {
      const Index end = std::min(begin + head_rows, rows);
      const View<T, 2, D> some = logits.template slice<0>(0, end - begin);
      linear::forward(linear::Inputs<T, D>{.x = hidden.template slice<0>(begin, end), .weight = head()}, some);
      use(some, labels.template slice<0>(begin, end), begin, workspace);
    }
  }
  static double number(const Tensor<R, 1, D>& one) { return static_cast<double>(to<cpu>(one)(0)); }

  template <class E, int Rank, class Where>
  static bool all_finite(const Tensor<E, Rank, Where>& tensor) {
    const auto host = to<cpu>(tensor);
    return std::all_of(host.begin(), host.end(), [](E x) { return std::isfinite(static_cast<R>(x)); });
  }

  ModelConfig config_;
  Parameter<T, 2, D> embedding_;  // (padded_vocab_size, d_model)
  std::vector<AnyBlock> blocks_;
  AddNorm<T, D> norm_f_;
  Parameter<T, 2, D> lm_head_;  // (padded_vocab_size, d_model), or absent: tied
  FlatParameters<T, D> flat_;
  Saved saved_;
  std::size_t saved_bytes_ = 0;
};

}  // namespace diffmamba
