// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD forward on a GPU against the CPU, in double; on tensor cores within the rounding of the type.
#include <doctest/doctest.h>

#include <cmath>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;

namespace {

struct Case {
  Index batch, length, nheads, headdim, ngroups, d_state;
  bool gate, initial;
  bool D_per_channel = false;
};

/// Inputs rounded to T, in the type W, of the kind that models have.
template <class T, class W>
struct Data {
  Tensor<W, 4> x, B, C, z;
  Tensor<W, 3> dt;
  Tensor<accumulate_t<W>, 1> A, D, dt_bias;
  Tensor<accumulate_t<W>, 2> D_per_channel;
  Tensor<accumulate_t<W>, 4> initial_state;

  explicit Data(const Case& c) {
    const auto rounded = [](const auto& tensor) { return to_tensor<W>(to_tensor<T>(tensor.view()).view()); };
    x = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.nheads, c.headdim}, 1));
    B = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.ngroups, c.d_state}, 2));
    C = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.ngroups, c.d_state}, 3));
    z = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.nheads, c.headdim}, 4));
    dt = rounded(test::random_tensor<double>(Extents{c.batch, c.length, c.nheads}, 5, 0.5));
    A = test::random_tensor<accumulate_t<W>>(Extents<1>{c.nheads}, 6, 2.0, -8.5);
    D = test::random_tensor<accumulate_t<W>>(Extents<1>{c.nheads}, 7, 0.3, 1.0);
    dt_bias = test::random_tensor<accumulate_t<W>>(Extents<1>{c.nheads}, 8, 1.3, -4.6);
    D_per_channel = test::random_tensor<accumulate_t<W>>(Extents{c.nheads, c.headdim}, 10);
    initial_state = test::random_tensor<accumulate_t<W>>(Extents{c.batch, c.nheads, c.headdim, c.d_state}, 9);
  }
};

constexpr ssd::Options options{.dt_softplus = true};

/// out and final state in double, from the CPU.
template <class T>
auto on_cpu(const Data<T, double>& d, const Case& c) {
  ssd::Inputs<double> in{.x = d.x, .dt = d.dt, .A = d.A, .B = d.B, .C = d.C, .dt_bias = d.dt_bias};
  if (c.D_per_channel)
    in.D_per_channel = d.D_per_channel;
  else
    in.D = d.D;
  if (c.gate) in.z = d.z;
  if (c.initial) in.initial_state = d.initial_state;
  return ssd::forward(in, options);
}

/// A copy on the GPU whose rows of the last axis lie `apart` further from one another than they are long.
template <class T, int Rank>
struct Spread {
  Tensor<T, Rank, cuda> memory;
  Index width;
  Spread(const Tensor<T, Rank>& from, Index apart) : width(from.extent(Rank - 1)) {
    Extents<Rank> extents = from.extents();
    extents[Rank - 1] += apart;
    Tensor<T, Rank> wide(extents);
    copy(from.view(), wide.view().template slice<Rank - 1>(0, width));
    memory = to<cuda>(wide);
  }
  View<T, Rank, cuda> view() { return memory.view().template slice<Rank - 1>(0, width); }
};

/// x, B, C and z strided, their rows `apart` further apart than dense. `one_C`: every sequence has the first one's C,
/// and they are not copies of it, which the copy engine of Hopper cannot walk over: the kernels for other GPUs take it.
template <class T>
auto on_gpu(const Data<T, T>& d, const Case& c, Index apart = 0, bool one_C = false) {
  Spread x(d.x, apart), B(d.B, apart), C(d.C, apart), z(d.z, apart);
  const auto dt = to<cuda>(d.dt);
  const auto A = to<cuda>(d.A), D = to<cuda>(d.D), dt_bias = to<cuda>(d.dt_bias);
  const auto D_per_channel = to<cuda>(d.D_per_channel);
  const auto initial_state = to<cuda>(d.initial_state);
  ssd::Inputs<T, cuda> in{.x = x.view(), .dt = dt, .A = A, .B = B.view(), .C = C.view(), .dt_bias = dt_bias};
  if (c.D_per_channel)
    in.D_per_channel = D_per_channel;
  else
    in.D = D;
  if (c.gate) in.z = z.view();
  if (c.initial) in.initial_state = initial_state;
  if (one_C) {
    const View<T, 4, cuda> view = C.view();
    in.C = View<const T, 4, cuda>(view.data(), view.extents(), {0, view.stride(1), view.stride(2), 1});
  }
  const auto [out, state, saved] = ssd::forward(in, options);
  return std::pair(to<cpu>(out), to<cpu>(state));
}

