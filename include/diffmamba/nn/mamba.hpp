// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/projected_mixer.hpp"
#include "diffmamba/nn/scan_parts.hpp"  // negative_exp, remember_inputs, fill_dt_bias
#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_step.hpp"

namespace diffmamba {

/// How dt_proj.weight starts: uniform in +-dt_scale / sqrt(dt_rank), or that number everywhere.
enum class DtInit { random, constant };
template <>
struct EnumNames<DtInit> {
  static constexpr std::array<std::string_view, 2> values{"random", "constant"};
};

/// Options of Mamba, with the names and defaults of the official module.
struct MambaOptions {
  Required<Index> d_model;
  Index d_state = 16;
  Index d_conv = 4;
  Index expand = 2;   // d_inner = expand * d_model
  Index dt_rank = 0;  // 0: d_model / 16, rounded up
  bool conv_bias = true;
  bool bias = false;  // of in_proj and out_proj
  // Initialisation.
  double dt_min = 0.001, dt_max = 0.1, dt_init_floor = 1e-4, dt_scale = 1.0;
  DtInit dt_init = DtInit::random;

  template <class Self, class F>
  static void fields(Self& o, F&& f) {
    f("d_state", o.d_state), f("d_conv", o.d_conv), f("expand", o.expand), f("dt_rank", o.dt_rank);
    f("conv_bias", o.conv_bias), f("bias", o.bias), f("dt_min", o.dt_min), f("dt_max", o.dt_max);
    f("dt_init_floor", o.dt_init_floor), f("dt_scale", o.dt_scale), f("dt_init", o.dt_init);
  }
};

/// The sizes that follow from the options, of one path; checks them.
struct MambaSizes {
  Index paths, d_model, d_inner, d_state, d_conv, dt_rank;

  MambaSizes(const MambaOptions& o, Index path_count)
      : paths(path_count),
        d_model(o.d_model),
        d_inner(o.expand * d_model),
        d_state(o.d_state),
        d_conv(o.d_conv),
        dt_rank(o.dt_rank > 0 ? o.dt_rank : (d_model + 15) / 16) {
    constexpr const char* op = "mamba";
    require(d_model >= 1, op, ": d_model is ", d_model, ", expected 1 or more");
    require(o.expand >= 1, op, ": expand is ", o.expand, ", expected 1 or more");
    require(d_state >= 1, op, ": d_state is ", d_state, ", expected 1 or more");
    require(d_conv >= 1, op, ": d_conv is ", d_conv, ", expected 1 or more");
    require(o.dt_rank >= 0, op, ": dt_rank is ", o.dt_rank, ", expected 0 (d_model / 16) or more");
    require(0 < o.dt_min && o.dt_min <= o.dt_max, op, ": dt_min ", o.dt_min, " and dt_max ", o.dt_max,
            " do not make a range above 0");
  }
  /// Rows of x_proj: dt, B, C.
  Index x_proj_rows() const { return dt_rank + 2 * d_state; }
};

/// Mamba without its output projection (arXiv 2312.00752, figure 3), for any number of paths:
///
///   [x | z] = in_proj(x);   x = silu(conv1d(x));   [dt | B | C] = x_proj(x) of each path
///   delta = dt_proj(dt) of each path;   gated = selective_scan(x, softplus(delta + bias), A, B, C, D) * silu(z)
///
/// In memory the rows of in_proj are [x of path 1, of path 2 | z of path 1, of path 2]: one product computes all paths,
/// and convolution and scan see more channels and groups.
template <class T, Device DeviceType = cpu>
class MambaInner {
  using D = DeviceType;
  using R = accumulate_t<T>;

 public:
  using value_type = T;
  using device_type = DeviceType;
  using Options = MambaOptions;

  /// Elements of T per token: paths * (3 d_inner + x_proj_rows), and the scan's states. delta is computed again.
  struct Saved {
    Tensor<T, 3, D> xz;        // (batch, length, 2 * paths * d_inner)
    Tensor<T, 3, D> conv_out;  // (batch, length, paths * d_inner), unless computed again
    Tensor<T, 4, D> dtBC;      // (batch, length, paths, x_proj_rows)
    selective_scan::Saved<T, D> scan;
  };
  /// conv_state: the last d_conv inputs of the convolution, zeros before the first (the official layout).
  struct State {
    Tensor<R, 3, D> conv_state;                // (batch, paths * d_inner, d_conv)
    Tensor<R, 3, D> ssm_state;                 // (batch, paths * d_inner, d_state)
    std::shared_ptr<const Tensor<R, 2, D>> A;  // of the parameters as they were when the state was made
  };

