// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>

#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "support/gradient_check.hpp"

// Operands and the plain recurrence for the tests of ssd.
namespace diffmamba::test {

struct Shape {
  Index batch, length, nheads, headdim, ngroups, d_state;
};

/// What a call may contain besides x, dt, A, B and C.
struct With {
  bool D = false, D_per_channel = false, z = false, dt_bias = false, initial_state = false;
};
constexpr With everything{.D = true, .z = true, .dt_bias = true, .initial_state = true};
constexpr With everything_per_channel{.D_per_channel = true, .z = true, .dt_bias = true, .initial_state = true};

/// Owns the operands of one call, and the gradients of its outputs.
template <class T>
struct Data {
  using A_t = accumulate_t<T>;
  Tensor<T, 4> x, B, C, z;
  Tensor<T, 3> dt;
  Tensor<A_t, 1> A, D, dt_bias;
  Tensor<A_t, 2> D_per_channel;
  Tensor<A_t, 4> initial_state;
  Tensor<T, 4> dout;
  Tensor<A_t, 4> dfinal_state;

  Data(const Shape& s, const With& with) {
    x = random_tensor<T>(Extents{s.batch, s.length, s.nheads, s.headdim}, 1);
    dt = random_tensor<T>(Extents{s.batch, s.length, s.nheads}, 2, 0.7, -0.3);
    A = random_tensor<A_t>(Extents<1>{s.nheads}, 3, 0.3, -1.2);
    B = random_tensor<T>(Extents{s.batch, s.length, s.ngroups, s.d_state}, 4);
    C = random_tensor<T>(Extents{s.batch, s.length, s.ngroups, s.d_state}, 5);
    if (with.D) D = random_tensor<A_t>(Extents<1>{s.nheads}, 6);
    if (with.D_per_channel) D_per_channel = random_tensor<A_t>(Extents{s.nheads, s.headdim}, 7);
    if (with.z) z = random_tensor<T>(Extents{s.batch, s.length, s.nheads, s.headdim}, 8);
    if (with.dt_bias) dt_bias = random_tensor<A_t>(Extents<1>{s.nheads}, 9, 0.5);
    if (with.initial_state) initial_state = random_tensor<A_t>(Extents{s.batch, s.nheads, s.headdim, s.d_state}, 10);
    dout = random_tensor<T>(Extents{s.batch, s.length, s.nheads, s.headdim}, 11);
    dfinal_state = random_tensor<A_t>(Extents{s.batch, s.nheads, s.headdim, s.d_state}, 12);
  }
  ssd::Inputs<T> inputs() const {
    return {.x = x,
            .dt = dt,
            .A = A,
            .B = B,
            .C = C,
            .D = D,
            .D_per_channel = D_per_channel,
            .z = z,
            .dt_bias = dt_bias,
            .initial_state = initial_state};
  }
};

struct Reference {
  Tensor<double, 4> out, final_state;
};

/// The recurrence as the contract states it, one number after another, in double.
template <class T>
Reference recurrence(const ssd::Inputs<T>& in, const ssd::Options& options) {
  const auto s = ssd::sizes(in);
  const auto real = [](auto value) { return static_cast<double>(value); };
  Reference result{Tensor<double, 4>(in.x.extents()), Tensor<double, 4>({s.batch, s.nheads, s.headdim, s.d_state})};
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.nheads; ++h) {
      const Index g = h / s.heads_per_group();
      for (Index p = 0; p < s.headdim; ++p) {
        double* state = result.final_state.view().pointer(b, h, p);
        for (Index n = 0; n < s.d_state; ++n) state[n] = in.initial_state ? real(in.initial_state(b, h, p, n)) : 0.0;
        for (Index t = 0; t < s.length; ++t) {
          double dt = real(in.dt(b, t, h)) + (in.dt_bias ? real(in.dt_bias(h)) : 0.0);
          if (options.dt_softplus) dt = dt > 20 ? dt : std::log1p(std::exp(dt));
          dt = std::min(std::max(dt, options.dt_min), options.dt_max);
          const double x = real(in.x(b, t, h, p));
          double y = 0;
          for (Index n = 0; n < s.d_state; ++n) {
            state[n] = std::exp(dt * real(in.A(h))) * state[n] + dt * x * real(in.B(b, t, g, n));
            y += state[n] * real(in.C(b, t, g, n));
          }
          if (in.D) y += real(in.D(h)) * x;
          if (in.D_per_channel) y += real(in.D_per_channel(h, p)) * x;
          if (in.z) y *= real(in.z(b, t, h, p)) / (1 + std::exp(-real(in.z(b, t, h, p))));
          result.out(b, t, h, p) = y;
        }
      }
    }
  return result;
}

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return a.extents() == b.extents() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0);
}

}  // namespace diffmamba::test
