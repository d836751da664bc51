// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>  // std::string
#include <vector>  // std::vector

#include "diffmamba/model/language_model.hpp"

/// The models that the benchmarks of whole models are about. A differential mixer's two paths are each half as wide, so
/// all have nearly the same number of parameters.
namespace diffmamba::bench::gpu {

using Model = LanguageModel<cuda, bfloat16, float, Mamba<bfloat16, cuda>, Mamba2<bfloat16, cuda>,
                            Differential<Mamba2<bfloat16, cuda>>>;

struct ModelCase {
  std::string name;
  Index layers, d_state, vocab_size;
  std::vector<std::string> mixers;  // in turns
  Index batch, length;
  double peer_training = 0;                // ms of a step: the peer's, recorded into a graph
  std::vector<double> peer_decoding = {};  // ms of a token at batch 1, 64, 128

  ModelConfig config() const {
    ModelConfig result{.d_model = 1024, .vocab_size = vocab_size, .layers = {}};
    for (Index layer = 0; layer < layers; ++layer)
      result.layers.push_back({mixers[static_cast<std::size_t>(layer) % mixers.size()]});
    result.mixer.set("d_state", static_cast<double>(d_state));
    if (mixers.front() != "mamba") result.mixer.set("headdim", 64.0);
    return result;
  }
  /// Floating-point operations of a training step: six per parameter and token, and three times those of the state
  /// space duality, tokens * heads * (chunk (N / heads per group + P) + 4 N P) with chunks of 128 of which the causal
  /// half is needed. The selective scan's six per token, channel and state do not run on tensor cores; they count too.
  double flop(Index parameters) const {
    const double tokens = static_cast<double>(batch * length), N = static_cast<double>(d_state), P = 64, chunk = 128;
    const double heads = 2 * 1024 / P;
    double ssd = 0;
    for (Index layer = 0; layer < layers; ++layer) {
      const std::string& mixer = mixers[static_cast<std::size_t>(layer) % mixers.size()];
      const double groups = mixer == "diff_mamba2" ? 2 : 1;
      if (mixer == "mamba")
        ssd += tokens * heads * P * 6 * N;
      else
        ssd += tokens * (chunk * (groups * N + heads * P) + 4 * heads * N * P);
    }
    return 6 * static_cast<double>(parameters) * tokens + 3 * ssd;
  }
};

inline std::vector<ModelCase> model_cases() {
  const std::string plain = "mamba2", differential = "diff_mamba2";
  return {{"12 layers Diff-Mamba-2 N 64, bytes", 12, 64, 256, {differential}, 50, 512, 91.1},
          {"12 layers Mamba-2 N 64, bytes", 12, 64, 256, {plain}, 50, 512, 54.1},
          {"Mamba-2 370M", 48, 128, 50277, {plain}, 8, 2048, 172.8, {1.34, 3.22, 5.18}},
          {"Diff-Mamba-2 N 128 370M", 48, 128, 50277, {differential}, 8, 2048, 276.9, {5.53, 8.98, 11.5}},
          {"alternating 370M", 48, 128, 50277, {plain, differential}, 8, 2048, 221.5},
          {"Mamba-1 370M", 48, 16, 50277, {"mamba"}, 8, 2048, 239.9, {1.45, 1.86, 2.25}}};
}

}  // namespace diffmamba::bench::gpu
