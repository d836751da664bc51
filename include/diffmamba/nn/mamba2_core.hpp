// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>        // std::array
#include <limits>       // std::numeric_limits
#include <memory>       // std::shared_ptr
#include <type_traits>  // std::is_null_pointer_v

#include "diffmamba/nn/decoding.hpp"
#include "diffmamba/nn/linear_layer.hpp"  // as_rows
#include "diffmamba/nn/scan_parts.hpp"    // negative_exp, remember_inputs
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/ops/ssd/ssd_step.hpp"
#include "diffmamba/ops/swiglu/swiglu_backward.hpp"
#include "diffmamba/ops/swiglu/swiglu_forward.hpp"

namespace diffmamba {

/// Over which channels Mamba-2's gated norm takes its mean when there are several groups. Both are official: the fused
/// path of the official module (its default) normalises each group by itself, the unfused path, like the Hugging Face
/// model, all of them together.
enum class NormGroups { per_group, whole };
template <>
struct EnumNames<NormGroups> {
  static constexpr std::array<std::string_view, 2> values{"per_group", "whole"};
};

/// Options of Mamba-2, with the names and defaults of the official module.
struct Mamba2Options {
  Required<Index> d_model;
  Index d_state = 128;
  Index d_conv = 4;
  Index expand = 2;    // d_inner = expand * d_model
  Index headdim = 64;  // d_ssm = nheads * headdim
  Index ngroups = 1;   // heads of a group share B and C
  Index d_ssm = 0;     // 0: d_inner; the other d_inner - d_ssm channels become a gated MLP beside the scan
  bool D_has_hdim = false;
  bool rmsnorm = true;  // false: z gates inside the scan
  bool norm_before_gate = false;
  NormGroups norm_groups = NormGroups::per_group;
  double norm_eps = 1e-5;
  bool learnable_init_states = false;
  bool bias = false;  // of in_proj and out_proj
  bool conv_bias = true;
  Index chunk_size = 256;  // never changes the result
  std::array<double, 2> dt_limit = {0.0, std::numeric_limits<double>::infinity()};
  // Initialisation.
  std::array<double, 2> A_init_range = {1.0, 16.0};
  double dt_min = 0.001, dt_max = 0.1, dt_init_floor = 1e-4;
  double conv_init = 0.0;  // conv1d.weight uniform in +-conv_init; 0: torch's default

  template <class Self, class F>
  static void fields(Self& o, F&& f) {
    f("d_state", o.d_state), f("d_conv", o.d_conv), f("expand", o.expand), f("headdim", o.headdim);
    f("ngroups", o.ngroups), f("d_ssm", o.d_ssm), f("D_has_hdim", o.D_has_hdim), f("rmsnorm", o.rmsnorm);
    f("norm_before_gate", o.norm_before_gate), f("norm_groups", o.norm_groups), f("norm_eps", o.norm_eps);
    f("learnable_init_states", o.learnable_init_states), f("bias", o.bias), f("conv_bias", o.conv_bias);
    f("chunk_size", o.chunk_size), f("dt_limit", o.dt_limit), f("A_init_range", o.A_init_range);
    f("dt_min", o.dt_min), f("dt_max", o.dt_max), f("dt_init_floor", o.dt_init_floor), f("conv_init", o.conv_init);
  }
};

/// The sizes that follow from the options, of one path; `paths` of them run side by side. In every stacked axis the
/// paths alternate role by role, so that operators see more heads and groups and no new stride:
///
///   zxbcdt   [ z0 of path 1, of path 2 | x0 | z | x | B | C | dt ]       rows of in_proj, columns of its result
///   xBC      [ x of path 1, of path 2 | B | C ]                          channels of the convolution
///   gated    [ silu(z0) x0 of path 1, of path 2 | normed scan ]          what out_proj takes
struct Mamba2Sizes {
  Index paths, d_model, d_mlp, d_ssm, nheads, headdim, ngroups, d_state, d_conv;

