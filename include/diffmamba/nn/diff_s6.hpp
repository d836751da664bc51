// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/nn/mamba.hpp"

namespace diffmamba {

/// DiffS6 of the Diff-Mamba repository: a Mamba block with two selective scans over the same x, each with its own B, C,
/// dt, A and D, both gated by the same z,
///
///   out = out_proj((S6_1(x) - S6_2(x)) * silu(z))
///
/// without lambda, norm and factor. Both scans are one call over twice the channels, for which x and z are repeated.
template <class T, Device DeviceType = cpu>
class DiffS6 : public Module<DiffS6<T, DeviceType>> {
  using D = DeviceType;
  using R = accumulate_t<T>;

 public:
  using value_type = T;
  using device_type = DeviceType;
  using Options = MambaOptions;

  /// Elements of T per token: 2 d_model-side tensors x and gated, 3 d_inner, 2 (dt_rank + 2 d_state), and the scans'
  /// states.
  struct Saved {
    Tensor<T, 3, D> x, xz, conv_out, gated;
    Tensor<T, 4, D> dtBC;  // (batch, length, 2, dt_rank + 2 d_state)
    selective_scan::Saved<T, D> scan;
  };
  struct State {
    Tensor<R, 3, D> conv_state;  // (batch, d_inner, d_conv)
    Tensor<R, 3, D> ssm_state;   // (batch, 2 * d_inner, d_state)
  };

  static constexpr std::string_view name() { return "diff_s6"; }

  explicit DiffS6(const Options& options)
      : options_(options),
        sizes_(options, 2),
        in_proj_(sizes_.d_model, 2 * sizes_.d_inner, options.bias),
        out_proj_(sizes_.d_inner, sizes_.d_model, options.bias) {
    const auto& s = sizes_;
    conv_weight_ = Parameter<R, 2, D>(Extents{s.d_inner, s.d_conv});
    if (options.conv_bias) conv_bias_ = Parameter<R, 1, D>(Extents<1>{s.d_inner}, Decay::no);
    x_proj_weight_ = Parameter<T, 3, D>(Extents{Index{2}, s.x_proj_rows(), s.d_inner});
    dt_proj_weight_ = Parameter<T, 3, D>(Extents{Index{2}, s.d_inner, s.dt_rank});
    dt_proj_bias_ = Parameter<R, 1, D>(Extents<1>{2 * s.d_inner}, Decay::no);
    A_log_ = Parameter<R, 2, D>(Extents{2 * s.d_inner, s.d_state}, Decay::no);
    D_ = Parameter<R, 1, D>(Extents<1>{2 * s.d_inner}, Decay::no);
  }

  void initialize(Philox random, const Initialization& how = {}) {
    const auto& s = sizes_;
    in_proj_.initialize(random.child(0), how);
    out_proj_.initialize(random.child(1), how);
    scale_by(out_proj_.weight, how.residual_scale);
    draw_linear(conv_weight_, s.d_conv, random.child(2));
    if (conv_bias_) draw_linear(conv_bias_, s.d_conv, random.child(3));
    draw_linear(x_proj_weight_, s.d_inner, random.child(4));
    draw_parameter(dt_proj_weight_, [&](auto& values) {
      if (options_.dt_init == DtInit::random)
        fill_linear(values, s.dt_rank, random.child(5), options_.dt_scale);
      else
        values.fill(static_cast<R>(options_.dt_scale / std::sqrt(static_cast<double>(s.dt_rank))));
    });
    draw_parameter(dt_proj_bias_, [&](auto& values) {
      fill_dt_bias(values.view(), random.child(6), options_.dt_min, options_.dt_max, options_.dt_init_floor);
    });
    draw_parameter(A_log_, [](auto& values) { fill_s4d_real(values.view()); });
    fill_ones(D_);
  }

  Tensor<T, 3, D> forward(Tensor<T, 3, D> x, Saved& saved) const {
    saved.x = std::move(x);
    saved.xz = project(saved.x);
    auto conv_out = convolve(saved.xz, {});
    saved.dtBC = project_scan(conv_out);
    saved.gated = scan(saved.xz, conv_out, saved.dtBC, &saved.scan, {}, {});
    if (!recompute_convolution_) saved.conv_out = std::move(conv_out);
    return out_proj_.forward(saved.gated);
  }
  Tensor<T, 3, D> forward(const View<const T, 3, D>& x) const {
    const auto xz = project(x);
    const auto conv_out = convolve(xz, {});
    return out_proj_.forward(scan(xz, conv_out, project_scan(conv_out), nullptr, {}, {}));
  }

