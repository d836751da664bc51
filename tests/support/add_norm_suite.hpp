// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "diffmamba/ops/rms_norm/rms_norm.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

// What rms_norm and layer_norm must both do. Norm names one of them: `forward`, `backward`, `name`, `centred`.
namespace diffmamba::test {

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return a.extents() == b.extents() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

template <class T>
struct AddNormProblem {
  using A = accumulate_t<T>;
  Tensor<T, 3> x, x1, dout, dout1;
  Tensor<A, 3> residual, dresidual_out;
  Tensor<A, 1> weight, bias, weight1, bias1;
  Tensor<A, 2> rowscale;

  AddNormProblem(Index batch, Index length, Index channels)
      : x(random_tensor<T, 3>({batch, length, channels}, 1)),
        x1(random_tensor<T, 3>({batch, length, channels}, 2)),
        dout(random_tensor<T, 3>({batch, length, channels}, 3)),
        dout1(random_tensor<T, 3>({batch, length, channels}, 4)),
        residual(random_tensor<A, 3>({batch, length, channels}, 5, 1.0, 0.5)),
        dresidual_out(random_tensor<A, 3>({batch, length, channels}, 6)),
        weight(random_tensor<A, 1>(Extents{channels}, 7, 0.5, 1.0)),
        bias(random_tensor<A, 1>(Extents{channels}, 8)),
        weight1(random_tensor<A, 1>(Extents{channels}, 9, 0.5, 1.0)),
        bias1(random_tensor<A, 1>(Extents{channels}, 10)),
        rowscale(random_tensor<A, 2>({batch, length}, 11, 0.5, 1.0)) {}

