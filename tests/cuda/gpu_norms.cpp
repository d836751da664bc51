// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// rms_norm and layer_norm on a GPU against the CPU in double.
#include <doctest/doctest.h>

#include "diffmamba/ops/layer_norm/layer_norm_backward.hpp"
#include "diffmamba/ops/layer_norm/layer_norm_forward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"
#include "support/on_both.hpp"

using namespace diffmamba;
using diffmamba::test::norm_error;
using diffmamba::test::OnBoth;
using diffmamba::test::output_tolerance;
using diffmamba::test::same_bits;
using diffmamba::test::sum_tolerance;

namespace {

struct RootMeanSquare {
  static constexpr bool centred = false;
  static auto forward(const auto& in, const rms_norm::Options& options) { return rms_norm::forward(in, options); }
  static auto backward(const auto& in, const auto& saved, const auto& upstream) {
    return rms_norm::backward(in, saved, upstream);
  }
  template <class T>
  static void backward(const rms_norm::Inputs<T, cuda>& in, const rms_norm::Saved<T, cuda>& saved, const auto& upstream,
                       const auto& gradients, Workspace<cuda>& workspace) {
    rms_norm::backward(in, saved, upstream, gradients, workspace, GradientMode::add);
  }
};
struct Layer {
  static constexpr bool centred = true;
  static auto forward(const auto& in, const rms_norm::Options& options) { return layer_norm::forward(in, options); }
  static auto backward(const auto& in, const auto& saved, const auto& upstream) {
    return layer_norm::backward(in, saved, upstream);
  }
  template <class T>
  static void backward(const rms_norm::Inputs<T, cuda>& in, const layer_norm::Saved<T, cuda>& saved,
                       const auto& upstream, const auto& gradients, Workspace<cuda>& workspace) {
    layer_norm::backward(in, saved, upstream, gradients, workspace, GradientMode::add);
  }
};

template <class T>
struct Problem {
  using A = accumulate_t<T>;
  OnBoth<T, 3> x, x1, dout, dout1;
  OnBoth<A, 3> residual, dresidual_out;
  OnBoth<A, 1> weight, bias, weight1, bias1;
  OnBoth<A, 2> rowscale;

