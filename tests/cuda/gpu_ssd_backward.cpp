// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// SSD backward on a GPU against the CPU, in double; on tensor cores within the rounding of the type.
#include <string_view>
#include <type_traits>

#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "ops/ssd/ssd_data.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

/// Everything of a call in the memory of a device.
template <class T, Device D>
struct Operands {
  using A_t = accumulate_t<T>;
  Tensor<T, 4, D> x, B, C, z, dout;
  Tensor<T, 3, D> dt;
  Tensor<A_t, 1, D> A, D_, dt_bias;
  Tensor<A_t, 2, D> D_per_channel;
  Tensor<A_t, 4, D> initial_state, dfinal_state;

  ssd::Inputs<T, D> inputs() const {
    return {.x = x,
            .dt = dt,
            .A = A,
            .B = B,
            .C = C,
            .D = D_,
            .D_per_channel = D_per_channel,
            .z = z,
            .dt_bias = dt_bias,
            .initial_state = initial_state};
  }
};

/// The numbers of `from` in another type and on another device; absent stays absent.
template <class T, Device D, class From, int Rank>
Tensor<T, Rank, D> moved(const Tensor<From, Rank>& from) {
  if (!from) return {};
  const Tensor<T, Rank> converted = to_tensor<T>(from.view());
  if constexpr (std::is_same_v<D, cpu>)
    return converted;
  else
    return to<cuda>(converted);
}

template <class T, Device D, class From>
Operands<T, D> operands(const Data<From>& d) {
  using A = accumulate_t<T>;
  return {.x = moved<T, D>(d.x),
          .B = moved<T, D>(d.B),
          .C = moved<T, D>(d.C),
          .z = moved<T, D>(d.z),
          .dout = moved<T, D>(d.dout),
          .dt = moved<T, D>(d.dt),
          .A = moved<A, D>(d.A),
          .D_ = moved<A, D>(d.D),
          .dt_bias = moved<A, D>(d.dt_bias),
          .D_per_channel = moved<A, D>(d.D_per_channel),
          .initial_state = moved<A, D>(d.initial_state),
          .dfinal_state = moved<A, D>(d.dfinal_state)};
}

/// Every gradient of one backward pass, on the host; `last` says whether the final state has a gradient.
template <class T, Device D>
ssd::Gradients<T> gradients(const Operands<T, D>& o, const ssd::Options& options, bool last = true) {
  ssd::Saved<T, D> saved{.options = options};  // all that a GPU saves
  if constexpr (std::is_same_v<D, cpu>) saved = ssd::forward(o.inputs(), options).saved;
  ssd::OutputGradients<T, D> upstream{.dout = o.dout};
  if (last) upstream.dfinal_state = o.dfinal_state;
  const auto g = ssd::backward(o.inputs(), saved, upstream);
  return {.dx = to<cpu>(g.dx),
          .ddt = to<cpu>(g.ddt),
          .dA = to<cpu>(g.dA),
          .dB = to<cpu>(g.dB),
          .dC = to<cpu>(g.dC),
          .dD = to<cpu>(g.dD),
          .dD_per_channel = to<cpu>(g.dD_per_channel),
          .dz = to<cpu>(g.dz),
          .ddt_bias = to<cpu>(g.ddt_bias),
          .dinitial_state = to<cpu>(g.dinitial_state)};
}

template <class Got, class Want, class Visit>
void visit(const Got& a, const Want& b, Visit&& visit) {
  visit("dx", a.dx, b.dx);
  visit("ddt", a.ddt, b.ddt);
  visit("dA", a.dA, b.dA);
  visit("dB", a.dB, b.dB);
  visit("dC", a.dC, b.dC);
  visit("dD", a.dD, b.dD);
  visit("dD_per_channel", a.dD_per_channel, b.dD_per_channel);
  visit("dz", a.dz, b.dz);
  visit("ddt_bias", a.ddt_bias, b.ddt_bias);
  visit("dinitial_state", a.dinitial_state, b.dinitial_state);
}

/// ||got - want|| / ||want||
template <class A, class B>
double norm_error(const A& got, const B& want) {
  REQUIRE(got.size() == want.size());
  double error = 0, norm = 0;
  for (Index i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want.data()[i]), g = static_cast<double>(got.data()[i]);
    error += (g - w) * (g - w);
    norm += w * w;
  }
  return std::sqrt(error / (norm > 0 ? norm : 1.0));
}

