// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/differential.hpp"
#include "nn/mixer_check.hpp"

// Differential<Mamba>: what differential.cpp tests on Mamba-2, on the first generation and on a mixer without paths.
namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;
using Double = dm::DiffMamba<double>;

namespace {

const Double::Options published{
    .mixer = {.d_model = 5, .d_state = 3, .d_conv = 3, .expand = 1, .bias = true, .dt_min = 0.1, .dt_max = 1.0},
    .differential = {
        .depth = 1, .lambda = dm::Lambda::exponential, .lambda_initialization = dm::LambdaInit::unit_variance}};

/// The same mixer with its axis of paths hidden: what a user's own mixer looks like.
template <class T>
struct Opaque : dm::Module<Opaque<T>> {
  using value_type = T;
  using device_type = dm::cpu;
  using Options = dm::MambaOptions;
  using Saved = typename dm::Mamba<T>::Saved;
  using State = typename dm::Mamba<T>::State;
  static constexpr std::string_view name() { return "opaque"; }
  explicit Opaque(const Options& options) : mamba(options) {}
  void initialize(dm::Philox random, const dm::Initialization& how = {}) { mamba.initialize(random, how); }
  dm::Tensor<T, 3> forward(dm::Tensor<T, 3> x, Saved& saved) const { return mamba.forward(std::move(x), saved); }
  dm::Tensor<T, 3> backward(const dm::View<const T, 3>& dout, Saved& saved) { return mamba.backward(dout, saved); }
  State make_state(Index batch) const { return mamba.make_state(batch); }
  dm::Tensor<T, 3> prefill(const dm::View<const T, 3>& x, State& state) const { return mamba.prefill(x, state); }
  template <class Self, class F>
  static void parameters(Self& self, F&& f) {
    self.mamba.visit(f);
  }
  dm::Mamba<T> mamba;
};
static_assert(dm::Mixer<Opaque<double>> && !dm::MixerOfPaths<Opaque<double>>);

}  // namespace

TEST_CASE("gradients of every parameter and of x") {
  for (const auto norm : {dm::Norm::after, dm::Norm::before, dm::Norm::none}) {
    CAPTURE(dm::name_of(norm));
    auto options = published;
    options.differential.norm = norm;
    check_mixer_gradients<Double>(options, 2, 5);
  }
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Double>(published, 5, 11);
}

TEST_CASE("float follows double; one and two threads give the same bits") {
  auto options = published;
  options.mixer.d_model = 40;
  check_mixer_types<dm::DiffMamba>(options, 3, 70, 5e-4);
}

TEST_CASE("both paths: one input product, one convolution, one scan, one output product") {
  // Besides in_proj and out_proj each path has its own x_proj and dt_proj; delta is computed again for backward.
  auto plain = published.mixer;
  CHECK(calls_of<dm::Mamba<double>>(plain, 2, 40) == Calls{4, 9, 1, 1});
  CHECK(calls_of<Double>(published, 2, 40) == Calls{2 + 2 * 2, 4 + 2 * 5, 1, 1});
}

TEST_CASE("a mixer without paths is called twice and gives the same") {
  using Twice = dm::Differential<Opaque<double>>;
  static_assert(Twice::name() == "diff_opaque");
  for (const auto norm : {dm::Norm::after, dm::Norm::before, dm::Norm::before_and_after, dm::Norm::none}) {
    CAPTURE(dm::name_of(norm));
    auto options = published;
    options.differential.norm = norm;
    auto one = stirred<Double>(options);
    Twice two({.mixer = options.mixer, .differential = options.differential});
    initialize(two, dm::Philox{1});
    two.visit([&](std::string_view name, auto& target) {
      one.visit([&](std::string_view other, auto& source) {
        if constexpr (std::remove_cvref_t<decltype(source)>::rank == std::remove_cvref_t<decltype(target)>::rank)
          if (name == other) target.copy_from(source.to_tensor());
      });
    });
    const auto x = random_tensor<double>(dm::Extents{2, 9, 5}, 1), dout = random_tensor<double>(x.extents(), 2);
    Double::Saved one_saved;
    Twice::Saved two_saved;
    CHECK(relative_error(two.forward(x, two_saved), one.forward(x, one_saved)) < 1e-12);
    CHECK(relative_error(two.backward(dout, two_saved), one.backward(dout, one_saved)) < 1e-12);
    std::vector<dm::Tensor<double, 1>> gradients;
    one.visit([&](std::string_view, auto& p) {
      const auto g = p.gradient_to_tensor();
      gradients.push_back(dm::to_tensor(g.reshape(dm::Extents<1>{g.size()})));
    });
    std::size_t i = 0;
    two.visit([&](std::string_view name, auto& p) {
      INFO(name);
      CHECK(relative_error(p.gradient_to_tensor(), gradients[i++]) < 1e-12);
    });
  }
  check_mixer_decoding<Twice>({.mixer = published.mixer, .differential = published.differential}, 2, 7);
}