  Mamba2Sizes(const Mamba2Options& o, Index path_count) : paths(path_count), d_model(o.d_model) {
    constexpr const char* op = "mamba2";
    const Index d_inner = o.expand * d_model;
    d_ssm = o.d_ssm > 0 ? o.d_ssm : d_inner;
    d_mlp = d_inner - d_ssm;
    headdim = o.headdim;
    ngroups = o.ngroups;
    d_state = o.d_state;
    d_conv = o.d_conv;
    require(d_model >= 1, op, ": d_model is ", d_model, ", expected 1 or more");
    require(o.expand >= 1, op, ": expand is ", o.expand, ", expected 1 or more");
    require(d_state >= 1, op, ": d_state is ", d_state, ", expected 1 or more");
    require(d_conv >= 1, op, ": d_conv is ", d_conv, ", expected 1 or more");
    require(o.d_ssm >= 0 && d_mlp >= 0, op, ": d_ssm ", o.d_ssm, " is larger than d_inner ", d_inner);
    require(headdim >= 1 && d_ssm % headdim == 0, op, ": headdim ", headdim, " does not divide d_ssm ", d_ssm);
    nheads = d_ssm / headdim;
    require(ngroups >= 1 && nheads % ngroups == 0, op, ": ngroups ", ngroups, " does not divide the ", nheads,
            " heads");
    require(o.norm_eps >= 0, op, ": norm_eps is ", o.norm_eps, ", expected 0 or more");
    require(o.chunk_size >= 1, op, ": chunk_size is ", o.chunk_size, ", expected 1 or more");
    require(o.dt_limit[0] <= o.dt_limit[1], op, ": dt_limit is reversed: ", o.dt_limit[0], " is above ", o.dt_limit[1]);
    require(0 < o.dt_min && o.dt_min <= o.dt_max, op, ": dt_min ", o.dt_min, " and dt_max ", o.dt_max,
            " do not make a range above 0");
    require(0 < o.A_init_range[0] && o.A_init_range[0] <= o.A_init_range[1], op, ": A_init_range ", o.A_init_range[0],
            " to ", o.A_init_range[1], " is not a range above 0");
  }

  Index bc_dim() const { return ngroups * d_state; }
  Index conv_dim() const { return d_ssm + 2 * bc_dim(); }
  Index d_in_proj() const { return 2 * d_mlp + d_ssm + conv_dim() + nheads; }
  Index width() const { return d_mlp + d_ssm; }
  /// Elements per token that backward takes at its height beside what forward kept: the gradients of zxbcdt, of the
  /// convolution and of what out_proj takes.
  Index backward_elements() const { return paths * (d_in_proj() + conv_dim() + width()); }
  std::array<Index, 7> in_proj_roles() const { return {d_mlp, d_mlp, d_ssm, d_ssm, bc_dim(), bc_dim(), nheads}; }
  std::array<Index, 3> conv_roles() const { return {d_ssm, bc_dim(), bc_dim()}; }
  std::array<Index, 2> gated_roles() const { return {d_mlp, d_ssm}; }
};

/// Views of the weights of Mamba-2 without its output projection, of all paths. To read: W is `const T`, R `const
/// accumulate_t<T>`; for gradients both are accumulate_t<T>.
template <class W, class R, Device DeviceType = cpu>
struct Mamba2Weights {
  View<W, 2, DeviceType> in_proj_weight;     // (paths * d_in_proj, d_model)
  View<R, 1, DeviceType> in_proj_bias = {};  // (paths * d_in_proj)
  View<R, 2, DeviceType> conv_weight;        // (paths * conv_dim, d_conv)
  View<R, 1, DeviceType> conv_bias = {};     // (paths * conv_dim)
  View<R, 1, DeviceType> dt_bias;            // (paths * nheads)
  View<R, 1, DeviceType> A_log;              // (paths * nheads)
  View<R, 1, DeviceType> D = {};             // (paths * nheads), or (paths * d_ssm)
  View<R, 1, DeviceType> norm_weight = {};   // (paths * d_ssm); absent: z gates inside the scan
  View<R, 3, DeviceType> init_states = {};   // (paths * nheads, headdim, d_state)
};

/// What Mamba-2 computes between its two projections, over any number of paths at once (Mamba-2, arXiv 2405.21060,
/// figure 6; mamba_split_conv1d_scan_combined of the official package is this function for one path):
///
///   zxbcdt = in_proj(x);   xBC = silu(conv1d(xBC));   y = ssd(x, dt, A, B, C, D);   gated = norm(y * silu(z))
///
/// Holds no weights: who calls it does.
template <class T, Device DeviceType = cpu>
class Mamba2Core {
  using D = DeviceType;
  using R = accumulate_t<T>;

