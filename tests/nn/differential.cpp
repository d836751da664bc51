// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/differential.hpp"

#include "nn/mixer_check.hpp"
#include "nn/tiny_mixer.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;
using Double = dm::Differential<Tiny<double>>;

static_assert(dm::Mixer<Double>);
static_assert(Double::name() == "diff_tiny");
static_assert(dm::DiffMamba<float>::name() == "diff_mamba");
static_assert(dm::DiffMamba2<float>::name() == "diff_mamba2");

namespace {

const TinyOptions small{.d_model = 6, .expand = 1};

Double::Options variant(dm::Norm norm, dm::Lambda lambda) {
  return {.mixer = small,
          .differential = {
              .depth = 2, .norm = norm, .lambda = lambda, .lambda_initialization = dm::LambdaInit::unit_variance}};
}
Double::Options with(auto change) {
  auto options = variant(dm::Norm::after, dm::Lambda::sigmoid_sum);
  change(options);
  return options;
}
constexpr dm::Norm norms[] = {dm::Norm::after, dm::Norm::before, dm::Norm::before_and_after, dm::Norm::none};
constexpr dm::Lambda lambdas[] = {dm::Lambda::sigmoid_sum, dm::Lambda::sigmoid_scalar, dm::Lambda::sigmoid_per_channel,
                                  dm::Lambda::exponential, dm::Lambda::none};

/// Takes the values of the parameters of `from` that begin with `prefix`.
template <class To, class From>
void take(To& to, const From& from, const std::string& prefix) {
  to.visit([&](std::string_view name, auto& target) {
    from.visit([&](std::string_view other, auto& source) {
      if constexpr (std::remove_cvref_t<decltype(source)>::rank == std::remove_cvref_t<decltype(target)>::rank)
        if (other == prefix + std::string(name)) target.copy_from(source.to_tensor());
    });
  });
}

}  // namespace

TEST_CASE("every norm with every lambda: the formula, from two plain mixers") {
  for (const auto norm : norms)
    for (const auto form : lambdas) {
      CAPTURE(dm::name_of(norm));
      CAPTURE(dm::name_of(form));
      const auto options = variant(norm, form);
      const auto mixer = stirred<Double>(options);
      Tiny<double> m1(small), m2(small);
      take(m1, mixer, "m1.");
      take(m2, mixer, "m2.");
      std::vector<double> norm_weight(6, 1.0), subln_weight(6, 1.0), q1, k1, q2, k2;
      mixer.visit([&](std::string_view name, auto& parameter) {
        const auto value = parameter.to_tensor();
        const auto read = [&](std::string_view wanted, std::vector<double>& to) {
          if (name == wanted) to.assign(value.begin(), value.end());
        };
        read("norm.weight", norm_weight), read("subln.weight", subln_weight);
        read("lambda_q1", q1), read("lambda_k1", k1), read("lambda_q2", q2), read("lambda_k2", k2);
      });
      const double init = 0.8 - 0.6 * std::exp(-0.6), scale = form == dm::Lambda::none ? 1 : 1 - init;
      const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
      const auto lambda = [&](Index c) {
        double a = 0, b = 0;
        if (form == dm::Lambda::none) return 1.0;
        if (form == dm::Lambda::sigmoid_per_channel) return sigmoid(q1[static_cast<std::size_t>(c)]) + init;
        if (form != dm::Lambda::exponential) {
          for (double v : q1) a += v;
          CHECK(q1.size() == (form == dm::Lambda::sigmoid_scalar ? 1u : 6u));
          return sigmoid(a) + init;
        }
        REQUIRE(q1.size() == 3);  // d_state
        for (std::size_t i = 0; i < q1.size(); ++i) a += q1[i] * k1[i], b += q2[i] * k2[i];
        return std::exp(a) - std::exp(b) + init;
      };
      const auto x = random_tensor<double>(dm::Extents{2, 5, 6}, 1);
      auto y1 = dm::infer(m1, x.view()), y2 = dm::infer(m2, x.view());
      const auto rms = [](double* row, const std::vector<double>& weight) {
        double square = 0;
        for (int c = 0; c < 6; ++c) square += row[c] * row[c] / 6;
        for (int c = 0; c < 6; ++c) row[c] *= weight[static_cast<std::size_t>(c)] / std::sqrt(square + 1e-5);
      };
      dm::Tensor<double, 3> want(x.extents());
      for (Index row = 0; row < 10; ++row) {
        double *a = y1.data() + 6 * row, *b = y2.data() + 6 * row, *out = want.data() + 6 * row;
        if (norm == dm::Norm::before || norm == dm::Norm::before_and_after) rms(a, norm_weight), rms(b, norm_weight);
        for (int c = 0; c < 6; ++c) out[c] = a[c] - lambda(c) * b[c];
        if (norm == dm::Norm::after || norm == dm::Norm::before_and_after) rms(out, subln_weight);
        for (int c = 0; c < 6; ++c) out[c] *= scale;
      }
      CHECK(relative_error(trained_forward(mixer, x), want) < 1e-12);
    }
}

