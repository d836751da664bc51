// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "diffmamba/nn/mixer.hpp"
#include "support/gradient_check.hpp"

/// A module on a GPU against the same one on the CPU in double.
namespace diffmamba::test {

/// The numbers of a tensor on any device, in double.
template <class T, int Rank, class D>
std::vector<double> numbers(const Tensor<T, Rank, D>& tensor) {
  const auto host = to<cpu>(tensor);
  std::vector<double> result;
  for (const T x : host) result.push_back(static_cast<double>(static_cast<accumulate_t<T>>(x)));
  return result;
}

/// ||got - want|| / ||want||, infinite where got is not a number.
inline double norm_error(const std::vector<double>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  const double error = std::sqrt(difference) / (size > 0 ? std::sqrt(size) : 1.0);
  return std::isnan(error) ? INFINITY : error;
}

/// Random numbers that T holds exactly, in double: every type of a test starts from the same.
template <class T, int Rank>
Tensor<double, Rank> exact_in(const Extents<Rank>& extents, unsigned seed) {
  return to_tensor<double>(to_tensor<T>(random_tensor<double>(extents, seed).view()).view());
}
template <class T, int Rank>
Tensor<T, Rank, cuda> on_gpu(const Tensor<double, Rank>& x) {
  return to<cuda>(to_tensor<T>(x.view()));
}

/// Starts both alike: every parameter away from where the initialisation puts it, and a number that T holds exactly.
template <class T, class Gpu, class Cpu>
void start_alike(Gpu& gpu, Cpu& cpu_module, double noise = 0.2) {
  initialize(gpu, Philox{5}, {.zero_biases = false});
  std::map<std::string, std::vector<double>> values;
  unsigned seed = 100;
  gpu.visit([&](std::string_view name, auto& parameter) {
    auto value = parameter.to_tensor();
    const auto drawn = random_tensor<double>(Extents<1>{value.size()}, seed++, noise);
    auto& kept = values[std::string(name)];
    for (Index i = 0; i < value.size(); ++i) {
      using R = std::remove_cvref_t<decltype(value.data()[0])>;
      const T rounded = T(static_cast<accumulate_t<T>>(static_cast<double>(value.data()[i]) + drawn(i)));
      value.data()[i] = static_cast<R>(rounded);
      kept.push_back(static_cast<double>(value.data()[i]));
    }
    parameter.copy_from(value);
  });
  cpu_module.visit([&](std::string_view name, auto& parameter) {
    Tensor<double, std::remove_cvref_t<decltype(parameter)>::rank> value(parameter.extents());
    const auto& kept = values.at(std::string(name));
    REQUIRE(static_cast<Index>(kept.size()) == value.size());
    std::copy(kept.begin(), kept.end(), value.begin());
    parameter.copy_from(value);
  });
}

template <class M>
std::map<std::string, std::vector<double>> gradients_of(const M& module) {
  std::map<std::string, std::vector<double>> result;
  module.visit([&](std::string_view name, auto& parameter) {
    result[std::string(name)] = numbers(parameter.gradient_to_tensor());
  });
  return result;
}

/// Of parameters whose gradient is a sum over all tokens of terms of both signs, most of which cancel.
inline double gradient_bound(std::string_view name, double bound) {
  const bool cancels = name.find("dt") != std::string_view::npos || name.find("lambda") != std::string_view::npos;
  return cancels ? 4 * bound : bound;
}

/// What errors (relative, by norm) a run may have.
struct Bounds {
  double out, gradients;
};

/// Forward, backward and every gradient, prefill and steps of a mixer in T on a GPU against the CPU in double; and a
/// second run gives the same bits.
template <class Gpu, class Cpu>
void check_mixer_on_gpu(const typename Gpu::Options& options, const typename Cpu::Options& cpu_options, Index d_model,
                        Index batch, Index length, const Bounds& bounds) {
  using T = typename Gpu::value_type;
  INFO(Gpu::name());
  INFO("length " << length);
  Gpu gpu(options);
  Cpu reference(cpu_options);
  start_alike<T>(gpu, reference);
  const auto x = exact_in<T>(Extents{batch, length, d_model}, 1),
             dout = exact_in<T>(Extents{batch, length, d_model}, 2);

  typename Cpu::Saved saved;
  const auto out = reference.forward(Tensor<double, 3>(x), saved);
  const auto dx = reference.backward(dout, saved);
  const auto want = gradients_of(reference);

  std::vector<std::vector<double>> first;
  for (int run = 0; run < 2; ++run) {
    typename Gpu::Saved gpu_saved;
    const auto gpu_out = gpu.forward(on_gpu<T>(x), gpu_saved);
    CHECK(norm_error(numbers(gpu_out), numbers(out)) < bounds.out);
    const auto gpu_dout = on_gpu<T>(dout);
    gpu.zero_gradients();
    const auto gpu_dx = gpu.backward(gpu_dout, gpu_saved);
    CHECK(norm_error(numbers(gpu_dx), numbers(dx)) < bounds.gradients);
    std::vector<std::vector<double>> results{numbers(gpu_out), numbers(gpu_dx)};
    for (const auto& [name, got] : gradients_of(gpu)) {
      INFO(name);
      CHECK(norm_error(got, want.at(name)) < gradient_bound(name, bounds.gradients));
      results.push_back(got);
    }
    if (run == 0) first = results;
    CHECK(results == first);
  }

  const auto inferred = infer(gpu, on_gpu<T>(x).view());
  CHECK(norm_error(numbers(inferred), numbers(out)) < bounds.out);

  // The first part in one pass, then tokens one by one and a few at a time, against the whole.
  auto state = gpu.make_state(batch);
  const auto gpu_x = on_gpu<T>(x);
  std::vector<double> got(numbers(out).size());
  const auto put = [&](Index begin, Index count, const std::vector<double>& piece) {
    for (Index b = 0; b < batch; ++b)
      std::copy_n(piece.begin() + b * count * d_model, count * d_model, got.begin() + (b * length + begin) * d_model);
  };
  for (Index at = 0; at < length;) {
    const Index count = at == 0 ? (length + 1) / 2 : std::min<Index>(length - at, at % 3 == 0 ? 2 : 1);
    put(at, count, numbers(gpu.prefill(View<const T, 3, cuda>(gpu_x.template slice<1>(at, at + count)), state)));
    at += count;
  }
  CHECK(norm_error(got, numbers(out)) < bounds.out);
}

/// Of one rounding of each operator's result, several operators behind one another.
template <class T>
inline constexpr Bounds bounds = std::is_same_v<T, double>  ? Bounds{1e-11, 1e-10}
                                 : std::is_same_v<T, float> ? Bounds{1e-5, 5e-5}
                                                            : Bounds{1.5e-2, 3e-2};

template <template <class, Device> class Mixer, class T>
void check_mixer(const typename Mixer<T, cuda>::Options& options, const typename Mixer<double, cpu>::Options& same,
                 Index d_model) {
  for (const Index length : {Index{1}, Index{7}, Index{67}, Index{130}})
    check_mixer_on_gpu<Mixer<T, cuda>, Mixer<double, cpu>>(options, same, d_model, 2, length, bounds<T>);
}

}  // namespace diffmamba::test