  Tensor<T, 3, D> backward(const View<const T, 3, D>& dout, Saved& saved) {
    require(bool(saved.gated), name(), ": backward without a forward before it; every Saved serves once");
    const auto& s = sizes_;
    const DiffS6& self = *this;
    const Index batch = saved.x.extent(0), length = saved.x.extent(1);
    if (!saved.conv_out) saved.conv_out = convolve(saved.xz, {});
    // gated = g1 - g2: dg1 = dgated, dg2 = -dgated
    auto dpaths = Tensor<T, 3, D>::uninitialized(Extents{batch, length, 2 * s.d_inner});
    {
      const auto dgated = out_proj_.backward(saved.gated, dout);
      saved.gated = {};
      subtract_paths_backward(dgated.view(), dpaths.view());
    }
    auto dxz = Tensor<T, 3, D>::uninitialized(saved.xz.extents());
    auto dconv = Tensor<T, 3, D>::uninitialized(saved.conv_out.extents());
    auto ddtBC = Tensor<T, 4, D>::uninitialized(saved.dtBC.extents());
    {
      const auto A = negative_exp(self.A_log_.value());
      Tensor<R, 2, D> dA(A.extents());
      auto du = Tensor<T, 3, D>::uninitialized(dpaths.extents()), dz = Tensor<T, 3, D>::uninitialized(dpaths.extents());
      auto ddelta = Tensor<T, 3, D>::uninitialized(dpaths.extents());
      {
        const auto delta = project_dt(saved.dtBC);
        const auto u = twice(saved.conv_out), z = twice(z_of(saved.xz));
        const auto in = scan_inputs(u, z, saved.dtBC, delta, A, {});
        Workspace<D> workspace(selective_scan::workspace_bytes(in, saved.scan));
        selective_scan::backward(in, saved.scan, {.dout = dpaths},
                                 {.du = du.view(),
                                  .ddelta = ddelta.view(),
                                  .dA = dA.view(),
                                  .dB = B_of(ddtBC.view()),
                                  .dC = C_of(ddtBC.view()),
                                  .dD = D_.gradient(),
                                  .dz = dz.view(),
                                  .ddelta_bias = dt_proj_bias_.gradient()},
                                 workspace, GradientMode::add);
      }
      add_product(dA.view(), A.view(), A_log_.gradient());
      saved.scan = {};
      // What both scans read gets both gradients.
      add_paths(std::as_const(du).view(), dconv.view());
      add_paths(std::as_const(dz).view(), dxz.template slice<2>(s.d_inner, 2 * s.d_inner));
      for (Index p = 0; p < 2; ++p)
        linear::backward(linear::Inputs<T, D>{.x = dt_of(std::as_const(saved.dtBC).view(), p),
                                              .weight = self.dt_proj_weight_.value().template select<0>(p)},
                         path_rows(std::as_const(ddelta).view(), p),
                         {.dx = dt_of(ddtBC.view(), p), .dweight = dt_proj_weight_.gradient().template select<0>(p)},
                         GradientMode::add);
    }
    const auto dtBC_rows = std::as_const(ddtBC).reshape(Extents{batch * length, 2 * s.x_proj_rows()});
    linear::backward(linear::Inputs<T, D>{.x = as_rows(std::as_const(saved.conv_out)),
                                          .weight = x_proj_rows(self.x_proj_weight_.value())},
                     dtBC_rows, {.dweight = x_proj_rows(x_proj_weight_.gradient())}, GradientMode::add);
    matmul(dtBC_rows, x_proj_rows(self.x_proj_weight_.value()), as_rows(dconv), {.beta = 1});
    saved.dtBC = {};
    saved.conv_out = {};
    {
      const auto in = convolution(saved.xz, {});
      Workspace<D> workspace(causal_conv1d::workspace_bytes(in));
      causal_conv1d::backward(in, causal_conv1d::Saved<T, D>{conv_options()}, {.dout = dconv.view()},
                              {.dx = dxz.template slice<2>(0, s.d_inner),
                               .dweight = conv_weight_.gradient(),
                               .dbias = conv_bias_.gradient()},
                              workspace, GradientMode::add);
    }
    auto dx = in_proj_.backward(saved.x, dxz);
    saved = {};
    return dx;
  }

