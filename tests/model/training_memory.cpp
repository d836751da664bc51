// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "diffmamba/model/language_model.hpp"

using namespace diffmamba;

namespace {

using Model = LanguageModel<cpu, float, float, Mamba2<float>, Differential<Mamba2<float>>>;
constexpr Index d_model = 128, vocab = 64;

struct Memory {
  double kept, working;  // elements: of what forward keeps; taken beside it at the height of a step
};

Memory of_a_step(const char* mixer, Index layers, Index batch, Index length) {
  Model model({.d_model = d_model,
               .vocab_size = vocab,
               .layers = all(mixer, layers),
               .mixer = {{"d_state", 32.0}, {"headdim", 32.0}}});
  initialize(model, Philox{1});
  model.zero_gradients();
  const Tensor<std::int32_t, 2> tokens({batch, length}, 3);
  model.forward_backward(tokens, tokens);  // the first step may take what stays, gradients among it
  const std::size_t before = arena<cpu>().bytes_in_use();
  arena<cpu>().reset_peak();
  model.forward_backward(tokens, tokens);
  const std::size_t peak = arena<cpu>().peak_bytes() - before, kept = model.saved_bytes();
  return {static_cast<double>(kept) / sizeof(float), static_cast<double>(peak - kept) / sizeof(float)};
}

/// What the comment of LanguageModel says.
double working_elements(bool differential, Index n) {
  const Mamba2Sizes sizes({.d_model = d_model, .d_state = 32, .expand = differential ? 1 : 2, .headdim = 32},
                          differential ? 2 : 1);
  return static_cast<double>(n * std::max(d_model + vocab, 3 * d_model + sizes.backward_elements()));
}

}  // namespace

TEST_CASE("training memory: what a step takes beside what forward keeps is what the formula says") {
  for (const bool differential : {false, true}) {
    const char* mixer = differential ? "diff_mamba2" : "mamba2";
    INFO(std::string(mixer));
    const Memory small = of_a_step(mixer, 2, 4, 128), deep = of_a_step(mixer, 4, 4, 128),
                 wide = of_a_step(mixer, 2, 8, 128);
    for (const Memory& memory : {small, deep}) {
      CHECK(memory.working <= 1.1 * working_elements(differential, 4 * 128));
      CHECK(memory.working >= 0.7 * working_elements(differential, 4 * 128));
    }
    CHECK(deep.working <= 1.02 * small.working);  // nothing per layer
    CHECK(wide.working <= 2.02 * small.working);  // in proportion to the tokens
    CHECK(wide.kept <= 2 * small.kept);
    CHECK(wide.kept >= 1.9 * small.kept);  // a folded projection does not grow
  }
}