  explicit MambaInner(const Options& options, Index paths = 1) : options_(options), sizes_(options, paths) {
    const auto& s = sizes_;
    const Index channels = paths * s.d_inner;
    in_proj_weight_ = Parameter<T, 2, D>(Extents{2 * channels, s.d_model});
    if (options.bias) in_proj_bias_ = Parameter<R, 1, D>(Extents<1>{2 * channels}, Decay::no);
    conv_weight_ = Parameter<R, 2, D>(Extents{channels, s.d_conv});
    if (options.conv_bias) conv_bias_ = Parameter<R, 1, D>(Extents<1>{channels}, Decay::no);
    x_proj_weight_ = Parameter<T, 3, D>(Extents{paths, s.x_proj_rows(), s.d_inner});
    dt_proj_weight_ = Parameter<T, 3, D>(Extents{paths, s.d_inner, s.dt_rank});
    dt_proj_bias_ = Parameter<R, 1, D>(Extents<1>{channels}, Decay::no);
    A_log_ = Parameter<R, 2, D>(Extents{channels, s.d_state}, Decay::no);
    D_ = Parameter<R, 1, D>(Extents<1>{channels}, Decay::no);
  }

  std::array<Index, 1> roles() const { return {sizes_.d_inner}; }
  Index d_model() const { return sizes_.d_model; }
  bool bias() const { return options_.bias; }
  const Options& options() const { return options_; }
  void set_recompute_convolution(bool recompute) { recompute_convolution_ = recompute; }

  Tensor<T, 3, D> forward(const View<const T, 3, D>& x, Saved& saved) const {
    saved.xz = project(x);
    auto conv_out = Tensor<T, 3, D>::uninitialized(shape(x, sizes_.d_inner));
    convolve(xs(saved.xz), conv_out.view(), {});
    saved.dtBC = project_scan(conv_out);
    auto gated = scan(saved.xz, conv_out, saved.dtBC, &saved.scan, nullptr, {});
    if (!recompute_convolution_) saved.conv_out = std::move(conv_out);
    return gated;
  }
  /// Inference: from `state` where there is one, which is advanced by any number of tokens.
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x, State* state = nullptr) const {
    const auto xz = project(x);
    auto conv_out = Tensor<T, 3, D>::uninitialized(shape(x, sizes_.d_inner));
    if (state == nullptr) {
      convolve(xs(xz), conv_out.view(), {});
      const auto dtBC = project_scan(conv_out);
      return scan(xz, conv_out, dtBC, nullptr, nullptr, {});
    }
    check(*state, x.extent(0));
    if (x.extent(1) == 1) {
      causal_conv1d::step(
          causal_conv1d::StepInputs<T, D>{.x = xs(xz), .weight = conv_weight_.value(), .bias = conv_bias_.value()},
          state->conv_state.view(), conv_options(), conv_out.view());
      return step(xz, conv_out, *state);
    }
    convolve(xs(xz), conv_out.view(), std::as_const(state->conv_state).template slice<2>(1, sizes_.d_conv));
    remember_inputs<T>(xs(xz), state->conv_state.view());
    const auto dtBC = project_scan(conv_out);
    auto final_state = Tensor<R, 3, D>::uninitialized(state->ssm_state.extents());
    auto out = scan(xz, conv_out, dtBC, nullptr, state, final_state.view());
    copy(final_state, state->ssm_state);  // a state keeps its memory: what steps it may be a captured graph
    return out;
  }