 public:
  using Weights = Mamba2Weights<const T, const R, D>;
  using WeightGradients = Mamba2Weights<R, R, D>;

  /// Whether states may be kept in 16 bits.
  static constexpr bool shortens = std::is_same_v<D, cuda> && std::is_same_v<T, bfloat16>;

  struct Options {  // of the scan and the norm, as in Mamba2Options
    Index chunk_size = 256;
    double dt_min = 0.0, dt_max = std::numeric_limits<double>::infinity();
    bool norm_before_gate = false;
    NormGroups norm_groups = NormGroups::per_group;
    double eps = 1e-5;
    bool recompute_convolution = false;
  };

  /// Bytes per token: sizeof(T) * paths * (d_in_proj + conv_dim + d_ssm with the norm), the norm's 4 per group, and the
  /// states of the scan's chunks. Without conv_dim where the convolution is computed again.
  struct Saved {
    Tensor<T, 3, D> zxbcdt;    // (batch, length, paths * d_in_proj)
    Tensor<T, 3, D> conv_out;  // (batch, length, paths * conv_dim), unless computed again
    Tensor<T, 3, D> y;         // (batch, length, paths * d_ssm), with the norm
    Tensor<R, 1, D> A;         // (paths * nheads)
    Tensor<T, 3, D> dzxbcdt;   // between backward_to_input and backward_of_parameters of who owns in_proj
    ssd::Saved<T, D> scan;
    gated_rms_norm::Saved<T, D> norm;
  };

  /// conv_state: the last d_conv inputs of the convolution, zeros before the first (one more than it needs; the
  /// official layout).
  struct State {
    Tensor<R, 3, D> conv_state;                // (batch, paths * conv_dim, d_conv)
    Tensor<R, 4, D> ssm_state;                 // (batch, paths * nheads, headdim, d_state); empty once shortened
    std::shared_ptr<const Tensor<R, 1, D>> A;  // of the parameters as they were when the state was made
    Tensor<T, 4, D> short_ssm_state = {};      // the same in 16 bits, once shortened

    /// Keeps ssm_state in 16 bits from now on; see ssd::step.
    void shorten() requires(shortens) {
      if (short_ssm_state) return;
      short_ssm_state = to_tensor<T>(std::as_const(ssm_state).view());
      ssm_state = {};
    }
  };

  explicit Mamba2Core(const Mamba2Options& o, Index paths = 1)
      : Mamba2Core(Mamba2Sizes(o, paths), {.chunk_size = o.chunk_size,
                                           .dt_min = o.dt_limit[0],
                                           .dt_max = o.dt_limit[1],
                                           .norm_before_gate = o.norm_before_gate,
                                           .norm_groups = o.norm_groups,
                                           .eps = o.norm_eps}) {}
  Mamba2Core(const Mamba2Sizes& sizes, const Options& options) : sizes_(sizes), options_(options) {}

  const Mamba2Sizes& sizes() const { return sizes_; }
  void set_recompute_convolution(bool recompute) { options_.recompute_convolution = recompute; }

  /// (batch, length, d_model) -> zxbcdt
  Tensor<T, 3, D> project(const Weights& w, const View<const T, 3, D>& x) const {
    require(x.extent(2) == sizes_.d_model, "mamba2: x is ", x.extents(), ", expected d_model ", sizes_.d_model);
    auto out = Tensor<T, 3, D>::uninitialized(Extents{x.extent(0), x.extent(1), sizes_.paths * sizes_.d_in_proj()});
    const Rows<T, D> rows(x);
    linear::forward(linear::Inputs<T, D>{.x = rows, .weight = w.in_proj_weight, .bias = w.in_proj_bias}, as_rows(out));
    return out;
  }

