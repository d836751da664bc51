// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/parameter.hpp"

#include "diffmamba/nn/linear_layer.hpp"
#include "support/gradient_check.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;

namespace {

/// Two official tensors of 1 + 2 rows, stacked role by role, and a plain bias.
struct Stacked : dm::Module<Stacked> {
  using value_type = float;
  using device_type = dm::cpu;
  dm::Parameter<float, 2> weight{dm::Extents{6, 2}};
  dm::Parameter<float, 1> bias{dm::Extents<1>{3}, dm::Decay::no}, absent;
  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    for (Index path = 0; path < 2; ++path) {
      auto part = dm::path_of(self.weight, path, 2, dm::Extents{3, 2}, std::array<Index, 2>{1, 2});
      f(path == 0 ? "m1.weight" : "m2.weight", part);
    }
    f("bias", self.bias);
    if (self.absent) f("absent", self.absent);
  }
};

/// A matrix that operators read in bfloat16, and a bias that they read in float.
struct Shadowed : dm::Module<Shadowed> {
  using value_type = dm::bfloat16;
  using device_type = dm::cpu;
  dm::Parameter<dm::bfloat16, 2> weight{dm::Extents{3, 2}};
  dm::Parameter<float, 1> bias{dm::Extents<1>{3}, dm::Decay::no};
  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    f("weight", self.weight);
    f("bias", self.bias);
  }
};

}  // namespace

TEST_CASE("no memory before it is asked for; reading what was never written is a mistake") {
  dm::Parameter<float, 2> parameter(dm::Extents{2, 3});
  CHECK(!parameter.has_value());
  CHECK_THROWS_WITH_AS(std::as_const(parameter).value(),
                       "parameter: it has no values yet; initialize(module, Philox{seed}) or load them first",
                       dm::Error);
  CHECK(parameter.value()(1, 2) == 0);
  CHECK(parameter.has_value());
  CHECK(!parameter.has_gradient());
  CHECK(!std::as_const(parameter).gradient());
  CHECK(parameter.gradient()(1, 2) == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(parameter.value_data()) % 64 == 0);
  dm::Parameter<float, 2> absent;
  CHECK(!absent);
  CHECK(!absent.value());
  CHECK(!absent.gradient());
}

TEST_CASE("copies stand alone, moves do not copy") {
  dm::Parameter<float, 1> a(dm::Extents<1>{3});
  a.value()(0) = 1;
  a.gradient()(0) = 2;
  auto b = a;
  b.value()(0) = 5;
  CHECK(a.value()(0) == 1);
  CHECK(!b.has_gradient());
  const float* memory = a.value_data();
  const auto c = std::move(a);
  CHECK(c.value_data() == memory);
}

TEST_CASE("official tensors as row blocks of a stored one") {
  Stacked module;
  const auto first = random_tensor<double>(dm::Extents{3, 2}, 1), second = random_tensor<double>(dm::Extents{3, 2}, 2);
  module.visit([&](std::string_view name, auto& parameter) {
    using P = std::remove_cvref_t<decltype(parameter)>;
    if constexpr (P::rank == 2)
      parameter.copy_from(name == "m1.weight" ? first : second);  // from another type
    else
      parameter.value();
  });
  // Role 1 of both paths, then role 2 of both.
  const auto& stored = std::as_const(module).weight.value();
  for (Index c = 0; c < 2; ++c) {
    CHECK(stored(0, c) == static_cast<float>(first(0, c)));
    CHECK(stored(1, c) == static_cast<float>(second(0, c)));
    CHECK(stored(3, c) == static_cast<float>(first(2, c)));
    CHECK(stored(4, c) == static_cast<float>(second(1, c)));
  }
  for (Index i = 0; i < 12; ++i) module.weight.gradient_data()[i] = static_cast<float>(i);
  std::as_const(module).visit([&](std::string_view name, auto& parameter) {
    using P = std::remove_cvref_t<decltype(parameter)>;
    if constexpr (P::rank == 2) {
      CHECK(relative_error(parameter.to_tensor(), name == "m1.weight" ? first : second) < 1e-7);
      CHECK(parameter.gradient_to_tensor()(0, 1) == (name == "m1.weight" ? 1 : 3));
      CHECK(parameter.gradient_to_tensor()(2, 0) == (name == "m1.weight" ? 6 : 10));
      CHECK(parameter.decay() == dm::Decay::yes);
    } else {
      CHECK(parameter.decay() == dm::Decay::no);
    }
  });
  module.visit([&](std::string_view, auto& parameter) {
    using P = std::remove_cvref_t<decltype(parameter)>;
    if constexpr (P::rank == 2)
      CHECK_THROWS_WITH_AS(parameter.copy_from(dm::Tensor<float, 2>(dm::Extents{2, 3})),
                           "parameter: copy_from a tensor (2, 3) to one (3, 2)", dm::Error);
  });
  CHECK(module.parameter_count() == 15);
}

TEST_CASE("one flat array: bound once, aligned, with its gradients, and kept alive by the module") {
  Stacked module;
  module.bias.value()(2) = 7;
  auto flat = dm::bind(module);
  REQUIRE(flat.segments.size() == 2);
  CHECK(flat.segments[0].size == 12);
  CHECK(flat.segments[1].offset == 16);
  CHECK(flat.segments[1].decay == dm::Decay::no);
  CHECK(flat.size == 32);
  CHECK(flat.values()(18) == 7);
  CHECK(!flat.gradients());
  module.bias.gradient()(0) = 3;  // there before the flat array
  dm::bind_gradients(module, flat);
  CHECK(flat.gradients()(16) == 3);
  flat.values()(0) = 9;
  CHECK(module.weight.value()(0, 0) == 9);
  flat = {};
  CHECK(module.weight.value()(0, 0) == 9);
  module.zero_gradients();
  CHECK(module.bias.gradient()(0) == 0);
}

