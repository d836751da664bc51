// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// gated_rms_norm and gated_layer_norm on a GPU against the CPU in double.
#include <doctest/doctest.h>

#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_backward.hpp"
#include "diffmamba/ops/gated_layer_norm/gated_layer_norm_forward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
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
  static auto forward(const auto& in, const gated_rms_norm::Options& options) {
    return gated_rms_norm::forward(in, options);
  }
  static auto backward(const auto& in, const auto& saved, const auto& upstream) {
    return gated_rms_norm::backward(in, saved, upstream);
  }
  template <class T>
  static void backward(const gated_rms_norm::Inputs<T, cuda>& in, const gated_rms_norm::Saved<T, cuda>& saved,
                       const gated_rms_norm::OutputGradients<T, cuda>& upstream,
                       const gated_rms_norm::GradientViews<T, cuda>& gradients, Workspace<cuda>& workspace) {
    gated_rms_norm::backward(in, saved, upstream, gradients, workspace);
  }
};
struct Layer {
  static constexpr bool centred = true;
  static auto forward(const auto& in, const gated_rms_norm::Options& options) {
    return gated_layer_norm::forward(in, options);
  }
  static auto backward(const auto& in, const auto& saved, const auto& upstream) {
    return gated_layer_norm::backward(in, saved, upstream);
  }
  template <class T>
  static void backward(const gated_rms_norm::Inputs<T, cuda>& in, const gated_layer_norm::Saved<T, cuda>& saved,
                       const gated_rms_norm::OutputGradients<T, cuda>& upstream,
                       const gated_rms_norm::GradientViews<T, cuda>& gradients, Workspace<cuda>& workspace) {
    gated_layer_norm::backward(in, saved, upstream, gradients, workspace);
  }
};

template <class T>
struct Problem {
  OnBoth<T, 3> x, z, dout;
  OnBoth<accumulate_t<T>, 1> weight, bias;

  Problem(Index batch, Index length, Index channels)
      : x({batch, length, channels}, 1, 1.0, 0.3),
        z({batch, length, channels}, 2),
        dout({batch, length, channels}, 3),
        weight(Extents{channels}, 4, 0.5, 1.0),
        bias(Extents{channels}, 5) {}
  auto exact(bool gate, bool with_bias) const {
    gated_rms_norm::Inputs<double> in{.x = x.exact, .weight = weight.exact};
    if (gate) in.z = z.exact;
    if (with_bias) in.bias = bias.exact;
    return in;
  }
  auto device(bool gate, bool with_bias) const {
    gated_rms_norm::Inputs<T, cuda> in{.x = x.device, .weight = weight.device};
    if (gate) in.z = z.device;
    if (with_bias) in.bias = bias.device;
    return in;
  }
};

template <class Norm, class T>
void check(Index length, Index channels, Index group, bool gate, bool norm_before_gate, bool with_bias) {
  INFO("length ", length, ", channels ", channels, ", group ", group, ", gate ", gate, ", norm first ",
       norm_before_gate, ", bias ", with_bias, ", bytes ", sizeof(T));
  const Problem<T> p(2, length, channels);
  const gated_rms_norm::Options options{.eps = 1e-4, .group_size = group, .norm_before_gate = norm_before_gate};
  const auto host = p.exact(gate, with_bias);
  const auto in = p.device(gate, with_bias);
  const auto want = Norm::forward(host, options);
  const auto got = Norm::forward(in, options);
  CHECK(norm_error(got.out, want.out) < output_tolerance<T>(want.out.size()));
  CHECK(norm_error(got.saved.rstd, want.saved.rstd) < sum_tolerance<T>);
  const auto dwant = Norm::backward(host, want.saved, gated_rms_norm::OutputGradients<double>{.dout = p.dout.exact});
  const gated_rms_norm::OutputGradients<T, cuda> upstream{.dout = p.dout.device};
  const auto d = Norm::backward(in, got.saved, upstream);
  // A single channel is its own mean: where dx and dz vanish, only rounding of terms of 1 / sqrt(eps) is left.
  const bool vanishes = Norm::centred && channels == 1;
  if (vanishes)
    CHECK(test::largest(d.dx) < 1e3 * output_tolerance<T>(1000));
  else
    CHECK(norm_error(d.dx, dwant.dx) < output_tolerance<T>(dwant.dx.size()));
  if (gate && vanishes && !norm_before_gate)
    CHECK(test::largest(d.dz) < 1e3 * output_tolerance<T>(1000));
  else if (gate)
    CHECK(norm_error(d.dz, dwant.dz) < output_tolerance<T>(dwant.dz.size()));
  CHECK(norm_error(d.dweight, dwant.dweight) < sum_tolerance<T>);
  if (with_bias) CHECK(norm_error(d.dbias, dwant.dbias) < sum_tolerance<T>);
  // The forward's output once more, here without any other gradient.
  Tensor<T, 3, cuda> out(want.out.extents());
  Workspace<cuda> workspace(gated_rms_norm::workspace_bytes(in));
  Norm::backward(in, got.saved, upstream, {.out = out}, workspace);
  CHECK(norm_error(out, want.out) < output_tolerance<T>(out.size()));
  auto over_x = p.x.device;  // and in place of x
  auto in_place = in;
  in_place.x = over_x;
  Norm::backward(in_place, got.saved, upstream, {.out = over_x}, workspace);
  CHECK(same_bits(over_x, out));
  const auto again = Norm::backward(in, got.saved, upstream);
  CHECK(same_bits(d.dx, again.dx));
  CHECK(same_bits(d.dz, again.dz));
  CHECK(same_bits(d.dweight, again.dweight));
}