  /// zxbcdt -> gated, (batch, length, paths * width). Training: `saved` takes zxbcdt.
  Tensor<T, 3, D> forward(const Weights& w, Tensor<T, 3, D> zxbcdt, Saved& saved) const {
    saved.zxbcdt = std::move(zxbcdt);
    auto conv_out = Tensor<T, 3, D>::uninitialized(shape(saved.zxbcdt, sizes_.conv_dim()));
    if (w.norm_weight) saved.y = Tensor<T, 3, D>::uninitialized(shape(saved.zxbcdt, sizes_.d_ssm));
    auto gated = run(w, saved.zxbcdt.view(), conv_out.view(), &saved, {}, {}, {});
    if (!options_.recompute_convolution) saved.conv_out = std::move(conv_out);
    return gated;
  }

  /// Inference: from `state` where there is one, which is advanced by any number of tokens.
  Tensor<T, 3, D> forward(const Weights& w, Tensor<T, 3, D> zxbcdt, State* state = nullptr) const {
    if (state != nullptr && zxbcdt.extent(1) <= step_tokens) return step(w, zxbcdt.view(), *state);
    auto conv_out = Tensor<T, 3, D>::uninitialized(shape(zxbcdt, sizes_.conv_dim()));
    if (state == nullptr) return run(w, zxbcdt.view(), conv_out.view(), nullptr, {}, {}, {});
    check(*state, zxbcdt.extent(0));
    Tensor<R, 4, D> widened;
    if constexpr (shortens)
      if (state->short_ssm_state) widened = to_tensor<R>(std::as_const(state->short_ssm_state).view());
    const View<const R, 4, D> before = widened ? widened.view() : state->ssm_state.view();
    auto final_state = Tensor<R, 4, D>::uninitialized(before.extents());
    auto out = run(w, zxbcdt.view(), conv_out.view(), nullptr, state, before, final_state.view());
    remember_inputs<T>(Cut<const T>(sizes_, std::as_const(zxbcdt).view()).xBC, state->conv_state.view());
    if constexpr (shortens)
      if (widened) {
        copy(final_state, state->short_ssm_state);
        return out;
      }
    copy(final_state, state->ssm_state);  // a state keeps its memory: what steps it may be a captured graph
    return out;
  }

  /// One token of each sequence, the norm before it and the output projection included, in three launches: the input
  /// projection with the norm and the convolution, the scan with its gate, the output projection with the gated norm.
  /// Nothing where that is not offered.
  Tensor<T, 3, D> decode(const Weights& w, const normed_linear::Source<T, D>& source,
                         const View<const T, 2, D>& out_weight, const View<const R, 1, D>& out_bias,
                         State& state) const {
    if constexpr (std::is_same_v<D, cuda> && std::is_same_v<T, bfloat16>) {
      const auto& s = sizes_;
      const Index batch = source.x.extent(0), one = 1;
      if (!w.norm_weight || options_.norm_before_gate || s.d_mlp > 0) return {};
      check(state, batch);
      auto zxbcdt = Tensor<T, 3, D>::uninitialized(Extents{batch, one, s.paths * s.d_in_proj()});
      auto gated = Tensor<T, 3, D>::uninitialized(Extents{batch, one, s.paths * s.d_ssm});
      const normed_linear::Inputs<T, D> first{
          .source = source,
          .weight = w.in_proj_weight,
          .bias = w.in_proj_bias,
          .convolution = {s.paths * s.d_ssm, w.conv_weight, w.conv_bias, state.conv_state.view()}};
      const normed_linear::Inputs<T, D> last{.source = {.x = as_rows(std::as_const(gated)),
                                                        .norm = {.weight = w.norm_weight, .eps = options_.eps},
                                                        .group_size = norm_options().group_size},
                                             .weight = out_weight,
                                             .bias = out_bias};
      if (!normed_linear::takes(first) || !normed_linear::takes(last)) return {};
      normed_linear::forward(first, as_rows(zxbcdt));
      const Cut<const T> in(s, std::as_const(zxbcdt).view());
      auto scan = ssd::step_inputs(scan_inputs(w, in, CutConv<const T>(s, in.xBC), state.A->view(), {}));
      scan.z = heads(in.z);
      advance(scan, state, heads(gated.view()));
      auto out = Tensor<T, 3, D>::uninitialized(Extents{batch, one, out_weight.extent(0)});
      normed_linear::forward(last, as_rows(out));
      return out;
    } else {
      return {};
    }
  }