  /// One token of each sequence, the norm before it and the output projection included: norm, input projection and
  /// convolution are one launch. Nothing where that is not offered.
  Tensor<T, 3, D> decode(const normed_linear::Source<T, D>& source, const View<const T, 2, D>& out_weight,
                         const View<const R, 1, D>& out_bias, State& state) const {
    if constexpr (std::is_same_v<D, cuda> && std::is_same_v<T, bfloat16>) {
      const Index batch = source.x.extent(0), one = 1, channels = sizes_.paths * sizes_.d_inner;
      check(state, batch);
      const normed_linear::Inputs<T, D> first{
          .source = source,
          .weight = in_proj_weight_.value(),
          .bias = in_proj_bias_.value(),
          .convolution = {0, conv_weight_.value(), conv_bias_.value(), state.conv_state.view()}};
      if (!normed_linear::takes(first)) return {};
      auto xz = Tensor<T, 3, D>::uninitialized(Extents{batch, one, 2 * channels});
      normed_linear::forward(first, as_rows(xz));
      const auto gated = step(xz, xs(xz), state);
      auto out = Tensor<T, 3, D>::uninitialized(Extents{batch, one, out_weight.extent(0)});
      linear::forward(linear::Inputs<T, D>{.x = as_rows(gated), .weight = out_weight, .bias = out_bias}, as_rows(out));
      return out;
    } else {
      return {};
    }
  }

  Tensor<T, 3, D> backward(const View<const T, 3, D>& x, const View<T, 3, D>& dgated, Saved& saved) {
    require(bool(saved.xz), "mamba: backward without a forward before it; every Saved serves once");
    const auto& s = sizes_;
    const MambaInner& self = *this;
    const Index channels = s.paths * s.d_inner;
    if (!saved.conv_out) {
      saved.conv_out = Tensor<T, 3, D>::uninitialized(shape(x, s.d_inner));
      convolve(xs(saved.xz), saved.conv_out.view(), {});
    }
    auto dxz = Tensor<T, 3, D>::uninitialized(saved.xz.extents());
    auto dconv = Tensor<T, 3, D>::uninitialized(saved.conv_out.extents());
    auto ddtBC = Tensor<T, 4, D>::uninitialized(saved.dtBC.extents());
    {
      const auto A = negative_exp(self.A_log_.value());
      Tensor<R, 2, D> dA(A.extents());
      auto ddelta = Tensor<T, 3, D>::uninitialized(saved.conv_out.extents());
      {
        const auto delta = project_dt(saved.dtBC);
        const auto in = scan_inputs(saved.xz, saved.conv_out, saved.dtBC, delta, A.view(), {});
        Workspace<D> workspace(selective_scan::workspace_bytes(in, saved.scan));
        selective_scan::backward(in, saved.scan, {.dout = View<const T, 3, D>(dgated)},
                                 {.du = dconv.view(),
                                  .ddelta = ddelta.view(),
                                  .dA = dA.view(),
                                  .dB = B_of(ddtBC.view()),
                                  .dC = C_of(ddtBC.view()),
                                  .dD = D_.gradient(),
                                  .dz = dxz.template slice<2>(channels, 2 * channels),
                                  .ddelta_bias = dt_proj_bias_.gradient()},
                                 workspace, GradientMode::add);
      }
      add_product(dA.view(), A.view(), A_log_.gradient());  // A = -exp(A_log), so dA/dA_log = A
      saved.scan = {};
      for (Index p = 0; p < s.paths; ++p)  // delta = dt_proj(dt): dt_proj.bias entered the scan
        linear::backward(linear::Inputs<T, D>{.x = dt_of(std::as_const(saved.dtBC).view(), p),
                                              .weight = self.dt_proj_weight_.value().template select<0>(p)},
                         path_rows(std::as_const(ddelta).view(), p),
                         {.dx = dt_of(ddtBC.view(), p), .dweight = dt_proj_weight_.gradient().template select<0>(p)},
                         GradientMode::add);
    }
    for (Index p = 0; p < s.paths; ++p) {  // x_proj: its dx adds to the scan's
      const auto dout = ddtBC.template select<2>(p);
      const auto weight = self.x_proj_weight_.value().template select<0>(p);
      linear::backward(linear::Inputs<T, D>{.x = path_rows(std::as_const(saved.conv_out).view(), p), .weight = weight},
                       View<const T, 2, D>(as_rows(dout)), {.dweight = x_proj_weight_.gradient().template select<0>(p)},
                       GradientMode::add);
      matmul(View<const T, 2, D>(as_rows(dout)), weight, path_rows(dconv.view(), p), {.beta = 1});
    }
    saved.dtBC = {};
    saved.conv_out = {};
    {
      const causal_conv1d::Inputs<T, D> in{
          .x = xs(saved.xz), .weight = self.conv_weight_.value(), .bias = self.conv_bias_.value()};
      Workspace<D> workspace(causal_conv1d::workspace_bytes(in));
      causal_conv1d::backward(in, causal_conv1d::Saved<T, D>{conv_options()}, {.dout = dconv.view()},
                              {.dx = dxz.template slice<2>(0, channels),
                               .dweight = conv_weight_.gradient(),
                               .dbias = conv_bias_.gradient()},
                              workspace, GradientMode::add);
    }
    saved = {};
    auto dx = Tensor<T, 3, D>::uninitialized(x.extents());
    linear::backward(
        linear::Inputs<T, D>{
            .x = as_rows(x), .weight = self.in_proj_weight_.value(), .bias = self.in_proj_bias_.value()},
        as_rows(std::as_const(dxz)),
        {.dx = as_rows(dx), .dweight = in_proj_weight_.gradient(), .dbias = in_proj_bias_.gradient()},
        GradientMode::add);
    return dx;
  }