/// z and dz as slices of a wider projection; dx over dout, dz over z; gradients that add.
template <class T>
void check_in_place(Index begin) {
  const Index channels = 2 * 48;
  INFO("from ", begin, ", bytes ", sizeof(T));
  const Problem<T> p(2, 40, channels);
  const gated_rms_norm::Options options{.group_size = 48, .norm_before_gate = false};
  const auto want = gated_rms_norm::forward(p.exact(true, false), options);
  const auto dwant = gated_rms_norm::backward(p.exact(true, false), want.saved, {.dout = p.dout.exact});
  Tensor<T, 3, cuda> wide({2, 40, 160}), d = p.dout.device;
  const auto z = wide.template slice<2>(begin, begin + channels);
  copy(p.z.device, z);
  auto in = p.device(true, false);
  in.z = z;
  auto got = gated_rms_norm::forward(in, options);
  CHECK(norm_error(got.out, want.out) < output_tolerance<T>(want.out.size()));
  Tensor<accumulate_t<T>, 1, cuda> dweight(Extents{channels}, accumulate_t<T>(1));
  Workspace<cuda> workspace(gated_rms_norm::workspace_bytes(in));
  gated_rms_norm::backward(in, got.saved, {.dout = d}, {.dx = d, .dz = z, .dweight = dweight}, workspace,
                           GradientMode::add);
  CHECK(norm_error(d, dwant.dx) < output_tolerance<T>(dwant.dx.size()));
  CHECK(norm_error(z, dwant.dz) < output_tolerance<T>(dwant.dz.size()));
  auto plus_one = dwant.dweight;
  for (double& value : plus_one) value += 1;
  CHECK(norm_error(dweight, plus_one) < sum_tolerance<T>);
}

template <class Norm, class T>
void check_all() {
  struct Sizes {
    Index channels, group;
  };
  for (const Sizes& sizes :
       {Sizes{1, 0}, {37, 0}, {1024, 0}, {2048, 1024}, {192, 64}, {51, 17}, {4096, 0}, {9000, 0}, {2400, 3}})
    for (bool norm_before_gate : {false, true}) {
      check<Norm, T>(11, sizes.channels, sizes.group, true, norm_before_gate, false);
      check<Norm, T>(11, sizes.channels, sizes.group, true, norm_before_gate, true);
    }
  check<Norm, T>(7, 96, 0, false, true, true);
  check<Norm, T>(7, 96, 0, false, false, false);
  for (Index length : {0, 1, 1500}) check<Norm, T>(length, 128, 64, true, false, true);
  // Several rows in a row for every group of threads.
  for (bool norm_before_gate : {false, true}) check<Norm, T>(301, 1024, 0, true, norm_before_gate, false);
  check<Norm, T>(301, 1024, 256, true, false, false);
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("gated_rms_norm equals the CPU's") {
    check_all<RootMeanSquare, float>();
    check_all<RootMeanSquare, double>();
    check_all<RootMeanSquare, bfloat16>();
  }
  TEST_CASE("gated norms in place and of rows at any address") {
    for (Index begin : {16, 3}) {
      check_in_place<float>(begin);
      check_in_place<bfloat16>(begin);
    }
  }
  TEST_CASE("gated_layer_norm equals the CPU's") {
    check_all<Layer, float>();
    check_all<Layer, double>();
    check_all<Layer, bfloat16>();
  }
}