  /// Whether backward can write what forward returned again: with the norm, from whose inputs it follows.
  static bool rebuilds_gated(const Weights& w) { return bool(w.norm_weight); }

  /// From dgated, which is overwritten, to dzxbcdt; adds into the gradients, or with `mode` assigns those of dt_bias
  /// and D, which are written whole. Uses `saved` up. Where backward can write what forward returned again it does so
  /// for use(gated), as soon as it can; the tensor is gone afterwards. Unless `use` is nullptr.
  template <class Use>
  Tensor<T, 3, D> backward(const Weights& w, const View<T, 3, D>& dgated, Saved& saved, const WeightGradients& g,
                           GradientMode mode, Use&& use) const {
    const auto& s = sizes_;
    require(bool(saved.zxbcdt), "mamba2: backward without a forward before it; every Saved serves once");
    const Index batch = saved.zxbcdt.extent(0);
    const Cut<const T> in(s, saved.zxbcdt.view());
    auto dzxbcdt = Tensor<T, 3, D>::uninitialized(saved.zxbcdt.extents());
    const Cut<T> d(s, dzxbcdt.view());
    const auto dy = dgated.template slice<2>(s.paths * s.d_mlp, s.paths * s.width());
    if (w.norm_weight) {
      constexpr bool again = !std::is_null_pointer_v<std::remove_cvref_t<Use>>;
      Tensor<T, 3, D> gated;
      View<T, 3, D> normed;
      if constexpr (again) {
        gated = Tensor<T, 3, D>::uninitialized(dgated.extents());
        normed = gated.template slice<2>(s.paths * s.d_mlp, s.paths * s.width());
        if (s.d_mlp > 0)
          swiglu::forward(swiglu::Inputs<T, D>{.x = in.x0, .z = in.z0}, gated.template slice<2>(0, s.paths * s.d_mlp));
      }
      const gated_rms_norm::Inputs<T, D> norm{.x = saved.y, .weight = w.norm_weight, .z = in.z};
      Workspace<D> workspace(gated_rms_norm::workspace_bytes(norm));
      gated_rms_norm::backward(norm, saved.norm, {.dout = dy},
                               {.dx = dy, .dz = d.z, .dweight = g.norm_weight, .dbias = {}, .out = normed}, workspace,
                               GradientMode::add);
      saved.y = {};
      if constexpr (again) use(std::as_const(gated).view());
    }
    if (s.d_mlp > 0)
      swiglu::backward(swiglu::Inputs<T, D>{.x = in.x0, .z = in.z0}, dgated.template slice<2>(0, s.paths * s.d_mlp),
                       {.dx = d.x0, .dz = d.z0});
    if (!saved.conv_out) {
      saved.conv_out = Tensor<T, 3, D>::uninitialized(shape(saved.zxbcdt, s.conv_dim()));
      convolve(w, in.xBC, saved.conv_out.view(), nullptr);
    }
    const CutConv<const T> conv(s, std::as_const(saved.conv_out).view());
    const auto& A = saved.A;
    auto dA = Tensor<R, 1, D>::uninitialized(A.extents());
    if (mode == GradientMode::add) fill_elements(D{}, dA.data(), dA.size(), R{});
    auto dconv = Tensor<T, 3, D>::uninitialized(saved.conv_out.extents());
    const CutConv<T> dout(s, dconv.view());
    Tensor<R, 4, D> dinitial;
    if (w.init_states)
      dinitial = Tensor<R, 4, D>::uninitialized(Extents{batch, s.paths * s.nheads, s.headdim, s.d_state});
    {
      const auto scan = scan_inputs(w, in, conv, A.view(), initial_state(w, batch));
      ssd::GradientViews<T, D> gradients{.dx = dout.x,
                                         .ddt = d.dt,
                                         .dA = dA.view(),
                                         .dB = dout.B,
                                         .dC = dout.C,
                                         .ddt_bias = g.dt_bias,
                                         .dinitial_state = dinitial.view()};
      if (scan.D) gradients.dD = g.D;
      if (scan.D_per_channel) gradients.dD_per_channel = g.D.reshape(scan.D_per_channel.extents());
      if (scan.z) gradients.dz = heads(d.z);
      Workspace<D> workspace(ssd::workspace_bytes(scan, saved.scan));
      ssd::backward(scan, saved.scan, {.dout = heads(dy)}, gradients, workspace, mode);
    }
    add_product(dA.view(), A.view(), g.A_log);  // A = -exp(A_log), so dA/dA_log = A
    if (w.init_states) add_over_batch(dinitial.view(), g.init_states);
    saved.conv_out = {};
    saved.scan = {};
    {
      const causal_conv1d::Inputs<T, D> convolution{.x = in.xBC, .weight = w.conv_weight, .bias = w.conv_bias};
      Workspace<D> workspace(causal_conv1d::workspace_bytes(convolution));
      causal_conv1d::backward(convolution, causal_conv1d::Saved<T, D>{conv_options()}, {.dout = dconv.view()},
                              {.dx = d.xBC, .dweight = g.conv_weight, .dbias = g.conv_bias}, workspace,
                              GradientMode::add);
    }
    saved = {};
    return dzxbcdt;
  }