  State make_state(Index batch) const {
    const Index channels = sizes_.paths * sizes_.d_inner;
    return {.conv_state = Tensor<R, 3, D>(Extents{batch, channels, sizes_.d_conv}),
            .ssm_state = Tensor<R, 3, D>(Extents{batch, channels, sizes_.d_state}),
            .A = std::make_shared<const Tensor<R, 2, D>>(negative_exp(A_log_.value()))};
  }

  /// As the official module: torch's defaults for the projections and the convolution, dt_proj after dt_init, its bias
  /// such that dt is log-uniform in [dt_min, dt_max], A[n] = -(n + 1) (S4D real), D = 1. Every path draws by itself.
  void initialize(Philox random, const Initialization& how = {}) {
    const auto& s = sizes_;
    for (Index path = 0; path < s.paths; ++path) {
      const Philox draw = random.child(0).child(static_cast<std::uint64_t>(path));
      parameters(*this, path, [&](std::string_view name, auto& parameter) {
        using P = std::remove_cvref_t<decltype(parameter)>;
        Tensor<R, P::rank> value(parameter.extents());
        if (name == "in_proj.weight") {
          fill_linear(value, s.d_model, draw.child(0));
        } else if (name == "in_proj.bias") {
          if (!how.zero_biases) fill_linear(value, s.d_model, draw.child(1));
        } else if (name == "conv1d.weight") {
          fill_linear(value, s.d_conv, draw.child(2));
        } else if (name == "conv1d.bias") {
          fill_linear(value, s.d_conv, draw.child(3));
        } else if (name == "x_proj.weight") {
          fill_linear(value, s.d_inner, draw.child(4));
        } else if (name == "dt_proj.weight") {
          if (options_.dt_init == DtInit::random)
            fill_linear(value, s.dt_rank, draw.child(5), options_.dt_scale);
          else
            value.fill(static_cast<R>(options_.dt_scale / std::sqrt(static_cast<double>(s.dt_rank))));
        } else if (name == "dt_proj.bias") {
          if constexpr (P::rank == 1)
            fill_dt_bias(value.view(), draw.child(6), options_.dt_min, options_.dt_max, options_.dt_init_floor);
        } else if (name == "A_log") {
          if constexpr (P::rank == 2) fill_s4d_real(value.view());
        } else {  // D
          value.fill(R(1));
        }
        parameter.copy_from(value);
      });
    }
  }

  /// The parameters of one path under their official names.
  template <class Self, class F>
  static void parameters(Self& self, Index path, F&& f) {
    const auto& s = self.sizes_;
    const auto give = [&](std::string_view name, auto part) { f(name, part); };
    const std::array<Index, 2> halves{s.d_inner, s.d_inner};
    give("in_proj.weight", path_of(self.in_proj_weight_, path, s.paths, Extents{2 * s.d_inner, s.d_model}, halves));
    if (self.in_proj_bias_)
      give("in_proj.bias", path_of(self.in_proj_bias_, path, s.paths, Extents<1>{2 * s.d_inner}, halves));
    give("conv1d.weight", path_of(self.conv_weight_, path, Extents{s.d_inner, Index{1}, s.d_conv}));
    if (self.conv_bias_) give("conv1d.bias", path_of(self.conv_bias_, path, Extents<1>{s.d_inner}));
    give("x_proj.weight", path_of(self.x_proj_weight_, path, Extents{s.x_proj_rows(), s.d_inner}));
    give("dt_proj.weight", path_of(self.dt_proj_weight_, path, Extents{s.d_inner, s.dt_rank}));
    give("dt_proj.bias", path_of(self.dt_proj_bias_, path, Extents<1>{s.d_inner}));
    give("A_log", path_of(self.A_log_, path, Extents{s.d_inner, s.d_state}));
    give("D", path_of(self.D_, path, Extents<1>{s.d_inner}));
  }

