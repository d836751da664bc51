// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// As exact as the official kernels? Each operator at the sizes that its kernels are tuned for, on the GPU in bfloat16
// and float, against the CPU in double from the same rounded inputs: ||got - want|| / ||want|| of the output and of
// every gradient.
//
// The official figures were measured on an H100 with mamba_ssm e9594ce and causal-conv1d 0d2252d, on inputs drawn as
// here (A from -16 to -1, dt from .001 to .1, all else normal). A result passes at 1.25 times its figure. What that
// leaves is held against the CPU in bfloat16, which rounds where the operator's header says: at most 3 times its error.
//
// dA and ddt_bias of SSD are few numbers, each a sum whose parts nearly cancel, so that one draw says little: five
// draws of the official kernel at 2 x 509 x 8, N 64 were off by 1.4, 17, .73, 11 and 2.5e-4 in dA (9.2e-4 in root mean
// square), and by 4.5, 4.5, 3.6, 1.1 and 1.0e-3 in ddt_bias (3.3e-3). One draw is held against the largest of them,
// several against their root mean square.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::random_tensor;

namespace {

using Results = std::map<std::string, std::vector<double>>;  // by the names of the official table
using Figures = std::map<std::string, double>;

/// Operands of type W on a device, rounded to T first; parameters are in the type of W's sums.
template <class T, class W, Device D>
struct Operands {
  using S = accumulate_t<W>;
  unsigned seed;

  template <int Rank>
  Tensor<W, Rank, D> normal(const Extents<Rank>& extents, double scale = 1) {
    const auto rounded = to_tensor<T>(random_tensor<float>(extents, seed++, scale).view());
    return to<D>(to_tensor<W>(rounded.view()));
  }
  template <int Rank>
  Tensor<S, Rank, D> uniform(const Extents<Rank>& extents, float low, float high) {
    Tensor<float, Rank> result(extents);
    std::mt19937_64 generator(seed++);
    std::uniform_real_distribution<float> draw(low, high);
    for (float& value : result) value = draw(generator);
    return to<D>(to_tensor<S>(result.view()));
  }
  template <int Rank>
  Tensor<S, Rank, D> normal_parameter(const Extents<Rank>& extents, double scale) {
    return to<D>(to_tensor<S>(random_tensor<float>(extents, seed++, scale).view()));
  }
};

template <class T, int Rank, class D>
void keep(Results& results, const char* name, const Tensor<T, Rank, D>& tensor) {
  const auto here = to<cpu>(tensor);
  auto& numbers = results[name];
  for (const T value : here) numbers.push_back(static_cast<double>(value));
}

double norm_error(const std::vector<double>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += std::isfinite(got[i]) ? (got[i] - want[i]) * (got[i] - want[i]) : HUGE_VAL;
    norm += want[i] * want[i];
  }
  REQUIRE(norm > 0);
  return std::sqrt(error / norm);
}

/// `run` computes everything: run.template operator()<T, W, D>() with inputs rounded to T, in W, on D.
template <class T, class Run>
void check(const std::string& what, const Figures& official, Run&& run) {
  const Results got = run.template operator()<T, T, cuda>(), want = run.template operator()<T, double, cpu>();
  Results emulated;
  std::string line = what + (std::is_same_v<T, float> ? " float:" : " bfloat16:");
  for (const auto& [name, figure] : official) {
    CAPTURE(what);
    CAPTURE(name);
    const double error = norm_error(got.at(name), want.at(name));
    double allowed = 1.25 * figure;
    if constexpr (std::is_same_v<T, bfloat16>)
      if (error > allowed) {
        if (emulated.empty()) emulated = run.template operator()<T, T, cpu>();
        allowed = std::max(allowed, 3 * norm_error(emulated.at(name), want.at(name)));
      }
    CHECK(error <= allowed);
    char text[64];
    std::snprintf(text, sizeof text, "  %s %.2g (%.2g)", name.c_str(), error, allowed);
    line += text;
  }
  MESSAGE(line);
}

struct SsdShape {
  Index batch, length, nheads, ngroups, d_state;
};
struct Ssd {
  SsdShape s;
  unsigned seed = 1;
  template <class T, class W, Device D>
  Results operator()() const {
    const Index headdim = 64;
    Operands<T, W, D> make{seed};
    const Extents<4> heads{s.batch, s.length, s.nheads, headdim}, groups{s.batch, s.length, s.ngroups, s.d_state};
    const Extents<1> each{s.nheads};
    const auto x = make.normal(heads), B = make.normal(groups), C = make.normal(groups), dout = make.normal(heads);
    const auto dt = make.normal(Extents{s.batch, s.length, s.nheads}, 0.5);
    const auto A = make.uniform(each, -16, -1), skip = make.uniform(each, 1, 1),
               bias = make.uniform(each, -6.9f, -2.3f);
    const ssd::Inputs<W, D> in{.x = x, .dt = dt, .A = A, .B = B, .C = C, .D = skip, .dt_bias = bias};
    const auto forward = ssd::forward(in, {.dt_softplus = true});
    const auto g = ssd::backward(in, forward.saved, {.dout = dout.view()});
    Results results;
    keep(results, "out", forward.out);
    keep(results, "dx", g.dx);
    keep(results, "ddt", g.ddt);
    keep(results, "dA", g.dA);
    keep(results, "dB", g.dB);
    keep(results, "dC", g.dC);
    keep(results, "dD", g.dD);
    keep(results, "ddt_bias", g.ddt_bias);
    return results;
  }
};