  /// dx from dzxbcdt; adds into the gradients of in_proj.
  Tensor<T, 3, D> project_backward(const Weights& w, const View<const T, 3, D>& x, const View<const T, 3, D>& dzxbcdt,
                                   const WeightGradients& g) const {
    auto dx = Tensor<T, 3, D>::uninitialized(x.extents());
    linear::backward(linear::Inputs<T, D>{.x = as_rows(x), .weight = w.in_proj_weight, .bias = w.in_proj_bias},
                     as_rows(dzxbcdt), {.dx = as_rows(dx), .dweight = g.in_proj_weight, .dbias = g.in_proj_bias},
                     GradientMode::add);
    return dx;
  }

  /// Of sequences that have not begun: no inputs yet, the learned initial states or zeros.
  State make_state(const Weights& w, Index batch) const {
    const auto& s = sizes_;
    State state{.conv_state = Tensor<R, 3, D>(Extents{batch, s.paths * s.conv_dim(), s.d_conv}),
                .ssm_state = Tensor<R, 4, D>(Extents{batch, s.paths * s.nheads, s.headdim, s.d_state}),
                .A = std::make_shared<const Tensor<R, 1, D>>(negative_exp(w.A_log))};
    if (w.init_states) copy(initial_state(w, batch), state.ssm_state.view());
    return state;
  }

 private:
  // Up to here tokens are advanced one by one rather than in chunks.
  static constexpr Index step_tokens = 4;

  /// The pieces of zxbcdt, or of its gradient: views, no copies.
  template <class E>
  struct Cut {
    View<E, 3, D> z0, x0, z, xBC, dt;
    Cut(const Mamba2Sizes& s, const View<E, 3, D>& all) {
      Index at = 0;
      const auto next = [&](Index size) {
        at += s.paths * size;
        return all.template slice<2>(at - s.paths * size, at);
      };
      z0 = next(s.d_mlp);
      x0 = next(s.d_mlp);
      z = next(s.d_ssm);
      xBC = next(s.conv_dim());
      dt = next(s.nheads);
    }
  };
  /// The pieces of the convolution's result, in heads and groups.
  template <class E>
  struct CutConv {
    View<E, 4, D> x, B, C;
    CutConv(const Mamba2Sizes& s, const View<E, 3, D>& all) {
      const Index batch = all.extent(0), length = all.extent(1), d_ssm = s.paths * s.d_ssm, bc = s.paths * s.bc_dim();
      const Extents groups{batch, length, s.paths * s.ngroups, s.d_state};
      x = all.template slice<2>(0, d_ssm).reshape(Extents{batch, length, s.paths * s.nheads, s.headdim});
      B = all.template slice<2>(d_ssm, d_ssm + bc).reshape(groups);
      C = all.template slice<2>(d_ssm + bc, d_ssm + 2 * bc).reshape(groups);
    }
  };