 private:
  static causal_conv1d::Options conv_options() { return {.activation = causal_conv1d::Activation::silu}; }
  Extents<3> shape(const View<const T, 3, D>& x, Index width) const {
    return {x.extent(0), x.extent(1), sizes_.paths * width};
  }
  View<const T, 3, D> xs(const Tensor<T, 3, D>& xz) const {
    return xz.template slice<2>(0, sizes_.paths * sizes_.d_inner);
  }
  /// Columns of one path, as the rows of a matrix.
  template <class E>
  View<E, 2, D> path_rows(const View<E, 3, D>& x, Index path) const {
    return as_rows(x.template slice<2>(path * sizes_.d_inner, (path + 1) * sizes_.d_inner));
  }
  // [dt | B | C] of each path: (batch, length, paths, x_proj_rows)
  template <class E>
  View<E, 2, D> dt_of(const View<E, 4, D>& dtBC, Index path) const {
    return as_rows(dtBC.template select<2>(path).template slice<2>(0, sizes_.dt_rank));
  }
  template <class E>
  View<E, 4, D> B_of(const View<E, 4, D>& dtBC) const {
    return dtBC.template slice<3>(sizes_.dt_rank, sizes_.dt_rank + sizes_.d_state);
  }
  template <class E>
  View<E, 4, D> C_of(const View<E, 4, D>& dtBC) const {
    return dtBC.template slice<3>(sizes_.dt_rank + sizes_.d_state, sizes_.x_proj_rows());
  }
  void check(const State& state, Index batch) const {
    const Index channels = sizes_.paths * sizes_.d_inner;
    require_shape("mamba", "conv_state", state.conv_state.view(), Extents{batch, channels, sizes_.d_conv});
    require_shape("mamba", "ssm_state", state.ssm_state.view(), Extents{batch, channels, sizes_.d_state});
    require(state.A != nullptr, "mamba: a state that make_state did not make");
  }