  Problem(Index batch, Index length, Index channels)
      : x({batch, length, channels}, 1),
        x1({batch, length, channels}, 2),
        dout({batch, length, channels}, 3),
        dout1({batch, length, channels}, 4),
        residual({batch, length, channels}, 5, 1.0, 0.5),
        dresidual_out({batch, length, channels}, 6),
        weight(Extents{channels}, 7, 0.5, 1.0),
        bias(Extents{channels}, 8),
        weight1(Extents{channels}, 9, 0.5, 1.0),
        bias1(Extents{channels}, 10),
        rowscale({batch, length}, 11, 0.5, 1.0) {}
};

struct Exact {
  const auto& operator()(const auto& both) const { return both.exact; }
};
struct OnDevice {
  const auto& operator()(const auto& both) const { return both.device; }
};

/// options: 0 x alone, 1 with a residual, 2 with a bias too, 3 everything.
template <class T, Device D, class P, class Get>
rms_norm::Inputs<T, D> inputs(const P& p, int options, Get get) {
  rms_norm::Inputs<T, D> in{.x = get(p.x), .weight = get(p.weight)};
  if (options >= 1) in.residual = get(p.residual);
  if (options >= 2) in.bias = get(p.bias);
  if (options >= 3) {
    in.x1 = get(p.x1);
    in.weight1 = get(p.weight1);
    in.bias1 = get(p.bias1);
    in.rowscale = get(p.rowscale);
  }
  return in;
}
template <class T, Device D, class P, class Get>
rms_norm::OutputGradients<T, D> upstream(const P& p, int options, Get get) {
  rms_norm::OutputGradients<T, D> result{.dout = get(p.dout)};
  if (options >= 1) result.dresidual_out = get(p.dresidual_out);
  if (options >= 3) result.dout1 = get(p.dout1);
  return result;
}

template <class Norm, class T>
void check(Index batch, Index length, Index channels, int options) {
  INFO("batch ", batch, ", length ", length, ", channels ", channels, ", options ", options, ", bytes ", sizeof(T));
  const Problem<T> p(batch, length, channels);
  const rms_norm::Options how{.eps = 1e-4, .scale = 0.7, .prenorm = options > 0};
  const auto host = inputs<double, cpu>(p, options, Exact{});
  const auto in = inputs<T, cuda>(p, options, OnDevice{});
  const auto want = Norm::forward(host, how);
  const auto got = Norm::forward(in, how);
  CHECK(norm_error(got.out, want.out) < output_tolerance<T>(want.out.size()));
  CHECK(norm_error(got.saved.rstd, want.saved.rstd) < sum_tolerance<T>);
  if (want.out1) CHECK(norm_error(got.out1, want.out1) < output_tolerance<T>(want.out1.size()));
  if (want.residual_out) CHECK(norm_error(got.residual_out, want.residual_out) < sum_tolerance<T>);

  const auto dwant = Norm::backward(host, want.saved, upstream<double, cpu>(p, options, Exact{}));
  const auto d = Norm::backward(in, got.saved, upstream<T, cuda>(p, options, OnDevice{}));
  // A single channel is its own mean: dx vanishes, only rounding of terms of 1 / sqrt(eps) is left.
  if (Norm::centred && channels == 1 && options == 0)
    CHECK(test::largest(d.dx) < 1e3 * output_tolerance<T>(1000));
  else
    CHECK(norm_error(d.dx, dwant.dx) < output_tolerance<T>(dwant.dx.size()));
  CHECK(norm_error(d.dweight, dwant.dweight) < sum_tolerance<T>);
  if (options >= 1) CHECK(norm_error(d.dresidual, dwant.dresidual) < sum_tolerance<T>);
  if (options >= 2) CHECK(norm_error(d.dbias, dwant.dbias) < sum_tolerance<T>);
  if (options >= 3) {
    CHECK(norm_error(d.dx1, dwant.dx1) < output_tolerance<T>(dwant.dx1.size()));
    CHECK(norm_error(d.dweight1, dwant.dweight1) < sum_tolerance<T>);
    CHECK(norm_error(d.dbias1, dwant.dbias1) < sum_tolerance<T>);
    CHECK(norm_error(d.drowscale, dwant.drowscale) < sum_tolerance<T>);
  }
  const auto again = Norm::backward(in, got.saved, upstream<T, cuda>(p, options, OnDevice{}));
  CHECK(same_bits(d.dx, again.dx));
  CHECK(same_bits(d.dweight, again.dweight));
  CHECK(same_bits(d.dbias1, again.dbias1));
}

/// What a block does: the sum kept in place of the residual, and backward from it, dx over dout, dresidual over
/// dresidual_out, gradients added.
template <class Norm, class T>
void check_in_place(Index length, Index channels) {
  using A = accumulate_t<T>;
  INFO("length ", length, ", channels ", channels, ", bytes ", sizeof(T));
  const Problem<T> p(3, length, channels);
  const auto host = inputs<double, cpu>(p, 1, Exact{});
  const auto want = Norm::forward(host, {});
  const auto dwant = Norm::backward(host, want.saved, upstream<double, cpu>(p, 1, Exact{}));
  auto in = inputs<T, cuda>(p, 1, OnDevice{});
  auto stream = Norm::forward(in, {.prenorm = true});
  auto dout = p.dout.device;
  auto dstream = p.dresidual_out.device;
  Tensor<A, 1, cuda> dweight(Extents{channels}, A(1));
  in.x = View<const T, 3, cuda>(nullptr, p.x.exact.extents());
  in.residual = {};
  Workspace<cuda> workspace(rms_norm::workspace_bytes(in));
  Norm::backward(
      in, stream.saved,
      rms_norm::OutputGradients<T, cuda>{.dout = dout, .dresidual_out = dstream, .residual_out = stream.residual_out},
      rms_norm::GradientViews<T, cuda>{.dx = dout, .dresidual = dstream, .dweight = dweight}, workspace);
  CHECK(norm_error(dout, dwant.dx) < output_tolerance<T>(dwant.dx.size()));
  CHECK(norm_error(dstream, dwant.dresidual) < sum_tolerance<T>);
  auto plus_one = dwant.dweight;
  for (double& value : plus_one) value += 1;
  CHECK(norm_error(dweight, plus_one) < sum_tolerance<T>);
  Tensor<T, 3, cuda> out(p.x.exact.extents());  // what forward wrote, once more
  Norm::backward(in, stream.saved,
                 rms_norm::OutputGradients<T, cuda>{.dout = p.dout.device, .residual_out = stream.residual_out},
                 rms_norm::GradientViews<T, cuda>{.out = out}, workspace);
  CHECK(same_bits(out, stream.out));
}

/// Rows of a wider tensor, at any address.
template <class Norm, class T>
void check_strided(Index begin, Index end) {
  INFO("[", begin, ", ", end, "), bytes ", sizeof(T));
  const OnBoth<T, 3> x({2, 17, 400}, 1), dout({2, 17, 400}, 2);
  const OnBoth<accumulate_t<T>, 1> weight(Extents{end - begin}, 3);
  const rms_norm::Inputs<double> host{.x = x.exact_slice(begin, end), .weight = weight.exact};
  const rms_norm::Inputs<T, cuda> in{.x = x.device_slice(begin, end), .weight = weight.device};
  const auto want = Norm::forward(host, {});
  const auto got = Norm::forward(in, {});
  CHECK(norm_error(got.out, want.out) < output_tolerance<T>(want.out.size()));
  const auto dwant =
      Norm::backward(host, want.saved, rms_norm::OutputGradients<double>{.dout = dout.exact_slice(begin, end)});
  const auto d =
      Norm::backward(in, got.saved, rms_norm::OutputGradients<T, cuda>{.dout = dout.device_slice(begin, end)});
  CHECK(norm_error(d.dx, dwant.dx) < output_tolerance<T>(dwant.dx.size()));
  CHECK(norm_error(d.dweight, dwant.dweight) < sum_tolerance<T>);
}

template <class Norm, class T>
void check_all() {
  for (Index channels : {1, 37, 256, 1024, 1000, 4096, 9000})
    for (int options : {0, 1, 2, 3}) check<Norm, T>(2, 11, channels, options);
  for (Index length : {0, 1, 1500}) check<Norm, T>(2, length, 96, 3);
  check<Norm, T>(3, 700, 512, 2);
  for (int options : {0, 1})
    check<Norm, T>(2, 601, 1024, options);  // several rows in a row for every group of threads
}
template <class Norm, class T>
void check_places() {
  for (Index channels : {64, 300, 2048}) check_in_place<Norm, T>(50, channels);
  check_in_place<Norm, T>(401, 512);
  check_strided<Norm, T>(16, 336);
  check_strided<Norm, T>(3, 340);
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("rms_norm equals the CPU's") {
    check_all<RootMeanSquare, float>();
    check_all<RootMeanSquare, double>();
    check_all<RootMeanSquare, bfloat16>();
  }
  TEST_CASE("layer_norm equals the CPU's") {
    check_all<Layer, float>();
    check_all<Layer, double>();
    check_all<Layer, bfloat16>();
  }
  TEST_CASE("norms in place and of rows at any address") {
    check_places<RootMeanSquare, float>();
    check_places<RootMeanSquare, bfloat16>();
    check_places<Layer, double>();
    check_places<Layer, bfloat16>();
  }
  TEST_CASE("half for inference") {
    const OnBoth<half, 3> x({2, 5, 1024}, 1);
    const OnBoth<float, 1> weight(Extents{1024}, 2);
    Tensor<half, 3, cuda> out(x.exact.extents());
    rms_norm::forward(rms_norm::Inputs<half, cuda>{.x = x.device, .weight = weight.device}, {}, {.out = out}, nullptr);
    CHECK(norm_error(out, rms_norm::forward<double>({.x = x.exact, .weight = weight.exact}).out) < 4e-4);
    layer_norm::forward(rms_norm::Inputs<half, cuda>{.x = x.device, .weight = weight.device}, {}, {.out = out},
                        nullptr);
    CHECK(norm_error(out, layer_norm::forward<double>({.x = x.exact, .weight = weight.exact}).out) < 4e-4);
  }
}
