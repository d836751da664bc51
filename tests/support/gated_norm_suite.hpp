// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "diffmamba/math/silu.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

// What gated_rms_norm and gated_layer_norm must both do. Norm names one of them: `forward`, `backward`, `name`,
// `centred`.
namespace diffmamba::test {

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return a.extents() == b.extents() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

template <class T>
struct GatedNormProblem {
  using A = accumulate_t<T>;
  Tensor<T, 3> x, z, dout;
  Tensor<A, 1> weight, bias;

  GatedNormProblem(Index batch, Index length, Index channels)
      : x(random_tensor<T, 3>({batch, length, channels}, 1, 1.0, 0.3)),
        z(random_tensor<T, 3>({batch, length, channels}, 2)),
        dout(random_tensor<T, 3>({batch, length, channels}, 3)),
        weight(random_tensor<A, 1>(Extents{channels}, 4, 0.5, 1.0)),
        bias(random_tensor<A, 1>(Extents{channels}, 5)) {}

  gated_rms_norm::Inputs<T> full() const { return {.x = x, .weight = weight, .z = z, .bias = bias}; }
  gated_rms_norm::Inputs<T> bare() const { return {.x = x, .weight = weight}; }
};

/// The formula, one group at a time, in double.
inline Tensor<double, 3> plain_gated_norm(const gated_rms_norm::Inputs<double>& in,
                                          const gated_rms_norm::Options& options, bool centred) {
  Tensor<double, 3> out(in.x.extents());
  const Index channels = in.x.extent(2), size = options.group_size > 0 ? options.group_size : channels;
  const auto gate = [&](Index b, Index t, Index c) { return in.z ? silu(in.z(b, t, c)) : 1.0; };
  for (Index b = 0; b < out.extent(0); ++b)
    for (Index t = 0; t < out.extent(1); ++t)
      for (Index first = 0; first < channels; first += size) {
        const auto u = [&](Index c) { return in.x(b, t, c) * (options.norm_before_gate ? 1.0 : gate(b, t, c)); };
        double mean = 0, square = 0;
        for (Index c = first; centred && c < first + size; ++c) mean += u(c) / static_cast<double>(size);
        for (Index c = first; c < first + size; ++c)
          square += (u(c) - mean) * (u(c) - mean) / static_cast<double>(size);
        for (Index c = first; c < first + size; ++c) {
          const double y =
              (u(c) - mean) / std::sqrt(square + options.eps) * in.weight(c) + (in.bias ? in.bias(c) : 0.0);
          out(b, t, c) = y * (options.norm_before_gate ? gate(b, t, c) : 1.0);
        }
      }
  return out;
}

struct GroupCase {
  Index channels, group;
};

template <class Norm>
void gated_norm_formula() {
  for (const GroupCase& sizes : {GroupCase{1, 0}, {18, 6}, {16, 4}, {51, 17}, {70, 35}, {33, 0}, {5000, 2500}})
    for (Index length : {0, 1, 3})
      for (bool norm_before_gate : {false, true}) {
        const Index channels = sizes.channels, group = sizes.group;
        INFO("channels ", channels, ", group ", group, ", length ", length, ", norm before gate ", norm_before_gate);
        const GatedNormProblem<double> p(2, length, channels);
        const gated_rms_norm::Options options{.eps = 1e-3, .group_size = group, .norm_before_gate = norm_before_gate};
        for (const auto& in : {p.full(), p.bare()}) {
          const auto result = Norm::forward(in, options);
          CHECK(relative_error(result.out, plain_gated_norm(in, options, Norm::centred)) < 1e-13);
          CHECK(result.saved.rstd.extents() == Extents{Index{2}, length, group > 0 ? channels / group : Index{1}});
        }
      }
}

template <class Norm>
void gated_norm_gradients() {
  for (const GroupCase& sizes : {GroupCase{12, 0}, {18, 6}, {57, 19}, {4600, 2300}})
    for (bool norm_before_gate : {false, true}) {
      const Index channels = sizes.channels, group = sizes.group;
      INFO("channels ", channels, ", group ", group, ", norm before gate ", norm_before_gate);
      const gated_rms_norm::Options options{.eps = 1e-2, .group_size = group, .norm_before_gate = norm_before_gate};
      GatedNormProblem<double> p(1, 3, channels);
      const Index samples = channels > 100 ? 6 : 40;
      {
        const auto forward = Norm::forward(p.full(), options);
        const auto d = Norm::backward(p.full(), forward.saved, {.dout = p.dout});
        const auto loss = [&] { return dot(Norm::forward(p.full(), options).out, p.dout); };
        check_gradient("x", p.x, d.dx, loss, 1e-7, 1e-3, samples);
        check_gradient("z", p.z, d.dz, loss, 1e-7, 1e-3, samples);
        check_gradient("weight", p.weight, d.dweight, loss, 1e-7, 1e-3, samples);
        check_gradient("bias", p.bias, d.dbias, loss, 1e-7, 1e-3, samples);
      }
      const auto forward = Norm::forward(p.bare(), options);
      const auto d = Norm::backward(p.bare(), forward.saved, {.dout = p.dout});
      const auto loss = [&] { return dot(Norm::forward(p.bare(), options).out, p.dout); };
      check_gradient("x", p.x, d.dx, loss, 1e-7, 1e-3, samples);
      check_gradient("weight", p.weight, d.dweight, loss, 1e-7, 1e-3, samples);
      CHECK((!d.dz && !d.dbias));
    }
}

/// z (and dz) as a slice of a wider projection; dx over dout and dz over z; gradients that add.
template <class Norm>
void gated_norm_slices_in_place() {
  const Index channels = 2 * 34;
  const GatedNormProblem<float> p(2, 40, channels);
  for (bool norm_before_gate : {false, true}) {
    const gated_rms_norm::Options options{.group_size = 17, .norm_before_gate = norm_before_gate};
    const auto want = Norm::forward(p.full(), options);
    const auto dwant = Norm::backward(p.full(), want.saved, {.dout = p.dout});

    Tensor<float, 3> wide({2, 40, 90});
    const auto z = wide.view().template slice<2>(9, 9 + channels);
    copy(p.z, z);
    auto in = p.full();
    in.z = z;
    auto got = Norm::forward(in, options);
    CHECK(same_bits(got.out, want.out));
    Tensor<float, 3> d = p.dout;
    Tensor<float, 1> dweight(Extents{channels}, 1.0f), dbias(Extents{channels});
    Workspace<cpu> workspace(Norm::workspace_bytes(in));
    arena<cpu>().reset_peak();
    const auto before = arena<cpu>().peak_bytes();
    Norm::forward(in, options, {.out = got.out}, &got.saved);
    Norm::backward(in, got.saved, {.dout = d}, {.dx = d, .dz = z, .dweight = dweight}, workspace, GradientMode::add);
    CHECK(arena<cpu>().peak_bytes() == before);
    CHECK(same_bits(d, dwant.dx));
    CHECK(same_bits(to_tensor(z), dwant.dz));
    for (Index c = 0; c < channels; ++c) CHECK(dweight(c) == doctest::Approx(1 + dwant.dweight(c)).epsilon(1e-4));
    CHECK(wide(0, 0, 8) == 0);  // nothing beside the slice is written
    CHECK(wide(0, 0, 9 + channels) == 0);
  }
}

template <class Norm>
void gated_norm_types_and_threads() {
  const gated_rms_norm::Options options{.group_size = 45, .norm_before_gate = false};
  const GatedNormProblem<double> exact(3, 200, 90);
  const auto want = Norm::forward(exact.full(), options);
  const auto dwant = Norm::backward(exact.full(), want.saved, {.dout = exact.dout});
  const auto compare = [&]<class T>(T, double tolerance) {
    const GatedNormProblem<T> p(3, 200, 90);
    const auto run = [&](int threads) {
      const Threads scope(threads);
      auto forward = Norm::forward(p.full(), options);
      auto d = Norm::backward(p.full(), forward.saved, {.dout = p.dout});
      return std::pair{std::move(forward), std::move(d)};
    };
    const auto one = run(1), two = run(2);
    CHECK(relative_error(one.first.out, want.out) < tolerance);
    CHECK(relative_error(one.second.dx, dwant.dx) < tolerance);
    CHECK(relative_error(one.second.dz, dwant.dz) < tolerance);
    CHECK(relative_error(one.second.dweight, dwant.dweight) < tolerance);
    CHECK(relative_error(one.second.dbias, dwant.dbias) < tolerance);
    CHECK(same_bits(one.first.out, two.first.out));
    CHECK(same_bits(one.second.dx, two.second.dx));
    CHECK(same_bits(one.second.dz, two.second.dz));
    CHECK(same_bits(one.second.dweight, two.second.dweight));
    CHECK(same_bits(one.second.dbias, two.second.dbias));
  };
  compare(float{}, 1e-5);
  compare(bfloat16{}, 2e-2);
}

template <class Norm>
void gated_norm_mistakes() {
  const std::string op = Norm::name;
  const GatedNormProblem<float> p(2, 3, 16);
  CHECK_THROWS_WITH_AS(Norm::forward(p.full(), {.group_size = 5}),
                       (op + ": group_size 5 does not divide 16 channels (x: (2, 3, 16))").c_str(), Error);
  auto in = p.full();
  const Tensor<float, 3> other({2, 3, 15});
  in.z = other;
  CHECK_THROWS_WITH_AS(Norm::forward(in, {}), (op + ": z has the shape (2, 3, 15), expected (2, 3, 16)").c_str(),
                       Error);
  in = p.full();
  const Tensor<float, 1> shorter(Extents{15});
  in.bias = shorter;
  CHECK_THROWS_WITH_AS(Norm::forward(in, {}), (op + ": bias has the shape (15), expected (16)").c_str(), Error);
  const auto forward = Norm::forward(p.full(), {});
  CHECK_THROWS_WITH_AS(Norm::backward(p.full(), forward.saved, {.dout = other}),
                       (op + ": dout has the shape (2, 3, 15), expected (2, 3, 16)").c_str(), Error);
}

}  // namespace diffmamba::test