/// ||got - want|| / ||want||
template <class A, class B>
double norm_error(const A& got, const B& want) {
  double error = 0, norm = 0;
  for (Index i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want.data()[i]), g = static_cast<double>(got.data()[i]);
    error += (g - w) * (g - w);
    norm += w * w;
  }
  return std::sqrt(error / (norm > 0 ? norm : 1.0));
}

template <class T>
void check_tensor_cores(std::initializer_list<Case> cases) {
  // Of 16-bit types 1.25 times what the official kernels err by on such inputs; rounding the output alone costs 1.66e-3
  // and 2.1e-4.
  const double tolerance = std::is_same_v<T, bfloat16> ? 2.375e-3 : std::is_same_v<T, half> ? 4e-4 : 1e-6;
  for (const Case& c : cases) {
    CAPTURE(c.batch);
    CAPTURE(c.length);
    CAPTURE(c.d_state);
    Data<T, double> exact(c);
    const Data<T, T> data(c);
    const auto want = on_cpu(exact, c);
    const auto [out, state] = on_gpu(data, c);
    CHECK(norm_error(out, want.out) < tolerance);
    CHECK(norm_error(state, want.final_state) < tolerance);
    const auto again = on_gpu(data, c, 8);  // other strides: the same bits
    CHECK(test::relative_error(again.first, out) == 0);
    CHECK(test::relative_error(again.second, state) == 0);
    const auto odd = on_gpu(data, c, 1);  // not aligned: the recurrence
    CHECK(norm_error(odd.first, want.out) < tolerance);
    CHECK(norm_error(odd.second, want.final_state) < tolerance);
    if (c.batch == 1) continue;
    for (Index b = 1; b < c.batch; ++b)
      copy(exact.C.view().template slice<0>(0, 1), exact.C.view().template slice<0>(b, b + 1));
    const auto shared = on_gpu(data, c, 0, true);
    CHECK(norm_error(shared.first, on_cpu(exact, c).out) < tolerance);
    CHECK(test::relative_error(on_gpu(data, c, 8, true).first, shared.first) == 0);
  }
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("the recurrence equals the CPU's chunks in double, any sizes", T, double, float) {
    const double tolerance = std::is_same_v<T, double> ? 1e-12 : 2e-6;
    for (const Case& c : {Case{2, 67, 4, 5, 2, 7, true, true}, Case{1, 1, 3, 64, 1, 16, false, false},
                          Case{1, 130, 2, 33, 1, 40, false, true, true}, Case{2, 0, 2, 8, 1, 8, true, true},
                          Case{2, 35, 3, 70, 3, 128, true, true, true}, Case{1, 19, 2, 6, 1, 131, true, true},
                          Case{0, 5, 2, 8, 1, 8, false, false}}) {
      CAPTURE(c.length);
      CAPTURE(c.d_state);
      const auto want = on_cpu(Data<T, double>(c), c);
      const Data<T, T> data(c);
      const auto [out, state] = on_gpu(data, c, 3);
      CHECK(norm_error(out, want.out) < tolerance);
      CHECK(norm_error(state, want.final_state) < tolerance);
    }
  }

  TEST_CASE_TEMPLATE("on tensor cores errors are little more than one rounding", T, bfloat16, half, float) {
    check_tensor_cores<T>({{2, 200, 4, 64, 2, 64, true, true},
                           {1, 1, 2, 64, 1, 128, false, false},
                           {2, 131, 6, 64, 2, 128, true, false, true}});  // three heads a group
  }

  TEST_CASE_TEMPLATE("on tensor cores, in segments and handed from block to block", T, bfloat16, half, float) {
    check_tensor_cores<T>({{2, 509, 8, 64, 1, 64, false, true, true},
                           {1, 4096, 4, 64, 1, 128, true, true},
                           {50, 200, 6, 64, 1, 64, false, true},
                           {27, 330, 11, 64, 1, 128, false, false}});
  }
}