struct ScanShape {
  Index batch, channels, length, groups;
};
struct Scan {
  ScanShape s;
  template <class T, class W, Device D>
  Results operator()() const {
    Operands<T, W, D> make{1};
    const Index d_state = 16;
    const Extents<3> tokens{s.batch, s.length, s.channels};
    const Extents<4> groups{s.batch, s.length, s.groups, d_state};
    const Extents<1> each{s.channels};
    const auto u = make.normal(tokens), delta = make.normal(tokens, 0.5), z = make.normal(tokens);
    const auto dout = make.normal(tokens);
    const auto B = make.normal(groups), C = make.normal(groups);
    Tensor<float, 2> decay({s.channels, d_state});
    for (Index c = 0; c < s.channels; ++c)
      for (Index n = 0; n < d_state; ++n) decay(c, n) = -static_cast<float>(n + 1);
    const auto A = to<D>(to_tensor<accumulate_t<W>>(decay.view()));
    const auto skip = make.uniform(each, 1, 1), bias = make.uniform(each, -6.9f, -2.3f);
    const selective_scan::Inputs<W, D> in{
        .u = u, .delta = delta, .A = A, .B = B, .C = C, .D = skip, .z = z, .delta_bias = bias};
    const auto forward = selective_scan::forward(in, {.delta_softplus = true});
    const auto g = selective_scan::backward(in, forward.saved, {.dout = dout.view()});
    Results results;
    keep(results, "out", forward.out);
    keep(results, "du", g.du);
    keep(results, "ddelta", g.ddelta);
    keep(results, "dA", g.dA);
    keep(results, "dB", g.dB);
    keep(results, "dC", g.dC);
    keep(results, "dD", g.dD);
    keep(results, "dz", g.dz);
    keep(results, "ddelta_bias", g.ddelta_bias);
    return results;
  }
};

struct Convolution {
  Index batch, length, channels;
  template <class T, class W, Device D>
  Results operator()() const {
    Operands<T, W, D> make{1};
    const Extents<3> tokens{batch, length, channels};
    const auto x = make.normal(tokens), dout = make.normal(tokens);
    const auto weight = make.normal_parameter(Extents{channels, Index{4}}, 0.5);
    const auto bias = make.normal_parameter(Extents<1>{channels}, 0.1);
    const causal_conv1d::Inputs<W, D> in{.x = x, .weight = weight, .bias = bias};
    const auto forward = causal_conv1d::forward(in, {.activation = causal_conv1d::Activation::silu});
    const auto g = causal_conv1d::backward(in, forward.saved, {.dout = dout.view()});
    Results results;
    keep(results, "out", forward.out);
    keep(results, "dx", g.dx);
    keep(results, "dweight", g.dweight);
    keep(results, "dbias", g.dbias);
    return results;
  }
};

