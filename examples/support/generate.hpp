// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>

#include "diffmamba/train.hpp"

/// What generate was told.
struct WriteOptions {
  std::string folder = "runs/train_lm", prompt = "\n", device = "cpu", dtype;
  diffmamba::GenerateOptions how{.temperature = 0.8, .max_tokens = 400, .ahead = 2};
  int threads = 0;
};

namespace generate_program {

namespace dm = diffmamba;

/// A model's folder, or a run's: then its best model, or its newest checkpoint.
inline std::filesystem::path find_model(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / "config.json")) return folder;
  if (std::filesystem::exists(folder / "best" / "config.json")) return folder / "best";
  const auto checkpoint = dm::latest_checkpoint(folder);
  dm::require(checkpoint.has_value(), folder.string(), ": there is no model in this folder");
  return *checkpoint;
}

/// The whole program but its flags, on a device and with activations of a type.
template <dm::Device D, class T>
int run(const WriteOptions& o) {
  constexpr bool on_gpu = std::is_same_v<D, dm::cuda>;
  if constexpr (on_gpu) std::fprintf(stderr, "%s\n", dm::cuda_runtime::device_name().c_str());
  dm::Threads scope(o.threads > 0 ? o.threads : dm::max_threads());
  const auto path = find_model(o.folder);
  const auto tokenizer = dm::describe_model(path).tokenizer;
  auto model = dm::load_model<dm::LanguageModel<D, T>>(path);
  if constexpr (on_gpu) model.release_masters();

  const auto tokens = tokenizer.encode(o.prompt, "--prompt");
  dm::require(!tokens.empty(), "--prompt is empty; a model needs something to go on");
  auto state = model.prefill(
      dm::View<const std::int32_t, 2>(tokens.data(), {dm::Index{1}, static_cast<dm::Index>(tokens.size())}));

  std::cout << o.prompt << std::flush;
  auto text = tokenizer.stream();  // whole characters only, whatever the tokens split
  dm::Interrupt interrupt;
  dm::Index written = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (const std::int32_t token : dm::generate(model, state, o.how, tokens)) {
    std::cout << text(token) << std::flush;
    ++written;
    if (interrupt.requested() || !std::cout) break;
  }
  std::cout << std::endl;
  dm::require(bool(std::cout), "the text cannot be written to the standard output");
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::fprintf(stderr, "%s, %lld parameters: %lld tokens, %.0f tokens/s\n", path.c_str(),
               static_cast<long long>(model.parameter_count()), static_cast<long long>(written),
               static_cast<double>(written) / seconds);
  return EXIT_SUCCESS;
}

/// Each in a file of its own, of the programs that are built with CUDA.
int run_on_cuda_bfloat16(const WriteOptions& o);
int run_on_cuda_float32(const WriteOptions& o);

}  // namespace generate_program