  Extents<3> shape(const Tensor<T, 3, D>& like, Index width) const {
    return {like.extent(0), like.extent(1), sizes_.paths * width};
  }
  template <class E>
  View<E, 4, D> heads(const View<E, 3, D>& x) const {
    return x.reshape(Extents{x.extent(0), x.extent(1), sizes_.paths * sizes_.nheads, sizes_.headdim});
  }
  causal_conv1d::Options conv_options() const { return {.activation = causal_conv1d::Activation::silu}; }
  ssd::Options scan_options() const {
    return {
        .chunk_size = options_.chunk_size, .dt_softplus = true, .dt_min = options_.dt_min, .dt_max = options_.dt_max};
  }
  gated_rms_norm::Options norm_options() const {
    const bool whole = options_.norm_groups == NormGroups::whole;
    return {.eps = options_.eps,
            .group_size = whole ? sizes_.d_ssm : sizes_.d_ssm / sizes_.ngroups,
            .norm_before_gate = options_.norm_before_gate};
  }
  /// The learned initial states, the same for every sequence: stride 0 over the batch.
  View<const R, 4, D> initial_state(const Weights& w, Index batch) const {
    if (!w.init_states) return {};
    const auto& v = w.init_states;
    return {
        v.data(), {batch, v.extent(0), v.extent(1), v.extent(2)}, {Index{0}, v.stride(0), v.stride(1), v.stride(2)}};
  }
  ssd::Inputs<T, D> scan_inputs(const Weights& w, const Cut<const T>& in, const CutConv<const T>& conv,
                                const View<const R, 1, D>& A, const View<const R, 4, D>& initial) const {
    const Index nheads = sizes_.paths * sizes_.nheads;
    const bool per_channel = w.D && w.D.extent(0) != nheads;
    ssd::Inputs<T, D> scan{
        .x = conv.x, .dt = in.dt, .A = A, .B = conv.B, .C = conv.C, .dt_bias = w.dt_bias, .initial_state = initial};
    if (w.D && !per_channel) scan.D = w.D;
    if (per_channel) scan.D_per_channel = w.D.reshape(Extents{nheads, sizes_.headdim});
    if (!w.norm_weight) scan.z = heads(in.z);
    return scan;
  }
  /// One scan over a few tokens, the states in place.
  void advance(const ssd::StepInputs<T, D>& scan, State& state, const View<T, 4, D>& out) const {
    if constexpr (shortens)
      if (state.short_ssm_state) return ssd::step(scan, state.short_ssm_state.view(), scan_options(), out);
    ssd::step(scan, state.ssm_state.view(), scan_options(), out);
  }
  void check(const State& state, Index batch) const {
    const auto& s = sizes_;
    require_shape("mamba2", "conv_state", state.conv_state.view(), Extents{batch, s.paths * s.conv_dim(), s.d_conv});
    const Extents states{batch, s.paths * s.nheads, s.headdim, s.d_state};
    if (state.short_ssm_state)
      require_shape("mamba2", "short_ssm_state", state.short_ssm_state.view(), states);
    else
      require_shape("mamba2", "ssm_state", state.ssm_state.view(), states);
    require(state.A != nullptr, "mamba2: a state that make_state did not make");
  }