TEST_CASE("a discarded gradient is zero, and its first writer assigns") {
  dm::Parameter<float, 1> weight(dm::Extents<1>{3}), bias(dm::Extents<1>{2}), absent;
  const auto fill = [](auto& parameter) { std::fill_n(parameter.gradient_data(), parameter.size(), 7.0f); };
  weight.discard_gradient();  // there is none
  CHECK(weight.gradient_mode() == dm::GradientMode::add);
  fill(weight);
  fill(bias);
  weight.discard_gradient();
  CHECK(weight.gradient_mode() == dm::GradientMode::assign);
  CHECK(weight.gradient_mode() == dm::GradientMode::add);
  CHECK(weight.gradient()(2) == 7.0f);  // the writer's business
  weight.discard_gradient();
  CHECK(weight.gradient()(2) == 0.0f);
  fill(weight);
  weight.discard_gradient();
  weight.settle_gradient();
  CHECK(std::as_const(weight).gradient()(2) == 0.0f);
  // Of a pair written together either both are assigned or none.
  fill(weight);
  weight.discard_gradient();
  CHECK(dm::gradient_mode(weight, bias) == dm::GradientMode::add);
  CHECK(std::as_const(weight).gradient()(0) == 0.0f);
  CHECK(std::as_const(bias).gradient()(0) == 7.0f);
  weight.discard_gradient();
  bias.discard_gradient();
  CHECK(dm::gradient_mode(weight, bias) == dm::GradientMode::assign);
  CHECK(dm::gradient_mode(weight, bias) == dm::GradientMode::add);
  weight.discard_gradient();
  CHECK(dm::gradient_mode(weight, absent) == dm::GradientMode::assign);
}

TEST_CASE("16-bit operators read a shadow of the float masters") {
  Shadowed module;
  const auto values = random_tensor<float>(dm::Extents{3, 2}, 1);
  module.weight.copy_from(values);
  module.bias.value()(1) = 0.3f;
  const auto shadow_is_rounded = [](const Shadowed& m) {
    for (Index i = 0; i < 6; ++i)
      if (float(m.weight.value().data()[i]) != float(dm::bfloat16(m.weight.value_data()[i]))) return false;
    return true;
  };
  CHECK(shadow_is_rounded(module));
  CHECK(relative_error(module.weight.to_tensor(), values) == 0);  // the masters lose nothing
  auto flat = dm::bind(module);
  CHECK(flat.values().size() == 32);
  CHECK(flat.shadows().data() == module.weight.value().data());
  CHECK(shadow_is_rounded(module));
  flat.values()(1) = 1.2345f;
  CHECK(!shadow_is_rounded(module));
  flat.refresh_shadows();
  CHECK(shadow_is_rounded(module));
  module.weight.gradient()(0, 0) = 2;  // of float
  const auto copied = module;
  CHECK(copied.weight.value().data() != module.weight.value().data());
  CHECK(shadow_is_rounded(copied));
  dm::release_masters(module, flat);
  CHECK(!flat.values());
  CHECK(float(module.weight.value().data()[1]) == float(dm::bfloat16(1.2345f)));
  CHECK(module.weight.to_tensor()(0, 1) == float(dm::bfloat16(1.2345f)));
  CHECK(module.bias.value()(1) == 0.3f);
  CHECK_THROWS_WITH_AS(module.weight.gradient(),
                       "parameter: its masters were released for inference; it cannot be trained any more", dm::Error);
  CHECK_THROWS_AS(dm::bind_gradients(module, flat), dm::Error);
  module.weight.copy_from(values);  // loading still works
  CHECK(module.weight.to_tensor()(2, 1) == float(dm::bfloat16(values(2, 1))));
}

TEST_CASE("names inside a module: prefixes") {
  Stacked module;
  std::vector<std::string> names;
  const auto collect = [&](std::string_view name, auto&) { names.emplace_back(name); };
  module.visit(dm::prefixed("layers.3.mixer.", collect));
  CHECK(names ==
        std::vector<std::string>{"layers.3.mixer.m1.weight", "layers.3.mixer.m2.weight", "layers.3.mixer.bias"});
}

TEST_CASE("Linear: gradients, biases, slices of several sequences") {
  const dm::Threads threads(1);
  dm::Linear<double> layer(4, 3, true);
  initialize(layer, dm::Philox{1}, {.zero_biases = false});
  auto x = random_tensor<double>(dm::Extents{2, 5, 4}, 1);
  const auto dout = random_tensor<double>(dm::Extents{2, 5, 3}, 2);
  const auto loss = [&] { return dot(layer.forward(x), dout); };
  const auto dx = layer.backward(x, dout);
  check_gradient("x", x, dx, loss);
  layer.visit([&](std::string_view name, auto& parameter) {
    INFO(name);
    auto value = parameter.to_tensor();
    check_gradient("parameter", value, parameter.gradient_to_tensor(), [&] {
      parameter.copy_from(value);
      return loss();
    });
    parameter.copy_from(value);
  });
  const auto part = layer.forward(x.slice<1>(1, 3)), whole = layer.forward(x);
  CHECK(relative_error(part, dm::to_tensor(whole.slice<1>(1, 3))) < 1e-15);
}
