// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/differential.hpp"
#include "nn/mixer_check.hpp"

// What training runs: float, sizes that fill a tile and some that do not. (Against double: tests/conformance.)
namespace dm = diffmamba;
using namespace diffmamba::test;
using Float = dm::DiffMamba2<float>;

namespace {
const Float::Options options{.mixer = {.d_model = 40, .d_state = 24, .expand = 1, .headdim = 8},
                             .differential = {.depth = 1}};
}

TEST_CASE("one and two threads give the same bits") {
  check_mixer_threads<Float>(options, 3, 150);
}

TEST_CASE("steps, prefill in pieces and forward agree") {
  check_mixer_decoding<Float>(options, 2, 70, 2e-5);
}

TEST_CASE("a second training step takes no new memory from the system") {
  auto mixer = stirred<Float>(options);
  Float::Saved saved;
  const auto x = random_tensor<float>(dm::Extents{2, 70, 40}, 1);
  const auto step = [&] {
    auto copy = x;
    const auto out = mixer.forward(std::move(copy), saved);
    mixer.backward(out, saved);
  };
  step();
  step();
  const auto before = dm::arena<dm::cpu>().system_allocations();
  for (int i = 0; i < 5; ++i) step();
  CHECK(dm::arena<dm::cpu>().system_allocations() == before);
}