  Tensor<T, 3, D> run(const Weights& w, const View<const T, 3, D>& zxbcdt, const View<T, 3, D>& conv_out, Saved* saved,
                      const State* from, const View<const R, 4, D>& before, const View<R, 4, D>& final_state) const {
    const auto& s = sizes_;
    const Index batch = zxbcdt.extent(0), length = zxbcdt.extent(1);
    const Cut<const T> in(s, zxbcdt);
    auto gated = Tensor<T, 3, D>::uninitialized(Extents{batch, length, s.paths * s.width()});
    const auto out = gated.template slice<2>(s.paths * s.d_mlp, s.paths * s.width());
    if (s.d_mlp > 0)  // the gated MLP beside the scan
      swiglu::forward(swiglu::Inputs<T, D>{.x = in.x0, .z = in.z0}, gated.template slice<2>(0, s.paths * s.d_mlp));
    convolve(w, in.xBC, conv_out, from);
    const CutConv<T> conv(s, conv_out);
    // The norm reads y; without it the scan writes the result. For inference y takes the place of x.
    const View<T, 4, D> y = !w.norm_weight ? heads(out) : saved != nullptr ? heads(saved->y.view()) : conv.x;
    {
      Tensor<R, 1, D> made;
      if (from == nullptr) made = negative_exp(w.A_log);
      const auto A = from != nullptr ? from->A->view() : std::as_const(made).view();
      const auto scan =
          scan_inputs(w, in, CutConv<const T>(s, conv_out), A, from != nullptr ? before : initial_state(w, batch));
      Workspace<D> workspace(ssd::workspace_bytes(scan, scan_options()));
      ssd::forward(scan, scan_options(), {.out = y, .final_state = final_state},
                   saved != nullptr ? &saved->scan : nullptr, workspace);
      if (saved != nullptr) saved->A = std::move(made);
    }
    if (w.norm_weight) normalize(w, y, in.z, out, saved != nullptr ? &saved->norm : nullptr);
    return gated;
  }

  void convolve(const Weights& w, const View<const T, 3, D>& xBC, const View<T, 3, D>& out, const State* from) const {
    causal_conv1d::Inputs<T, D> in{.x = xBC, .weight = w.conv_weight, .bias = w.conv_bias};
    if (from != nullptr) in.initial_state = from->conv_state.template slice<2>(1, sizes_.d_conv);
    Workspace<D> workspace(causal_conv1d::workspace_bytes(in));
    causal_conv1d::forward(in, conv_options(), {.out = out}, nullptr, workspace);
  }

  void normalize(const Weights& w, const View<const T, 4, D>& y, const View<const T, 3, D>& z, const View<T, 3, D>& out,
                 gated_rms_norm::Saved<T, D>* saved) const {
    gated_rms_norm::forward(gated_rms_norm::Inputs<T, D>{.x = y.reshape(z.extents()), .weight = w.norm_weight, .z = z},
                            norm_options(), {.out = out}, saved);
  }

  /// A few tokens of each sequence, one after another, the states advanced in place.
  Tensor<T, 3, D> step(const Weights& w, const View<const T, 3, D>& zxbcdt, State& state) const {
    const auto& s = sizes_;
    const Index batch = zxbcdt.extent(0), length = zxbcdt.extent(1);
    check(state, batch);
    const Cut<const T> in(s, zxbcdt);
    auto gated = Tensor<T, 3, D>::uninitialized(Extents{batch, length, s.paths * s.width()});
    const auto out = gated.template slice<2>(s.paths * s.d_mlp, s.paths * s.width());
    if (s.d_mlp > 0)  // the gated MLP beside the scan
      swiglu::forward(swiglu::Inputs<T, D>{.x = in.x0, .z = in.z0}, gated.template slice<2>(0, s.paths * s.d_mlp));
    auto conv_out = Tensor<T, 3, D>::uninitialized(in.xBC.extents());
    causal_conv1d::step(causal_conv1d::StepInputs<T, D>{.x = in.xBC, .weight = w.conv_weight, .bias = w.conv_bias},
                        state.conv_state.view(), conv_options(), conv_out.view());
    const CutConv<T> conv(s, conv_out.view());
    const auto full = scan_inputs(w, in, CutConv<const T>(s, conv_out.view()), state.A->view(), {});
    const View<T, 4, D> y = w.norm_weight ? conv.x : heads(out);
    advance(ssd::step_inputs(full), state, y);
    if (w.norm_weight) normalize(w, y, in.z, out, nullptr);
    return gated;
  }

  Mamba2Sizes sizes_;
  Options options_;
};

}  // namespace diffmamba