  Tensor<T, 3, D> project(const View<const T, 3, D>& x) const {
    require(x.extent(2) == sizes_.d_model, "mamba: x is ", x.extents(), ", expected d_model ", sizes_.d_model);
    auto xz = Tensor<T, 3, D>::uninitialized(shape(x, 2 * sizes_.d_inner));
    const Rows<T, D> rows(x);
    linear::forward(linear::Inputs<T, D>{.x = rows, .weight = in_proj_weight_.value(), .bias = in_proj_bias_.value()},
                    as_rows(xz));
    return xz;
  }
  void convolve(const View<const T, 3, D>& x, const View<T, 3, D>& out,
                const View<const R, 3, D>& initial_state) const {
    const causal_conv1d::Inputs<T, D> in{
        .x = x, .weight = conv_weight_.value(), .bias = conv_bias_.value(), .initial_state = initial_state};
    Workspace<D> workspace(causal_conv1d::workspace_bytes(in));
    causal_conv1d::forward(in, conv_options(), {.out = out}, nullptr, workspace);
  }
  Tensor<T, 4, D> project_scan(const View<const T, 3, D>& conv_out) const {
    const auto& s = sizes_;
    auto dtBC =
        Tensor<T, 4, D>::uninitialized(Extents{conv_out.extent(0), conv_out.extent(1), s.paths, s.x_proj_rows()});
    for (Index p = 0; p < s.paths; ++p)
      linear::forward(
          linear::Inputs<T, D>{.x = path_rows(conv_out, p), .weight = x_proj_weight_.value().template select<0>(p)},
          as_rows(dtBC.template select<2>(p)));
    return dtBC;
  }
  Tensor<T, 3, D> project_dt(const Tensor<T, 4, D>& dtBC) const {
    const auto& s = sizes_;
    auto delta = Tensor<T, 3, D>::uninitialized(Extents{dtBC.extent(0), dtBC.extent(1), s.paths * s.d_inner});
    for (Index p = 0; p < s.paths; ++p)
      linear::forward(
          linear::Inputs<T, D>{.x = dt_of(dtBC.view(), p), .weight = dt_proj_weight_.value().template select<0>(p)},
          path_rows(delta.view(), p));
    return delta;
  }
  selective_scan::Inputs<T, D> scan_inputs(const Tensor<T, 3, D>& xz, const Tensor<T, 3, D>& conv_out,
                                           const Tensor<T, 4, D>& dtBC, const Tensor<T, 3, D>& delta,
                                           const View<const R, 2, D>& A,
                                           const View<const R, 3, D>& initial_state) const {
    const Index channels = sizes_.paths * sizes_.d_inner;
    return {.u = conv_out.view(),
            .delta = delta.view(),
            .A = A,
            .B = B_of(dtBC.view()),
            .C = C_of(dtBC.view()),
            .D = D_.value(),
            .z = xz.template slice<2>(channels, 2 * channels),
            .delta_bias = dt_proj_bias_.value(),
            .initial_state = initial_state};
  }
  /// From zero, or from `state`.
  Tensor<T, 3, D> scan(const Tensor<T, 3, D>& xz, const Tensor<T, 3, D>& conv_out, const Tensor<T, 4, D>& dtBC,
                       selective_scan::Saved<T, D>* saved, const State* state, const View<R, 3, D>& final_state) const {
    const auto A = state != nullptr ? state->A : std::make_shared<const Tensor<R, 2, D>>(negative_exp(A_log_.value()));
    const auto delta = project_dt(dtBC);
    auto out = Tensor<T, 3, D>::uninitialized(conv_out.extents());
    const View<const R, 3, D> initial_state = state != nullptr ? state->ssm_state.view() : View<const R, 3, D>{};
    const auto in = scan_inputs(xz, conv_out, dtBC, delta, A->view(), initial_state);
    const selective_scan::Options options{.delta_softplus = true};
    Workspace<D> workspace(selective_scan::workspace_bytes(in, options));
    selective_scan::forward(in, options, {.out = out.view(), .final_state = final_state}, saved, workspace);
    return out;
  }
  /// One token of each sequence.
  Tensor<T, 3, D> step(const Tensor<T, 3, D>& xz, const View<const T, 3, D>& conv_out, State& state) const {
    const Index channels = sizes_.paths * sizes_.d_inner;
    const auto dtBC = project_scan(conv_out);
    const auto delta = project_dt(dtBC);
    auto out = Tensor<T, 3, D>::uninitialized(conv_out.extents());
    selective_scan::step(selective_scan::StepInputs<T, D>{.u = as_rows(conv_out),
                                                          .delta = as_rows(delta),
                                                          .A = *state.A,
                                                          .B = B_of(dtBC.view()).template select<1>(0),
                                                          .C = C_of(dtBC.view()).template select<1>(0),
                                                          .D = D_.value(),
                                                          .z = as_rows(xz.template slice<2>(channels, 2 * channels)),
                                                          .delta_bias = dt_proj_bias_.value()},
                         state.ssm_state.view(), {.delta_softplus = true}, as_rows(out));
    return out;
  }

  Options options_;
  MambaSizes sizes_;
  bool recompute_convolution_ = false;
  Parameter<T, 2, D> in_proj_weight_;  // (2 * paths * d_inner, d_model): x of all paths, then z
  Parameter<R, 1, D> in_proj_bias_;
  Parameter<R, 2, D> conv_weight_;  // (paths * d_inner, d_conv)
  Parameter<R, 1, D> conv_bias_;
  Parameter<T, 3, D> x_proj_weight_;   // (paths, dt_rank + 2 d_state, d_inner)
  Parameter<T, 3, D> dt_proj_weight_;  // (paths, d_inner, dt_rank)
  Parameter<R, 1, D> dt_proj_bias_;    // (paths * d_inner), the scan's delta_bias
  Parameter<R, 2, D> A_log_;           // (paths * d_inner, d_state)
  Parameter<R, 1, D> D_;
};

/// Mamba (arXiv 2312.00752), with everything that the official module has.
///
///   dm::Mamba<float> mixer({.d_model = 256});
///   dm::initialize(mixer, dm::Philox{1});
///
/// Forward, backward, prefill and step as in Mamba2.
template <class T, Device DeviceType = cpu>
class Mamba : public ProjectedMixer<MambaInner<T, DeviceType>> {
 public:
  using ProjectedMixer<MambaInner<T, DeviceType>>::ProjectedMixer;
  static constexpr std::string_view name() { return "mamba"; }
};

}  // namespace diffmamba