template <class T>
void check_same_bits(const ssd::Gradients<T>& a, const ssd::Gradients<T>& b) {
  visit(a, b, [](const char* name, const auto& mine, const auto& other) {
    INFO(name);
    CHECK(same_bits(mine, other));
  });
}

constexpr ssd::Options softplus_dt{.dt_softplus = true};

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("every gradient equals the CPU's in double, any sizes and options", T, double, float) {
    const ssd::Options limited{.chunk_size = 64, .dt_softplus = true, .dt_min = 0.3, .dt_max = 0.9};
    const double tolerance = std::is_same_v<T, double> ? 1e-11 : 1e-5;
    for (const Shape& s : {Shape{1, 1, 1, 1, 1, 1}, Shape{2, 0, 2, 3, 2, 5}, Shape{2, 37, 4, 5, 2, 3},
                           Shape{1, 65, 6, 24, 3, 40}, Shape{1, 131, 2, 33, 1, 17}, Shape{2, 200, 4, 64, 1, 64}})
      for (const With& with : {With{}, everything, everything_per_channel})
        for (const ssd::Options& options : {ssd::Options{}, softplus_dt, limited}) {
          if (!options.dt_softplus && s.length > 100) continue;  // a negative dt grows without bound
          INFO("x (", s.batch, ", ", s.length, ", ", s.nheads, ", ", s.headdim, "), ngroups ", s.ngroups, ", d_state ",
               s.d_state);
          const Data<float> data(s, with);
          const bool last = with.z;
          const auto want = gradients(operands<double, cpu>(data), options, last);
          const auto got = gradients(operands<T, cuda>(data), options, last);
          visit(got, want, [&](const char* name, const auto& mine, const auto& right) {
            INFO(name);
            CHECK(relative_error(mine, right) < tolerance);
          });
        }
  }

  TEST_CASE_TEMPLATE("on tensor cores errors are little more than rounding, and always the same", T, bfloat16, float) {
    const auto tolerance = [](std::string_view name) {
      if (std::is_same_v<T, bfloat16>) return name == "dD" ? 2e-6 : 2.7e-3;
      return name == "dA" || name == "ddt_bias" ? 1e-4 : 2e-6;  // these are sums of parts of either sign
    };
    for (const Shape& s : {Shape{1, 1, 2, 64, 1, 128}, Shape{2, 200, 4, 64, 2, 64}, Shape{1, 509, 8, 64, 2, 64},
                           Shape{2, 512, 8, 64, 1, 128}, Shape{1, 128, 40, 64, 1, 128}, Shape{1, 4096, 4, 64, 1, 128},
                           Shape{3, 129, 3, 64, 3, 64}})
      for (const With& with : {With{.D = true, .dt_bias = true}, With{.dt_bias = true, .initial_state = true}}) {
        INFO("x (", s.batch, ", ", s.length, ", ", s.nheads, ", ", s.headdim, "), ngroups ", s.ngroups, ", d_state ",
             s.d_state);
        Data<T> data(s, with);
        for (T& dt : data.dt) dt = static_cast<T>(static_cast<float>(dt) - 2.0f);
        const auto want = gradients(operands<double, cpu>(data), softplus_dt, with.initial_state);
        const auto here = operands<T, cuda>(data);
        const auto got = gradients(here, softplus_dt, with.initial_state);
        visit(got, want, [&](const char* name, const auto& mine, const auto& right) {
          INFO(name);
          CHECK(norm_error(mine, right) < tolerance(name));
        });
        check_same_bits(gradients(here, softplus_dt, with.initial_state), got);
      }
  }

  TEST_CASE("a C that all sequences share: the kernels for GPUs before Hopper take it, in bfloat16 too") {
    // Its stride along the batch is 0, and so the copy engine cannot walk over it.
    for (const Shape& s : {Shape{2, 300, 4, 64, 2, 64}, Shape{3, 129, 3, 64, 1, 128}, Shape{2, 2048, 2, 64, 1, 128}})
      for (const bool aligned : {true, false}) {
        INFO("length ", s.length);
        Data<bfloat16> data(s, With{.D = true, .dt_bias = true});
        for (bfloat16& dt : data.dt) dt = bfloat16(static_cast<float>(dt) - 2.0f);
        for (Index b = 1; b < s.batch; ++b)
          copy(data.C.view().template slice<0>(0, 1), data.C.view().template slice<0>(b, b + 1));
        const auto want = gradients(operands<double, cpu>(data), softplus_dt, false);
        const auto here = operands<bfloat16, cuda>(data);
        Tensor<bfloat16, 1, cuda> memory({here.C.size() + 1});
        bfloat16* const C = memory.data() + (aligned ? 0 : 1);
        copy_elements(cuda{}, here.C.data(), C, here.C.size());
        auto in = here.inputs();
        in.C = View<const bfloat16, 4, cuda>(C, in.C.extents(), {0, in.C.stride(1), in.C.stride(2), 1});
        const auto run = [&] {
          const auto g = ssd::backward(in, ssd::Saved<bfloat16, cuda>{.options = softplus_dt}, {.dout = here.dout});
          ssd::Gradients<bfloat16> host;
          host.dx = to<cpu>(g.dx), host.ddt = to<cpu>(g.ddt), host.dA = to<cpu>(g.dA), host.dB = to<cpu>(g.dB);
          host.dC = to<cpu>(g.dC), host.dD = to<cpu>(g.dD), host.ddt_bias = to<cpu>(g.ddt_bias);
          return host;
        };
        const auto got = run();
        visit(got, want, [&](const char* name, const auto& mine, const auto& right) {
          INFO(name);
          CHECK(norm_error(mine, right) < 2.7e-3);
        });
        check_same_bits(run(), got);
      }
  }

  TEST_CASE("bfloat16 on tensor cores is as exact as the official kernel") {
    // Inputs as in its accuracy table: A from -16 to -1, dt about .001 to .1, D = 1. Bounds: 1.25 times that table.
    for (const Shape& s : {Shape{2, 512, 8, 64, 1, 128}, Shape{1, 2048, 4, 64, 1, 128}, Shape{2, 509, 4, 64, 2, 64}}) {
      INFO("length ", s.length);
      Data<bfloat16> data(s, With{.D = true, .dt_bias = true});
      data.dt = random_tensor<bfloat16>(data.dt.extents(), 2, 0.5);
      std::mt19937_64 generator(3);
      std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
      for (float& a : data.A) a = -1.0f - 15.0f * uniform(generator);
      for (float& bias : data.dt_bias) bias = 4.6f * uniform(generator) - 6.9f;
      data.D.fill(1.0f);
      const auto want = gradients(operands<double, cpu>(data), softplus_dt, false);
      const auto got = gradients(operands<bfloat16, cuda>(data), softplus_dt, false);
      CHECK(norm_error(got.dx, want.dx) < 1.25 * 1.9e-3);
      CHECK(norm_error(got.ddt, want.ddt) < 1.25 * 2.2e-3);
      // A sum of parts of either sign, much larger than itself, whose states have 16 bits: its error scatters.
      CHECK(norm_error(got.dA, want.dA) < (s.length == 512 ? 1.25 * 5.9e-4 : 5e-3));
      CHECK(norm_error(got.dB, want.dB) < 1.25 * 2.4e-3);
      CHECK(norm_error(got.dC, want.dC) < 1.25 * 2.4e-3);
      CHECK(norm_error(got.dD, want.dD) < 2e-6);
      CHECK(norm_error(got.ddt_bias, want.ddt_bias) < 1.25 * 1.8e-3);
    }
  }

  TEST_CASE_TEMPLATE("bfloat16 at odd sizes and with a gate errs by little more than rounding", T, bfloat16) {
    for (const Shape& s : {Shape{2, 75, 4, 24, 2, 20}, Shape{1, 130, 2, 64, 1, 64}}) {
      const Data<T> data(s, everything_per_channel);
      const auto want = gradients(operands<double, cpu>(data), softplus_dt);
      const auto got = gradients(operands<T, cuda>(data), softplus_dt);
      visit(got, want, [&](const char* name, const auto& mine, const auto& right) {
        INFO(name);
        CHECK(norm_error(mine, right) < 2.5e-3);
      });
    }
  }

  TEST_CASE_TEMPLATE("strided and unaligned operands, dx in dout's memory, absent gradients, added gradients", T, float,
                     bfloat16) {
    // x, B and C are slices of one row of channels, as a convolution leaves them, here one element off.
    const Index batch = 2, length = 150, nheads = 4, headdim = 64, d_state = 64;
    const Data<T> data({batch, length, nheads, headdim, 1, d_state}, With{.D = true, .dt_bias = true});
    const auto here = operands<T, cuda>(data);
    const Index width = nheads * headdim + 2 * d_state + 3;
    for (const Index offset : {Index{0}, Index{1}}) {
      const Index row = offset == 0 ? width + 5 : width;
      const auto place = [&](T* from, Index first, Index outer, Index inner) {
        return View<T, 4, cuda>(from + offset + first, {batch, length, outer, inner}, {length * row, row, inner, 1});
      };
      Tensor<T, 3, cuda> memory({batch, length, row}), gradient_memory({batch, length, row});
      const auto x = place(memory.data(), 0, nheads, headdim);
      const auto B = place(memory.data(), nheads * headdim, 1, d_state);
      const auto C = place(memory.data(), nheads * headdim + d_state, 1, d_state);
      copy(here.x, x), copy(here.B, B), copy(here.C, C);
      auto in = here.inputs();
      in.x = View<const T, 4, cuda>(x), in.B = View<const T, 4, cuda>(B), in.C = View<const T, 4, cuda>(C);
      const auto want = gradients(here, softplus_dt, false);

      const auto dx = place(gradient_memory.data(), 0, nheads, headdim);
      const auto dB = place(gradient_memory.data(), nheads * headdim, 1, d_state);
      const auto dC = place(gradient_memory.data(), nheads * headdim + d_state, 1, d_state);
      copy(here.dout, dx);
      Tensor<float, 1, cuda> dA(Extents<1>{nheads}, 1.0f), dD(Extents<1>{nheads}, 2.0f);
      const auto result = ssd::forward(in, softplus_dt);
      Workspace<cuda> workspace(ssd::workspace_bytes(in, result.saved));
      ssd::backward(in, result.saved, {.dout = dx}, {.dx = dx, .dA = dA, .dB = dB, .dC = dC, .dD = dD}, workspace,
                    GradientMode::add);
      // Unaligned bfloat16 takes other kernels, whose sums have another order.
      const double tolerance = offset == 0 || std::is_same_v<T, float> ? 0.0 : 2e-3;
      const auto error = [](const View<T, 4, cuda>& got, const Tensor<T, 4>& expected) {
        Tensor<T, 4, cuda> dense = Tensor<T, 4, cuda>::uninitialized(got.extents());
        copy(got, dense);
        return norm_error(to<cpu>(dense), expected);
      };
      CHECK(error(dx, want.dx) <= tolerance);
      CHECK(error(dB, want.dB) <= tolerance);
      CHECK(error(dC, want.dC) <= tolerance);
      const auto dA_host = to<cpu>(dA), dD_host = to<cpu>(dD);
      for (Index h = 0; h < nheads; ++h) {
        CHECK(std::abs(dA_host(h) - want.dA(h) - 1.0f) < (tolerance > 0 ? 1e-2 : 1e-6) * (1 + std::abs(want.dA(h))));
        CHECK(dD_host(h) == doctest::Approx(want.dD(h) + 2.0f).epsilon(1e-6));
      }
    }
  }

  TEST_CASE("without dout only the final state's gradient flows") {
    const Data<bfloat16> data({1, 200, 2, 64, 1, 64}, With{.dt_bias = true, .initial_state = true});
    const auto run = [&]<class T, class D>(const Operands<T, D>& o) {
      const auto result = ssd::forward(o.inputs(), softplus_dt);
      const auto g = ssd::backward(o.inputs(), result.saved, {.dfinal_state = o.dfinal_state});
      return std::pair(to<cpu>(g.dx), to<cpu>(g.dC));
    };
    const auto [dx, dC] = run(operands<bfloat16, cuda>(data));
    const auto [want_dx, want_dC] = run(operands<double, cpu>(data));
    CHECK(norm_error(dx, want_dx) < 3e-3);
    CHECK(norm_error(dC, want_dC) == 0);
  }
}
