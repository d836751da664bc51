// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "diffmamba/nn/mixer.hpp"
#include "diffmamba/ops/contract.hpp"       // forward_count
#include "diffmamba/ops/matmul/matmul.hpp"  // matmul_count
#include "support/gradient_check.hpp"

/// What every mixer must do, whichever it is.
namespace diffmamba::test {

/// Moves every parameter away from where the initialisation put it (ones, zeros), so that no gradient hides.
template <class M>
void stir(M& mixer, double scale = 0.2) {
  unsigned seed = 100;
  mixer.visit([&](std::string_view, auto& parameter) {
    auto value = parameter.to_tensor();
    const auto noise = random_tensor<double>(Extents<1>{value.size()}, seed++, scale);
    for (Index i = 0; i < value.size(); ++i) value.data()[i] += static_cast<typename M::value_type>(noise(i));
    parameter.copy_from(value);
  });
}

/// A mixer with every parameter stirred, from the same numbers in every element type.
template <class M>
M stirred(const typename M::Options& options) {
  M mixer(options);
  initialize(mixer, Philox{5}, {.zero_biases = false});
  stir(mixer);
  return mixer;
}

template <class M>
Tensor<typename M::value_type, 3> trained_forward(const M& mixer, const Tensor<typename M::value_type, 3>& x) {
  typename M::Saved saved;
  return mixer.forward(x, saved);
}

/// The width of a mixer's input: the columns of its input projection.
template <class M>
Index d_model_of(const M& mixer) {
  Index d_model = 0;
  mixer.visit([&](std::string_view name, auto& parameter) {
    if (name.find("in_proj") != std::string_view::npos && name.ends_with("weight")) d_model = parameter.extents()[1];
  });
  return d_model;
}

/// backward against central differences of sum(dout * forward(x)): x, and every parameter under its official name.
template <class M>
void check_mixer_gradients(const typename M::Options& options, Index batch, Index length, double tolerance = 1e-6) {
  const Threads threads(1);  // the sizes are tiny and the passes many
  M mixer = stirred<M>(options);
  auto x = random_tensor<double>(Extents{batch, length, d_model_of(mixer)}, 1);
  const auto dout = random_tensor<double>(x.extents(), 2);
  typename M::Saved saved;
  mixer.forward(x, saved);
  const auto dx = mixer.backward(dout, saved);
  const auto loss = [&] { return dot(trained_forward(mixer, x), dout); };
  check_gradient("x", x, dx, loss, tolerance);
  mixer.visit([&](std::string_view name, auto& parameter) {
    INFO(name);
    auto value = parameter.to_tensor();
    const auto gradient = parameter.gradient_to_tensor();
    check_gradient(
        std::string(name).c_str(), value, gradient,
        [&] {
          parameter.copy_from(value);
          return loss();
        },
        tolerance, 1e-3, 12);
    parameter.copy_from(value);
  });
  // Gradients of parameters add up: a second pass doubles them.
  std::vector<Tensor<double, 1>> once;
  const auto flat = [](auto& parameter) {
    const auto gradient = parameter.gradient_to_tensor();
    return to_tensor(gradient.reshape(Extents<1>{gradient.size()}));
  };
  mixer.visit([&](std::string_view, auto& parameter) { once.push_back(flat(parameter)); });
  mixer.forward(x, saved);
  mixer.backward(dout, saved);
  std::size_t i = 0;
  mixer.visit([&](std::string_view name, auto& parameter) {
    INFO(name);
    auto want = once[i++];
    for (double& g : want) g *= 2;
    CHECK(relative_error(flat(parameter), want) < 1e-12);
  });
}

/// Inference, prefill in pieces and steps agree with the training forward pass, whatever the split; a copied state goes
/// on by itself.
template <class M>
void check_mixer_decoding(const typename M::Options& options, Index batch, Index length, double tolerance = 1e-12) {
  using T = typename M::value_type;
  const Threads threads(1);
  const M mixer = stirred<M>(options);
  const auto x = random_tensor<T>(Extents{batch, length, d_model_of(mixer)}, 1);
  const auto want = trained_forward(mixer, x);
  CHECK(relative_error(infer(mixer, x.view()), want) < tolerance);
  for (const Index piece : {Index{1}, Index{2}, Index{5}, Index{length}}) {
    INFO("pieces of ", piece);
    auto state = mixer.make_state(batch);
    Tensor<T, 3> got(x.extents());
    for (Index t = 0; t < length; t += piece) {
      const Index end = std::min(t + piece, length);
      copy(mixer.prefill(x.template slice<1>(t, end), state), got.template slice<1>(t, end));
    }
    CHECK(relative_error(got, want) < tolerance);
  }
  // Half by prefill, the rest by steps, twice from one copied state.
  auto state = mixer.make_state(batch);
  const Index half = length / 2;
  mixer.prefill(x.template slice<1>(0, half), state);
  const auto kept = state;
  for (int round = 0; round < 2; ++round) {
    auto mine = kept;
    Tensor<T, 3> got(x.extents());
    copy(want.template slice<1>(0, half), got.template slice<1>(0, half));
    for (Index t = half; t < length; ++t)
      copy(step(mixer, View<const T, 2>(x.template select<1>(t)), mine), got.template select<1>(t));
    CHECK(relative_error(got, want) < tolerance);
  }
  // Nothing to do is no mistake.
  const auto empty = mixer.prefill(x.template slice<1>(0, 0), state);
  CHECK(empty.extents() == Extents{batch, Index{0}, x.extent(2)});
}

/// One and two threads give the same bits, forward and backward. (Float against double is what tests/conformance does.)
template <class M>
void check_mixer_threads(const typename M::Options& options, Index batch, Index length) {
  using T = typename M::value_type;
  const auto run = [&](int count) {
    const Threads threads(count);
    auto mixer = stirred<M>(options);
    const auto x = random_tensor<T>(Extents{batch, length, d_model_of(mixer)}, 1);
    typename M::Saved saved;
    std::vector<T> all;
    const auto keep = [&](const auto& tensor) { all.insert(all.end(), tensor.begin(), tensor.end()); };
    const auto out = mixer.forward(x, saved);
    keep(out);
    keep(mixer.backward(random_tensor<T>(out.extents(), 2), saved));
    mixer.visit([&](std::string_view, auto& parameter) { keep(parameter.gradient_to_tensor()); });
    keep(infer(mixer, x.view()));
    return all;
  };
  CHECK(run(1) == run(2));
}

/// After forward, x and Saved together hold `per_token` elements for each token: what the mixer's header states.
template <class M>
void check_mixer_saved(const typename M::Options& options, Index batch, Index length, Index per_token) {
  using T = typename M::value_type;
  const M mixer = stirred<M>(options);
  typename M::Saved saved;
  const auto before = arena<cpu>().bytes_in_use();
  mixer.forward(random_tensor<T>(Extents{batch, length, d_model_of(mixer)}, 1), saved);
  const auto bytes = static_cast<double>(arena<cpu>().bytes_in_use() - before);
  const auto stated = static_cast<double>(sizeof(T)) * static_cast<double>(per_token * batch * length);
  CHECK(bytes <= 1.01 * stated + 8 * 4096);  // blocks are rounded up
  CHECK(bytes >= 0.99 * stated);
}

/// What a training step of a mixer calls: matrix products forwards and backwards, convolutions, scans.
struct Calls {
  Index forward_products, backward_products, convolutions, scans;
  friend bool operator==(const Calls&, const Calls&) = default;
};
inline std::ostream& operator<<(std::ostream& out, const Calls& c) {
  return out << c.forward_products << " + " << c.backward_products << " products, " << c.convolutions
             << " convolutions, " << c.scans << " scans";
}
template <class M>
Calls calls_of(const typename M::Options& options, Index batch, Index length) {
  auto mixer = stirred<M>(options);
  typename M::Saved saved;
  const auto x = random_tensor<typename M::value_type>(Extents{batch, length, d_model_of(mixer)}, 1);
  matmul_count() = {};
  forward_count() = {};
  const auto dout = mixer.forward(x, saved);
  const Index forward_products = matmul_count().calls;
  mixer.backward(dout, saved);
  return {forward_products, matmul_count().calls - forward_products, forward_count().causal_conv1d,
          forward_count().ssd + forward_count().selective_scan};
}

/// The message of the Error that `work` throws.
template <class Work>
std::string error_of(Work&& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace diffmamba::test
