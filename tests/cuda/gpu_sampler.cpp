// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Sampling on the GPU draws what the CPU's Sampler draws.
#include <doctest/doctest.h>

#include "diffmamba/generate/device_sampler.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::random_tensor;

namespace {

/// The rows of a batch, drawn from again and again on both devices, each draw remembered for the penalty. Returns how
/// many tokens differ.
template <class R>
Index differences(const Tensor<R, 2>& logits, const SamplerOptions& options, Index window, int draws) {
  const Index batch = logits.extent(0), size = logits.extent(1);
  const auto there = to<cuda>(logits);
  Tensor<std::int32_t, 1, cuda> tokens{Extents<1>(batch)};
  auto position = Tensor<std::uint64_t, 1, cuda>::uninitialized({batch}), remembered = position;
  const std::vector<std::uint64_t> zeros(static_cast<std::size_t>(batch), 0);
  copy_elements(cuda{}, zeros.data(), position.data(), batch);
  copy_elements(cuda{}, zeros.data(), remembered.data(), batch);
  Tensor<std::int32_t, 2, cuda> history({batch, window}), log({draws, batch});
  Workspace<cuda> workspace(device_sample_workspace_bytes<R>(batch, size));
  for (int draw = 0; draw < draws; ++draw)
    device_sample(SampleArrays<R>{.logits = there,
                                  .tokens = tokens,
                                  .position = position,
                                  .history = history.view(),
                                  .remembered = remembered.view(),
                                  .log = log.view()},
                  options, workspace);
  const auto got = to<cpu>(log);
  Index different = 0;
  for (Index row = 0; row < batch; ++row) {
    Sampler sampler(options, static_cast<std::uint64_t>(row));
    std::vector<std::int32_t> last;
    for (Index draw = 0; draw < draws; ++draw) {
      const auto from = last.size() > static_cast<std::size_t>(window) ? last.end() - window : last.begin();
      const std::int32_t want =
          sampler(logits.view().template select<0>(row), std::span<const std::int32_t>(from, last.end()));
      different += got(draw, row) != want;
      last.push_back(got(draw, row));
    }
  }
  return different;
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("the same tokens as on the CPU, any filter and vocabulary") {
    for (const Index vocab : {1, 7, 256, 1000, 50288, 70001}) {
      CAPTURE(vocab);
      auto logits = random_tensor<float>(Extents{Index{3}, vocab}, static_cast<unsigned>(vocab));
      for (float& logit : logits) logit *= 3;
      const int draws = vocab > 10000 ? 12 : 40;
      for (const SamplerOptions& options :
           {SamplerOptions{.temperature = 0}, SamplerOptions{.seed = 5}, SamplerOptions{.temperature = 0.7, .seed = 1},
            SamplerOptions{.top_k = 5, .seed = 2}, SamplerOptions{.top_p = 0.8, .seed = 3},
            SamplerOptions{.top_p = 0.0, .seed = 3}, SamplerOptions{.min_p = 0.1, .seed = 4},
            SamplerOptions{.temperature = 0, .repetition_penalty = 1.5},
            SamplerOptions{
                .temperature = 1.3, .top_k = 40, .top_p = 0.95, .min_p = 0.01, .repetition_penalty = 1.2, .seed = 9}}) {
        CAPTURE(options.top_k);
        CAPTURE(options.top_p);
        CAPTURE(options.repetition_penalty);
        CHECK(differences(logits, options, 16, draws) == 0);
      }
    }
  }

  TEST_CASE("equal logits: all that are as large as the k-th, of the dropped the first") {
    Tensor<float, 2> logits({1, 100});
    for (Index v = 0; v < 100; ++v) logits(0, v) = static_cast<float>(v % 4);
    CHECK(differences(logits, {.temperature = 0}, 0, 3) == 0);
    CHECK(differences(logits, {.top_k = 3, .seed = 1}, 0, 200) == 0);
    CHECK(differences(logits, {.top_p = 0.5, .seed = 1}, 0, 200) == 0);
    CHECK(differences(logits, {.top_p = 0.3, .min_p = 0.2, .seed = 2}, 0, 200) == 0);
  }

  TEST_CASE("the same distribution of doubles, and infinities") {
    auto logits = random_tensor<double>(Extents{2, 30}, 4);
    logits(0, 3) = -std::numeric_limits<double>::infinity();
    CHECK(differences(logits, {.seed = 7}, 0, 500) == 0);
  }

  TEST_CASE("what is no distribution gives no token") {
    Tensor<float, 2> logits({3, 5}, -std::numeric_limits<float>::infinity());
    logits(1, 4) = std::numeric_limits<float>::quiet_NaN();
    logits(2, 2) = 0;
    const auto there = to<cuda>(logits);
    Tensor<std::int32_t, 1, cuda> tokens({3});
    auto position = Tensor<std::uint64_t, 1, cuda>::uninitialized({3});
    const std::uint64_t zeros[3] = {};
    copy_elements(cuda{}, zeros, position.data(), 3);
    Workspace<cuda> workspace(device_sample_workspace_bytes<float>(3, 5));
    device_sample(SampleArrays<float>{.logits = there, .tokens = tokens, .position = position}, {}, workspace);
    const auto got = to<cpu>(tokens);
    CHECK(got(0) == sample_nothing_likely);
    CHECK(got(1) == sample_not_a_number);
    CHECK(got(2) == 2);
  }
}