struct GatedNorm {
  Index rows, channels, group_size;
  bool norm_before_gate;
  template <class T, class W, Device D>
  Results operator()() const {
    Operands<T, W, D> make{1};
    const Extents<3> tokens{1, rows, channels};
    const auto x = make.normal(tokens), z = make.normal(tokens), dout = make.normal(tokens);
    const auto weight = make.uniform(Extents<1>{channels}, 0.5f, 1.5f);
    const gated_rms_norm::Inputs<W, D> in{.x = x, .weight = weight, .z = z};
    const auto forward = gated_rms_norm::forward(in, {.group_size = group_size, .norm_before_gate = norm_before_gate});
    const auto g = gated_rms_norm::backward(in, forward.saved, {.dout = dout.view()});
    Results results;
    keep(results, "out", forward.out);
    keep(results, "dx", g.dx);
    keep(results, "dz", g.dz);
    keep(results, "dweight", g.dweight);
    return results;
  }
};

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("accuracy: ssd") {
    struct Row {
      SsdShape shape;
      Figures official;
    };
    const Figures n128{{"out", 1.9e-3}, {"dx", 1.9e-3}, {"ddt", 2.2e-3}, {"dA", 1.7e-3},
                       {"dB", 2.4e-3},  {"dC", 2.4e-3}, {"dD", 2e-7},    {"ddt_bias", 4.5e-3}};
    const Figures n64{{"out", 1.8e-3}, {"dx", 1.8e-3}, {"ddt", 2.3e-3}, {"dA", 1.7e-3},
                      {"dB", 2.4e-3},  {"dC", 2.4e-3}, {"dD", 2e-7},    {"ddt_bias", 4.5e-3}};
    const Figures l2048{{"out", 1.8e-3}, {"dx", 1.8e-3}, {"ddt", 2.4e-3}, {"dA", 1.7e-3},
                        {"dB", 2.4e-3},  {"dC", 2.4e-3}, {"dD", 2e-7},    {"ddt_bias", 4.5e-3}};
    for (const Row& row :
         {Row{{2, 512, 8, 1, 128}, n128}, Row{{2, 509, 8, 2, 64}, n64}, Row{{1, 2048, 4, 1, 128}, l2048},
          Row{{2, 512, 8, 1, 64}, n64}, Row{{1, 2048, 8, 2, 64}, n64}, Row{{1, 797, 6, 2, 128}, n128},
          Row{{1, 385, 16, 1, 64}, n64}, Row{{1, 1021, 12, 1, 128}, n128}}) {
      const SsdShape& s = row.shape;
      const std::string what = "ssd " + std::to_string(s.batch) + " x " + std::to_string(s.length) + " x " +
                               std::to_string(s.nheads) + ", N " + std::to_string(s.d_state) + ", groups " +
                               std::to_string(s.ngroups);
      check<bfloat16>(what, row.official, Ssd{s});
      // The official kernels round floats to TF32 (5e-4 to 1.7e-3); ours are sums in float, or of three products of
      // tf32.
      check<float>(what,
                   {{"out", 1e-6},
                    {"dx", 1e-6},
                    {"ddt", 2e-6},
                    {"dA", 5e-6},
                    {"dB", 1e-6},
                    {"dC", 1e-6},
                    {"dD", 4e-7},
                    {"ddt_bias", 2e-6}},
                   Ssd{s});
    }
  }

  TEST_CASE("accuracy: the sums of ssd, over several draws") {
    double dA = 0, ddt_bias = 0;
    constexpr unsigned draws = 5;
    for (unsigned draw = 0; draw < draws; ++draw) {
      const Ssd run{{2, 509, 8, 2, 64}, 100 * draw};
      const Results got = run.operator()<bfloat16, bfloat16, cuda>(), want = run.operator()<bfloat16, double, cpu>();
      dA += std::pow(norm_error(got.at("dA"), want.at("dA")), 2) / draws;
      ddt_bias += std::pow(norm_error(got.at("ddt_bias"), want.at("ddt_bias")), 2) / draws;
    }
    MESSAGE("ssd, root mean square over ", draws, " draws: dA ", std::sqrt(dA), ", ddt_bias ", std::sqrt(ddt_bias));
    CHECK(std::sqrt(dA) <= 1.25 * 9.2e-4);
    CHECK(std::sqrt(ddt_bias) <= 1.25 * 3.3e-3);
  }

  TEST_CASE("accuracy: selective_scan") {
    const Figures bfloat{{"out", 1.7e-3}, {"du", 1.7e-3}, {"ddelta", 1.6e-3}, {"dA", 1e-6},         {"dB", 1.7e-3},
                         {"dC", 1.7e-3},  {"dD", 4e-7},   {"dz", 2.4e-3},     {"ddelta_bias", 4e-7}};
    const Figures single{{"out", 1.6e-7}, {"du", 1.6e-7}, {"ddelta", 5e-7}, {"dA", 1.8e-6},       {"dB", 5e-7},
                         {"dC", 5e-7},    {"dD", 7e-7},   {"dz", 1.6e-7},   {"ddelta_bias", 7e-7}};
    for (const ScanShape& s : {ScanShape{2, 256, 512, 1}, ScanShape{1, 128, 2048, 1}, ScanShape{2, 256, 509, 2},
                               ScanShape{1, 192, 1021, 1}}) {
      const std::string what = "selective_scan " + std::to_string(s.batch) + " x " + std::to_string(s.length) + " x " +
                               std::to_string(s.channels) + ", groups " + std::to_string(s.groups);
      check<bfloat16>(what, bfloat, Scan{s});
      check<float>(what, single, Scan{s});
    }
  }

  TEST_CASE("accuracy: causal_conv1d") {
    const Figures bfloat{{"out", 1.7e-3}, {"dx", 1.7e-3}, {"dweight", 2e-7}, {"dbias", 2e-7}};
    for (const Convolution& c : {Convolution{2, 512, 256}, Convolution{1, 2048, 2304}, Convolution{3, 509, 328}})
      check<bfloat16>("causal_conv1d " + std::to_string(c.length) + " x " + std::to_string(c.channels), bfloat, c);
  }

  TEST_CASE("accuracy: gated_rms_norm") {
    const Figures bfloat{{"out", 1.7e-3}, {"dx", 1.7e-3}, {"dz", 1.7e-3}, {"dweight", 2e-7}};
    for (const bool norm_before_gate : {false, true})
      for (const GatedNorm& n : {GatedNorm{1024, 1024, 0, norm_before_gate}, GatedNorm{509, 2048, 0, norm_before_gate},
                                 GatedNorm{2048, 1024, 512, norm_before_gate}})
        check<bfloat16>("gated_rms_norm " + std::to_string(n.rows) + " x " + std::to_string(n.channels) +
                            (norm_before_gate ? ", norm first" : ", gate first"),
                        bfloat, n);
  }
}