  void set_recompute_convolution(bool recompute) { recompute_convolution_ = recompute; }
  State make_state(Index batch) const {
    return {.conv_state = Tensor<R, 3, D>(Extents{batch, sizes_.d_inner, sizes_.d_conv}),
            .ssm_state = Tensor<R, 3, D>(Extents{batch, 2 * sizes_.d_inner, sizes_.d_state})};
  }
  Tensor<T, 3, D> prefill(const View<const T, 3, D>& x, State& state) const {
    const auto& s = sizes_;
    require_shape(name().data(), "conv_state", state.conv_state.view(), Extents{x.extent(0), s.d_inner, s.d_conv});
    require_shape(name().data(), "ssm_state", state.ssm_state.view(), Extents{x.extent(0), 2 * s.d_inner, s.d_state});
    const auto xz = project(x);
    const auto conv_out = convolve(xz, std::as_const(state.conv_state).template slice<2>(1, s.d_conv));
    remember_inputs<T>(xz.template slice<2>(0, s.d_inner), state.conv_state.view());
    auto final_state = Tensor<R, 3, D>::uninitialized(state.ssm_state.extents());
    const auto gated = scan(xz, conv_out, project_scan(conv_out), nullptr, state.ssm_state.view(), final_state.view());
    copy(final_state, state.ssm_state);  // a state keeps its memory: what steps it may be a captured graph
    return out_proj_.forward(gated);
  }

  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    const auto& s = self.sizes_;
    const auto give = [&](std::string_view name, auto part) { f(name, part); };
    Linear<T, D>::parameters(self.in_proj_, prefixed("in_proj.", f));
    give("conv1d.weight", path_of(self.conv_weight_, 0, Extents{s.d_inner, Index{1}, s.d_conv}));
    if (self.conv_bias_) f("conv1d.bias", self.conv_bias_);
    for (Index p = 0; p < 2; ++p) {
      const bool first = p == 0;
      give(first ? "x1_proj.weight" : "x2_proj.weight",
           path_of(self.x_proj_weight_, p, Extents{s.x_proj_rows(), s.d_inner}));
      give(first ? "dt1_proj.weight" : "dt2_proj.weight",
           path_of(self.dt_proj_weight_, p, Extents{s.d_inner, s.dt_rank}));
      give(first ? "dt1_proj.bias" : "dt2_proj.bias", path_of(self.dt_proj_bias_, p, Extents<1>{s.d_inner}));
      give(first ? "A1_log" : "A2_log", path_of(self.A_log_, p, Extents{s.d_inner, s.d_state}));
      give(first ? "D1" : "D2", path_of(self.D_, p, Extents<1>{s.d_inner}));
    }
    Linear<T, D>::parameters(self.out_proj_, prefixed("out_proj.", f));
  }

 private:
  static causal_conv1d::Options conv_options() { return {.activation = causal_conv1d::Activation::silu}; }
  /// One tensor as the input of both scans, (batch, length, 2 d_inner).
  Tensor<T, 3, D> twice(const View<const T, 3, D>& x) const {
    auto both = Tensor<T, 3, D>::uninitialized(Extents{x.extent(0), x.extent(1), 2 * x.extent(2)});
    for (Index path = 0; path < 2; ++path)
      copy(x, both.template slice<2>(path * x.extent(2), (path + 1) * x.extent(2)));
    return both;
  }
  template <class E>
  View<E, 2, D> x_proj_rows(const View<E, 3, D>& weight) const {  // of both scans, one product
    return weight.reshape(Extents{2 * sizes_.x_proj_rows(), sizes_.d_inner});
  }
  template <class E>
  View<E, 2, D> path_rows(const View<E, 3, D>& x, Index path) const {
    return as_rows(x.template slice<2>(path * sizes_.d_inner, (path + 1) * sizes_.d_inner));
  }
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