  rms_norm::Inputs<T> bare() const { return {.x = x, .weight = weight}; }
  rms_norm::Inputs<T> full() const {
    return {.x = x,
            .weight = weight,
            .bias = bias,
            .residual = residual,
            .x1 = x1,
            .weight1 = weight1,
            .bias1 = bias1,
            .rowscale = rowscale};
  }
  rms_norm::OutputGradients<T> upstream(const rms_norm::Inputs<T>& in) const {
    rms_norm::OutputGradients<T> result{.dout = dout, .dresidual_out = dresidual_out};
    if (in.weight1) result.dout1 = dout1;
    return result;
  }
};

/// sum(dout * out) + sum(dout1 * out1) + sum(dresidual_out * r) by the formula, one row at a time, in double.
inline double plain_add_norm(const AddNormProblem<double>& p, const rms_norm::Inputs<double>& in,
                             const rms_norm::Options& options, bool centred, Tensor<double, 3>* out = nullptr) {
  const Index channels = in.x.extent(2);
  double loss = 0;
  for (Index b = 0; b < in.x.extent(0); ++b)
    for (Index t = 0; t < in.x.extent(1); ++t) {
      const auto r = [&](Index c) {
        return in.x(b, t, c) * (in.rowscale ? in.rowscale(b, t) : 1.0) + (in.x1 ? in.x1(b, t, c) : 0.0) +
               (in.residual ? in.residual(b, t, c) : 0.0);
      };
      double mean = 0, square = 0;
      for (Index c = 0; centred && c < channels; ++c) mean += r(c) / static_cast<double>(channels);
      for (Index c = 0; c < channels; ++c) square += (r(c) - mean) * (r(c) - mean) / static_cast<double>(channels);
      for (Index c = 0; c < channels; ++c) {
        const double h = (r(c) - mean) / std::sqrt(square + options.eps);
        const double y = options.scale * (h * in.weight(c) + (in.bias ? in.bias(c) : 0.0));
        if (out) (*out)(b, t, c) = y;
        loss += p.dout(b, t, c) * y + p.dresidual_out(b, t, c) * r(c);
        if (in.weight1) loss += p.dout1(b, t, c) * options.scale * (h * in.weight1(c) + (in.bias1 ? in.bias1(c) : 0.0));
      }
    }
  return loss;
}

template <class Norm>
void add_norm_formula() {
  for (Index channels : {1, 7, 16, 33, 128})
    for (Index length : {0, 1, 5}) {
      CAPTURE(channels);
      CAPTURE(length);
      const AddNormProblem<double> p(2, length, channels);
      for (const auto& in : {p.bare(), p.full()}) {
        const rms_norm::Options options{.eps = 1e-3, .scale = 0.7, .prenorm = true};
        const auto result = Norm::forward(in, options);
        Tensor<double, 3> want(p.x.extents());
        const double loss = plain_add_norm(p, in, options, Norm::centred, &want);
        CHECK(relative_error(result.out, want) < 1e-13);
        double got = dot(result.out, p.dout) + dot(result.residual_out, p.dresidual_out);
        if (result.out1) got += dot(result.out1, p.dout1);
        CHECK(got == doctest::Approx(loss).epsilon(1e-12));
        CHECK(!Norm::forward(in, {}).residual_out);
      }
    }
}

template <class Norm>
void add_norm_gradients() {
  const rms_norm::Options options{.eps = 1e-2, .scale = 0.6};
  for (Index channels : {2, 19}) {
    CAPTURE(channels);
    AddNormProblem<double> p(2, 3, channels);
    {
      const auto in = p.full();
      const auto forward = Norm::forward(in, options);
      const auto d = Norm::backward(in, forward.saved, p.upstream(in));
      const auto loss = [&] { return plain_add_norm(p, p.full(), options, Norm::centred); };
      check_gradient("x", p.x, d.dx, loss, 1e-8);
      check_gradient("x1", p.x1, d.dx1, loss, 1e-8);
      check_gradient("residual", p.residual, d.dresidual, loss, 1e-8);
      check_gradient("weight", p.weight, d.dweight, loss, 1e-8);
      check_gradient("bias", p.bias, d.dbias, loss, 1e-8);
      check_gradient("weight1", p.weight1, d.dweight1, loss, 1e-8);
      check_gradient("bias1", p.bias1, d.dbias1, loss, 1e-8);
      check_gradient("rowscale", p.rowscale, d.drowscale, loss, 1e-8);
    }
    const auto in = p.bare();
    const auto forward = Norm::forward(in, options);
    const auto d = Norm::backward(in, forward.saved, p.upstream(in));
    const auto loss = [&] { return plain_add_norm(p, p.bare(), options, Norm::centred); };
    check_gradient("x", p.x, d.dx, loss, 1e-8);
    check_gradient("weight", p.weight, d.dweight, loss, 1e-8);
    CHECK((!d.dx1 && !d.dresidual && !d.dbias && !d.dweight1 && !d.dbias1 && !d.drowscale));
  }
}

/// The kept sum instead of its addends, gradients over the memory of others, gradients that add, no allocation.
template <class Norm>
void add_norm_in_place() {
  const AddNormProblem<float> p(3, 50, 70);
  rms_norm::Inputs<float> in{.x = p.x, .weight = p.weight, .bias = p.bias, .residual = p.residual};
  const auto want = Norm::forward(in, {.prenorm = true});
  const auto dwant = Norm::backward(in, want.saved, {.dout = p.dout, .dresidual_out = p.dresidual_out});

  Tensor<float, 3> stream = p.residual, out = p.x;
  auto in_place = in;
  in_place.x = out;
  in_place.residual = stream;
  typename Norm::template Saved<float> saved = want.saved;  // has the memory already
  Tensor<float, 3> dstream = p.dresidual_out;
  Tensor<float, 1> dweight(Extents{70}, 1.0f), dbias(Extents{70}, 1.0f);
  Workspace<cpu> workspace(Norm::workspace_bytes(in));
  arena<cpu>().reset_peak();
  const auto before = arena<cpu>().peak_bytes();
  Norm::forward(in_place, {}, {.out = out, .residual_out = stream}, &saved);
  CHECK(same_bits(out, want.out));
  CHECK(same_bits(stream, want.residual_out));
  // x itself is gone (out lies over it): the sum is enough, also to write out again.
  in_place.x = View<const float, 3>(nullptr, p.x.extents());
  in_place.residual = {};
  for (float& value : out) value = 0;
  Norm::backward(in_place, saved, {.dout = p.dout, .dresidual_out = dstream, .residual_out = stream},
                 {.dresidual = dstream, .dweight = dweight, .dbias = dbias, .out = out}, workspace, GradientMode::add);
  CHECK(arena<cpu>().peak_bytes() == before);
  CHECK(same_bits(out, want.out));
  CHECK(relative_error(dstream, dwant.dresidual) < 1e-6);
  CHECK(same_bits(dwant.dx, dwant.dresidual));
  for (Index c = 0; c < 70; ++c) {
    CHECK(dweight(c) == doctest::Approx(1 + dwant.dweight(c)).epsilon(1e-4));
    CHECK(dbias(c) == doctest::Approx(1 + dwant.dbias(c)).epsilon(1e-4));
  }
}

template <class Norm>
void add_norm_types_and_threads() {
  const Index batch = 3, length = 200, channels = 45;
  const AddNormProblem<double> exact(batch, length, channels);
  const auto want = Norm::forward(exact.full(), {.prenorm = true});
  const auto dwant = Norm::backward(exact.full(), want.saved, exact.upstream(exact.full()));
  const auto compare = [&]<class T>(T, double tolerance) {
    const AddNormProblem<T> p(batch, length, channels);
    const auto run = [&](int threads) {
      const Threads scope(threads);
      auto forward = Norm::forward(p.full(), {.prenorm = true});
      auto d = Norm::backward(p.full(), forward.saved, p.upstream(p.full()));
      return std::pair{std::move(forward), std::move(d)};
    };
    const auto one = run(1), two = run(2);
    CHECK(relative_error(one.first.out, want.out) < tolerance);
    CHECK(relative_error(one.second.dx, dwant.dx) < tolerance);
    CHECK(relative_error(one.second.dweight, dwant.dweight) < tolerance);
    CHECK(relative_error(one.second.drowscale, dwant.drowscale) < tolerance);
    CHECK(same_bits(one.first.out, two.first.out));
    CHECK(same_bits(one.first.residual_out, two.first.residual_out));
    CHECK(same_bits(one.second.dx, two.second.dx));
    CHECK(same_bits(one.second.dweight, two.second.dweight));
    CHECK(same_bits(one.second.dbias1, two.second.dbias1));
    CHECK(same_bits(one.second.drowscale, two.second.drowscale));
  };
  compare(float{}, 1e-5);
  compare(bfloat16{}, 2e-2);
}

/// With 16-bit activations the residual stream is not rounded.
template <class Norm>
void add_norm_float_stream() {
  const AddNormProblem<bfloat16> p(1, 4, 24);
  const auto result = Norm::forward(rms_norm::Inputs<bfloat16>{.x = p.x, .weight = p.weight, .residual = p.residual},
                                    {.prenorm = true});
  for (Index t = 0; t < 4; ++t)
    for (Index c = 0; c < 24; ++c)
      CHECK(result.residual_out(0, t, c) == static_cast<float>(p.x(0, t, c)) + p.residual(0, t, c));
}

/// Rows anywhere: slices of wider rows at an odd address have the same bits.
template <class Norm>
void add_norm_strided() {
  const AddNormProblem<float> p(2, 9, 37);
  const auto want = Norm::forward(p.bare(), {});
  const auto dwant = Norm::backward(p.bare(), want.saved, {.dout = p.dout});
  Tensor<float, 3> wide({2, 9, 50}), dwide({2, 9, 50});
  const auto x = wide.view().template slice<2>(3, 40), dout = dwide.view().template slice<2>(5, 42);
  copy(p.x, x);
  copy(p.dout, dout);
  const rms_norm::Inputs<float> in{.x = x, .weight = p.weight};
  const auto got = Norm::forward(in, {});
  CHECK(same_bits(got.out, want.out));
  const auto d = Norm::backward(in, got.saved, {.dout = dout});
  CHECK(same_bits(d.dx, dwant.dx));
  CHECK(same_bits(d.dweight, dwant.dweight));
}

template <class Norm>
void add_norm_mistakes() {
  const std::string op = Norm::name;
  const AddNormProblem<float> p(2, 3, 8);
  auto in = p.bare();
  const Tensor<float, 1> shorter(Extents{7});
  in.weight = shorter;
  CHECK_THROWS_WITH_AS(Norm::forward(in, {}), (op + ": weight has the shape (7), expected (8)").c_str(), Error);
  in = p.bare();
  const Tensor<float, 3> other({2, 4, 8});
  in.residual = other;
  CHECK_THROWS_WITH_AS(Norm::forward(in, {}), (op + ": residual has the shape (2, 4, 8), expected (2, 3, 8)").c_str(),
                       Error);
  in = p.bare();
  in.bias1 = p.bias1;
  CHECK_THROWS_WITH_AS(Norm::forward(in, {}), (op + ": bias1 is given without weight1").c_str(), Error);
  in = p.bare();
  const Tensor<float, 1> four(Extents{4});
  in.x = other.view().template permute<0, 2, 1>();
  in.weight = four;
  CHECK_THROWS_WITH_AS(Norm::forward(in, {}),
                       (op + ": x, (2, 8, 4), must be dense along its last axis; its stride there is 8").c_str(),
                       Error);
  CHECK_THROWS_WITH_AS(Norm::forward(p.bare(), {.eps = -1}), (op + ": eps is -1, expected 0 or more").c_str(), Error);
  const auto forward = Norm::forward(p.bare(), {});
  CHECK_THROWS_WITH_AS(Norm::backward(p.bare(), forward.saved, {.dout = other}),
                       (op + ": dout has the shape (2, 4, 8), expected (2, 3, 8)").c_str(), Error);
  CHECK_THROWS_WITH_AS(Norm::backward(p.bare(), forward.saved, {.dout1 = p.dout1}),
                       (op + ": dout1 is given without weight1").c_str(), Error);
}

}  // namespace diffmamba::test
