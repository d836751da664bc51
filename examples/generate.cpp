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
#include <cstdlib>
#include <iostream>

#include "support/generate.hpp"  // the program behind the flags

int write(const WriteOptions& o) {
  if (o.device == "cpu") {
    diffmamba::require(o.dtype != "bfloat16", "--dtype bfloat16 is for --device cuda; on the CPU it is float32");
    return generate_program::run<diffmamba::cpu, float>(o);
  }
#if defined(DIFFMAMBA_WITH_CUDA)
  return o.dtype == "float32" ? generate_program::run_on_cuda_float32(o) : generate_program::run_on_cuda_bfloat16(o);
#else
  diffmamba::fail("--device cuda: this program was built without CUDA; configure with -DDIFFMAMBA_ENABLE_CUDA=ON");
#endif
}

int main(int argc, char** argv) {
  WriteOptions o;
  CLI::App app("Writes text with a model of train_lm.", "generate");
  app.option_defaults()->take_last();
  app.add_option("--model", o.folder, "folder of a run or of a model");
  app.add_option("--prompt", o.prompt, "how the text begins");
  app.add_option("--max-tokens", o.how.max_tokens, "how many tokens; -1: until Ctrl-C");
  app.add_option("--temperature", o.how.temperature, "0: always the likeliest token");
  app.add_option("--top-k", o.how.top_k, "only the k likeliest tokens; 0: all");
  app.add_option("--top-p", o.how.top_p, "only the likeliest tokens of this total probability");
  app.add_option("--min-p", o.how.min_p, "only tokens at least this likely relative to the likeliest");
  app.add_option("--repetition-penalty", o.how.repetition_penalty,
                 "above 1: what was written lately becomes less likely");
  app.add_option("--seed", o.how.seed, "the same seed writes the same text");
  app.add_option("--threads", o.threads, "0: all processors; never changes the text");
  app.add_option("--device", o.device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--dtype", o.dtype, "float32, or on cuda bfloat16, which is what is taken there by default")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  CLI11_PARSE(app, argc, argv);

  try {
    return write(o);
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
