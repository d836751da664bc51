// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// Lets a model that train_lm has trained write text.
//
//   generate --model runs/train_lm --prompt "ROMEO:" --max-tokens 500 --temperature 0.8 --top-p 0.95
//
// The prompt is read in one pass; after that every token is one recurrent step over the convolutions' and scans'
// states, so the thousandth token costs what the first did.

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "diffmamba/train.hpp"

namespace dm = diffmamba;

// A model's folder, or a run's: then its best model, or its newest checkpoint.
std::filesystem::path find_model(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / "config.json")) return folder;
  if (std::filesystem::exists(folder / "best" / "config.json")) return folder / "best";
  const auto checkpoint = dm::latest_checkpoint(folder);
  dm::require(checkpoint.has_value(), folder.string(), ": there is no model in this folder");
  return *checkpoint;
}

int main(int argc, char** argv) {
  std::string folder = "runs/train_lm", prompt = "\n";
  dm::GenerateOptions options{.temperature = 0.8, .max_tokens = 400};
  int threads = 0;

  CLI::App app("Writes text with a model of train_lm.", "generate");
  app.option_defaults()->take_last();
  app.add_option("--model", folder, "folder of a run or of a model");
  app.add_option("--prompt", prompt, "how the text begins");
  app.add_option("--max-tokens", options.max_tokens, "how many tokens; -1: until Ctrl-C");
  app.add_option("--temperature", options.temperature, "0: always the likeliest token");
  app.add_option("--top-k", options.top_k, "only the k likeliest tokens; 0: all");
  app.add_option("--top-p", options.top_p, "only the likeliest tokens of this total probability");
  app.add_option("--min-p", options.min_p, "only tokens at least this likely relative to the likeliest");
  app.add_option("--repetition-penalty", options.repetition_penalty,
                 "above 1: what was written lately becomes less likely");
  app.add_option("--seed", options.seed, "the same seed writes the same text");
  app.add_option("--threads", threads, "0: all processors; never changes the text");
  CLI11_PARSE(app, argc, argv);

  try {
    dm::Threads scope(threads > 0 ? threads : dm::max_threads());
    const auto path = find_model(folder);
    const auto tokenizer = dm::describe_model(path).tokenizer;
    const auto model = dm::load_model<dm::LanguageModel<dm::cpu>>(path);

    const auto tokens = tokenizer.encode(prompt, "--prompt");
    dm::require(!tokens.empty(), "--prompt is empty; a model needs something to go on");
    auto state = model.prefill(
        dm::View<const std::int32_t, 2>(tokens.data(), {dm::Index{1}, static_cast<dm::Index>(tokens.size())}));

    std::cout << prompt << std::flush;
    auto text = tokenizer.stream();  // whole characters only, whatever the tokens split
    dm::Interrupt interrupt;
    dm::Index written = 0;
    const auto begin = std::chrono::steady_clock::now();
    for (const std::int32_t token : dm::generate(model, state, options, tokens)) {
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
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