TEST_CASE("gradients of every parameter and of x, every norm with every lambda") {
  for (const auto norm : norms)
    for (const auto form : lambdas) {
      CAPTURE(dm::name_of(norm));
      CAPTURE(dm::name_of(form));
      check_mixer_gradients<Double>(variant(norm, form), 1, 5);
    }
}

TEST_CASE("gradients with biases") {
  for (const auto norm : {dm::Norm::after, dm::Norm::before, dm::Norm::none}) {
    CAPTURE(dm::name_of(norm));
    const auto rich = with([&](auto& o) { o.differential.norm = norm, o.mixer.bias = true, o.mixer.expand = 2; });
    check_mixer_gradients<Double>(rich, 2, 4);
    check_mixer_decoding<Double>(rich, 2, 9);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  for (const auto norm : norms) {
    CAPTURE(dm::name_of(norm));
    check_mixer_decoding<Double>(variant(norm, dm::Lambda::sigmoid_per_channel), 5, 11);  // 55 rows fold, 5 do not
  }
}

TEST_CASE("one and two threads give the same bits") {
  for (const auto norm : norms) check_mixer_threads<Double>(variant(norm, dm::Lambda::sigmoid_per_channel), 3, 70);
}

TEST_CASE("a mixer without paths is called twice and gives the same") {
  using Twice = dm::Differential<Plain<double>>;
  static_assert(Twice::name() == "diff_plain");
  for (const auto norm : norms) {
    CAPTURE(dm::name_of(norm));
    const auto options = with([&](auto& o) { o.differential.norm = norm, o.mixer.bias = true; });
    auto one = stirred<Double>(options);
    Twice two(options);
    take(two, one, "");
    const auto x = random_tensor<double>(dm::Extents{2, 9, 6}, 1), dout = random_tensor<double>(x.extents(), 2);
    Double::Saved one_saved;
    Twice::Saved two_saved;
    CHECK(relative_error(two.forward(x, two_saved), one.forward(x, one_saved)) < 1e-12);
    CHECK(relative_error(two.backward(dout, two_saved), one.backward(dout, one_saved)) < 1e-12);
    std::vector<double> want, got;
    const auto append = [](std::vector<double>& to, const auto& tensor) {
      to.insert(to.end(), tensor.begin(), tensor.end());
    };
    one.visit([&](std::string_view, auto& p) { append(want, p.gradient_to_tensor()); });
    two.visit([&](std::string_view, auto& p) { append(got, p.gradient_to_tensor()); });
    REQUIRE(got.size() == want.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(want[i]).epsilon(1e-10));
    check_mixer_decoding<Twice>(options, 2, 7);
  }
}

TEST_CASE("both paths are one input product and, with the norm after or none, one output product") {
  const auto calls = [](dm::Norm norm, dm::Lambda lambda) { return calls_of<Double>(variant(norm, lambda), 2, 40); };
  // A projection is one product forwards and two backwards. With a norm before each path has its own output products,
  // here two of them, as there are two roles.
  CHECK(calls_of<Tiny<double>>(small, 2, 40) == Calls{2, 4, 0, 0});
  CHECK(calls(dm::Norm::after, dm::Lambda::sigmoid_sum) == Calls{2, 4, 0, 0});
  CHECK(calls(dm::Norm::none, dm::Lambda::sigmoid_per_channel) == Calls{2, 4, 0, 0});
  CHECK(calls(dm::Norm::before, dm::Lambda::sigmoid_sum) == Calls{1 + 4, 2 + 8, 0, 0});
  CHECK(calls(dm::Norm::before_and_after, dm::Lambda::sigmoid_sum) == Calls{1 + 4, 2 + 8, 0, 0});
}

TEST_CASE("official names; published defaults") {
  using Published = dm::DiffMamba2<double>;
  CHECK(Published::options(16, 3).differential.lambda == dm::Lambda::sigmoid_sum);
  CHECK(dm::DiffMamba<double>::options(16, 3).differential.lambda == dm::Lambda::exponential);
  CHECK(Published::options(16, 3).differential.depth == 3);
  CHECK(Published::options(16, 3).mixer.expand == 1);
  Double named(with([](auto& o) { o.mixer.bias = true, o.differential.norm = dm::Norm::before_and_after; }));
  std::vector<std::string> names;
  named.visit([&](std::string_view name, auto& parameter) {
    std::ostringstream line;
    line << name << dm::shape(parameter) << (parameter.decay() == dm::Decay::yes ? " decays" : "");
    names.push_back(line.str());
  });
  CHECK(names == std::vector<std::string>{"m1.in_proj.weight(8, 6) decays", "m1.out_proj.weight(6, 8) decays",
                                          "m1.out_proj.bias(6)", "m2.in_proj.weight(8, 6) decays",
                                          "m2.out_proj.weight(6, 8) decays", "m2.out_proj.bias(6)", "lambda_q1(6)",
                                          "norm.weight(6)", "subln.weight(6)"});
}

TEST_CASE("mistakes say what is wrong") {
  CHECK(error_of([] { Double mixer(with([](auto& o) { o.differential.depth = -1; })); }) ==
        "lambda_init: depth is -1, expected 0 or more");
  CHECK(error_of([] { Double mixer(with([](auto& o) { o.differential.lambda_size = -1; })); }) ==
        "diff_tiny: lambda_size is -1, expected 0 (the default) or more");
  CHECK(error_of([] { dm::parse_enum<dm::Norm>("afterwards"); }) ==
        "\"afterwards\" is none of after, before, before_and_after, none");
  auto mixer = stirred<Double>(with([](auto&) {}));
  Double::Saved saved;
  const auto dout = random_tensor<double>(dm::Extents{1, 2, 6}, 1);
  CHECK(error_of([&] { mixer.backward(dout, saved); }) ==
        "diff_tiny: backward without a forward before it; every Saved serves once");
}

TEST_CASE("one flat array for all parameters, one for all gradients") {
  auto mixer = stirred<Double>(with([](auto&) {}));
  const auto x = random_tensor<double>(dm::Extents{1, 5, 6}, 1);
  const auto before = dm::infer(mixer, x.view());
  auto flat = dm::bind(mixer);
  dm::bind_gradients(mixer, flat);
  CHECK(relative_error(dm::infer(mixer, x.view()), before) == 0);
  // Pieces begin at multiples of 64 bytes.
  Index size = 0;
  for (const auto& segment : flat.segments) {
    CHECK(segment.offset % 8 == 0);
    size += segment.size;
  }
  CHECK(size == mixer.parameter_count());
  Double::Saved saved;
  mixer.forward(x, saved);
  mixer.backward(before, saved);
  double sum = 0;
  for (Index i = 0; i < flat.size; ++i) sum += std::abs(flat.gradients()(i));
  CHECK(sum > 0);
  mixer.zero_gradients();
  for (Index i = 0; i < flat.size; ++i) CHECK(flat.gradients()(i) == 0);
  // A copy is a mixer of its own.
  auto copied = mixer;
  for (Index i = 0; i < flat.size; ++i) flat.values()(i) = 0;
  CHECK(relative_error(dm::infer(copied, x.view()), before) == 0);
}

TEST_CASE("lambda starts as published, or with unit variance") {
  const auto spread = [](dm::LambdaInit how, dm::Lambda form) {
    double square = 0;
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
      dm::LambdaParameters<double> lambda(form, 4, 256, 0.2);
      lambda.initialize(dm::Philox{seed}, how);
      double value = 0;
      std::vector<dm::Tensor<double, 1>> vectors;
      dm::LambdaParameters<double>::parameters(lambda,
                                               [&](std::string_view, auto& p) { vectors.push_back(p.to_tensor()); });
      for (Index i = 0; i < 256; ++i)
        value += form == dm::Lambda::sigmoid_sum ? vectors[0](i) : vectors[0](i) * vectors[1](i);
      square += value * value / 200;
    }
    return std::sqrt(square);
  };
  CHECK(std::abs(spread(dm::LambdaInit::official, dm::Lambda::sigmoid_sum) - 16) < 3);
  CHECK(std::abs(spread(dm::LambdaInit::unit_variance, dm::Lambda::sigmoid_sum) - 1) < 0.2);
  CHECK(std::abs(spread(dm::LambdaInit::official, dm::Lambda::exponential) - 16) < 3);
  CHECK(std::abs(spread(dm::LambdaInit::unit_variance, dm::Lambda::exponential) - 1) < 0.2);
}