  Tensor<T, 3, D> project(const View<const T, 3, D>& x) const {
    require(x.extent(2) == sizes_.d_model, name(), ": x is ", x.extents(), ", expected d_model ", sizes_.d_model);
    return in_proj_.forward(x);
  }
  causal_conv1d::Inputs<T, D> convolution(const Tensor<T, 3, D>& xz, const View<const R, 3, D>& initial_state) const {
    return {.x = xz.template slice<2>(0, sizes_.d_inner),
            .weight = conv_weight_.value(),
            .bias = conv_bias_.value(),
            .initial_state = initial_state};
  }
  Tensor<T, 3, D> convolve(const Tensor<T, 3, D>& xz, const View<const R, 3, D>& initial_state) const {
    auto out = Tensor<T, 3, D>::uninitialized(Extents{xz.extent(0), xz.extent(1), sizes_.d_inner});
    const auto in = convolution(xz, initial_state);
    Workspace<D> workspace(causal_conv1d::workspace_bytes(in));
    causal_conv1d::forward(in, conv_options(), {.out = out}, nullptr, workspace);
    return out;
  }
  Tensor<T, 4, D> project_scan(const Tensor<T, 3, D>& conv_out) const {
    const auto& s = sizes_;
    const Index batch = conv_out.extent(0), length = conv_out.extent(1);
    auto dtBC = Tensor<T, 4, D>::uninitialized(Extents{batch, length, Index{2}, s.x_proj_rows()});
    linear::forward(linear::Inputs<T, D>{.x = as_rows(conv_out), .weight = x_proj_rows(x_proj_weight_.value())},
                    dtBC.reshape(Extents{batch * length, 2 * s.x_proj_rows()}));
    return dtBC;
  }
  Tensor<T, 3, D> project_dt(const Tensor<T, 4, D>& dtBC) const {
    auto delta = Tensor<T, 3, D>::uninitialized(Extents{dtBC.extent(0), dtBC.extent(1), 2 * sizes_.d_inner});
    for (Index p = 0; p < 2; ++p)
      linear::forward(
          linear::Inputs<T, D>{.x = dt_of(dtBC.view(), p), .weight = dt_proj_weight_.value().template select<0>(p)},
          path_rows(delta.view(), p));
    return delta;
  }
  View<const T, 3, D> z_of(const Tensor<T, 3, D>& xz) const {
    return xz.template slice<2>(sizes_.d_inner, 2 * sizes_.d_inner);
  }
  selective_scan::Inputs<T, D> scan_inputs(const Tensor<T, 3, D>& u, const Tensor<T, 3, D>& z,
                                           const Tensor<T, 4, D>& dtBC, const Tensor<T, 3, D>& delta,
                                           const Tensor<R, 2, D>& A, const View<const R, 3, D>& initial_state) const {
    return {.u = u.view(),
            .delta = delta.view(),
            .A = A,
            .B = B_of(dtBC.view()),
            .C = C_of(dtBC.view()),
            .D = D_.value(),
            .z = z.view(),
            .delta_bias = dt_proj_bias_.value(),
            .initial_state = initial_state};
  }
  /// gated = g1 - g2
  Tensor<T, 3, D> scan(const Tensor<T, 3, D>& xz, const Tensor<T, 3, D>& conv_out, const Tensor<T, 4, D>& dtBC,
                       selective_scan::Saved<T, D>* saved, const View<const R, 3, D>& initial_state,
                       const View<R, 3, D>& final_state) const {
    const auto A = negative_exp(A_log_.value());
    const auto delta = project_dt(dtBC);
    const auto u = twice(conv_out), z = twice(z_of(xz));
    const auto in = scan_inputs(u, z, dtBC, delta, A, initial_state);
    auto paths = Tensor<T, 3, D>::uninitialized(delta.extents());
    const selective_scan::Options options{.delta_softplus = true};
    {
      Workspace<D> workspace(selective_scan::workspace_bytes(in, options));
      selective_scan::forward(in, options, {.out = paths.view(), .final_state = final_state}, saved, workspace);
    }
    auto gated = Tensor<T, 3, D>::uninitialized(conv_out.extents());
    subtract_paths(std::as_const(paths).view(), gated.view());
    return gated;
  }

  Options options_;
  MambaSizes sizes_;
  bool recompute_convolution_ = false;
  Linear<T, D> in_proj_;
  Parameter<R, 2, D> conv_weight_;  // (d_inner, d_conv)
  Parameter<R, 1, D> conv_bias_;
  Parameter<T, 3, D> x_proj_weight_;   // (2, dt_rank + 2 d_state, d_inner)
  Parameter<T, 3, D> dt_proj_weight_;  // (2, d_inner, dt_rank)
  Parameter<R, 1, D> dt_proj_bias_;    // (2 * d_inner)
  Parameter<R, 2, D> A_log_;           // (2 * d_inner, d_state)
  Parameter<R, 1, D> D_;
  Linear<T, D> out_proj_;
};

}  // namespace diffmamba
