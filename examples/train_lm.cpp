// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// Trains a language model on a text: bytes or characters, any mixers.
//
//   train_lm                                                        a Diff-Mamba-2 on Shakespeare, into runs/train_lm
//   train_lm --text book.txt --mixer alternating:diff_mamba2,mamba2 --layers 8 --out runs/book
//   train_lm --config run.json                                      {"mixer": "mamba2", "steps": 5000, "out": "runs/a"}
//   train_lm --out runs/book --resume --steps 4000                  goes on where the run stopped, bit for bit
//
// The run's folder gets checkpoints, the best model by validation loss, log.csv, TensorBoard events, and a picture of
// the loss. Ctrl-C finishes the step, saves and leaves.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "diffmamba/train.hpp"
#include "support/json_config.hpp"  // JsonConfig: --config FILE for CLI11

namespace dm = diffmamba;

struct Options {
  std::string text = "data/tinyshakespeare.txt", text_mode = "bytes", out = "runs/train_lm", device = "cpu";
  std::string mixer = "diff_mamba2";
  std::vector<std::string> mixer_options;
  dm::Index layers = 4, d_model = 256;
  bool untied = false, layer_norm = false, resume = false, allow_binary = false, no_tensorboard = false;
  double dropout = 0;
  int threads = 0;
  dm::TrainerOptions trainer;
};

// Flags, or the same names in a JSON file. What is given on the command line counts more than what the file says.
void declare(CLI::App& app, Options& o) {
  app.option_defaults()->take_last();
  app.add_option("--text", o.text, "the text to learn from");
  app.add_option("--text-mode", o.text_mode, "bytes, or characters (UTF-8)")
      ->check(CLI::IsMember({"bytes", "characters"}));
  app.add_flag("--allow-binary", o.allow_binary, "take files with zero bytes too (bytes only)");
  app.add_option("--out", o.out, "folder of the run");
  app.add_flag("--resume", o.resume, "go on from the newest checkpoint in --out, with the options it was begun with");
  app.add_option("--device", o.device, "cpu (cuda is not implemented in this version)");
  app.add_option("--threads", o.threads, "0: all processors; never changes the result");

  app.add_option("--mixer", o.mixer,
                 "a name, alternating:A,B, last_quarter:A,B or one name per layer; names: mamba, mamba2, "
                 "diff_mamba, diff_mamba2, diff_s6, diff_s6_mamba2, diff_mamba2e");
  app.add_option("--mixer-option", o.mixer_options,
                 "an option of the mixers, as d_state=64, dt_limit=0.001:0.1, "
                 "lambda_initialization=unit_variance; may be repeated")
      ->take_all();
  app.add_option("--layers", o.layers, "number of blocks");
  app.add_option("--d-model", o.d_model, "width of the model");
  app.add_option("--dropout", o.dropout, "of the embedding and of each block's output");
  app.add_flag("--untied", o.untied, "a head of its own instead of the embedding");
  app.add_flag("--layer-norm", o.layer_norm, "LayerNorm instead of RMSNorm");

  auto& t = o.trainer;
  app.add_option("--steps", t.steps, "optimizer steps");
  app.add_option("--batch", t.batch, "rows of text in a batch");
  app.add_option("--length", t.length, "tokens in a row");
  app.add_option("--accumulate", t.accumulate, "batches in a step");
  app.add_option("--lr", t.optimizer.lr, "learning rate after the warm-up");
  app.add_option("--min-lr", t.min_lr, "learning rate at the end, after half a cosine");
  app.add_option("--warmup", t.warmup, "steps of warm-up");
  app.add_option("--weight-decay", t.optimizer.weight_decay,
                 "decoupled; not on norms, biases, A_log, D, dt_bias, lambda");
  app.add_option("--beta1", t.optimizer.beta1, "of AdamW");
  app.add_option("--beta2", t.optimizer.beta2, "of AdamW");
  app.add_option("--clip", t.clip, "largest norm of the gradient; inf: no clipping");
  app.add_option("--seed", t.seed, "of weights, order of the text and dropout");
  app.add_option("--evaluate-every", t.evaluate_every, "steps between two evaluations; 0: only at the end");
  app.add_option("--evaluation-tokens", t.evaluation_tokens, "of the validation text; -1: all");
  app.add_option("--save-every", t.save_every, "steps between two checkpoints; 0: only at the end");
  app.add_flag("--no-tensorboard", o.no_tensorboard, "write no TensorBoard events");
}

dm::ModelConfig model_config(const Options& o, dm::Index vocab_size) {
  dm::ModelConfig config{.d_model = o.d_model, .vocab_size = vocab_size, .layers = dm::parse_layers(o.mixer, o.layers)};
  for (const auto& option : o.mixer_options) {
    const auto equals = option.find('=');
    dm::require(equals != std::string::npos, "--mixer-option ", option, ": expected name=value");
    config.mixer.set(option.substr(0, equals), dm::parse_option_value(option.substr(equals + 1)));
  }
  config.dropout = o.dropout;
  config.tie_embeddings = !o.untied;
  config.rms_norm = !o.layer_norm;
  return config;
}

int train(Options& o, const CLI::App& app) {
  dm::require(o.device == "cpu", "--device ", o.device, " is not implemented in this version; cpu is");
  dm::Threads threads(o.threads > 0 ? o.threads : dm::max_threads());

  const auto corpus = dm::load_corpus(o.text, {.mode = dm::text_mode(o.text_mode), .allow_binary = o.allow_binary});
  std::printf("text: %s, %zu bytes; %lld different tokens; train %zu, validation %zu, test %zu\n", o.text.c_str(),
              corpus.bytes, static_cast<long long>(corpus.tokenizer.vocab_size()), corpus.train.size(),
              corpus.validation.size(), corpus.test.size());

  dm::LanguageModel<dm::cpu> model(model_config(o, corpus.tokenizer.vocab_size()));
  dm::initialize(model, dm::Philox{o.trainer.seed});
  std::printf("model: %lld layers of %s, d_model %lld: %lld parameters\n", static_cast<long long>(o.layers),
              o.mixer.c_str(), static_cast<long long>(o.d_model), static_cast<long long>(model.parameter_count()));

  o.trainer.folder = o.out;
  o.trainer.title = o.mixer;
  o.trainer.tensorboard = !o.no_tensorboard;
  o.trainer.after_step = [&, said = false](dm::Index, const dm::StepResult&) mutable {
    if (std::exchange(said, true)) return;
    const double kept = static_cast<double>(model.saved_bytes()),
                 tokens = static_cast<double>(o.trainer.batch * o.trainer.length);
    std::printf("memory: forward keeps %.1f MB for backward, %.0f bytes per token\n", kept / 1e6, kept / tokens);
    std::fflush(stdout);
  };
  dm::Trainer trainer(model, corpus, o.trainer);
  if (o.resume) {
    trainer.resume();
    std::printf("resumed at step %lld\n", static_cast<long long>(trainer.progress().step));
  }
  std::fflush(stdout);
  trainer.check();
  dm::create_folder(o.out);
  dm::write_json(std::filesystem::path(o.out) / "options.json", JsonConfig::given(app));

  const auto outcome = trainer.run();
  if (outcome.interrupted) {
    std::printf("stopped at step %lld; train_lm --out %s --resume goes on\n", static_cast<long long>(outcome.step),
                o.out.c_str());
    return EXIT_SUCCESS;
  }
  const char* token = corpus.tokenizer.mode() == dm::TextMode::bytes ? "byte" : "character";
  if (corpus.test.size() >= 2) {
    const auto test = dm::perplexity(model, corpus.test, {.batch = o.trainer.batch, .length = o.trainer.length});
    std::printf("test: %.4f bits per %s, perplexity %.3f over %lld tokens\n", test.bits(), token, test.perplexity(),
                static_cast<long long>(test.tokens));
  }
  const auto& progress = outcome.progress;
  std::printf("best validation: %.4f bits per %s at step %lld, %s/best; %.1f seconds of training\n",
              progress.best_validation / std::log(2.0), token, static_cast<long long>(progress.best_step),
              o.out.c_str(), progress.seconds);
  if (const std::string why = trainer.draw(); why.empty())
    std::printf("picture: %s/loss.svg, %s/loss.png\n", o.out.c_str(), o.out.c_str());
  else
    std::printf("%s\n", why.c_str());
  return EXIT_SUCCESS;
}

int main(int argc, char** argv) {
  CLI::App app("Trains a language model of Mamba and Diff-Mamba mixers on a text.", "train_lm");
  Options options;
  declare(app, options);
  JsonConfig::attach(app, argc, argv);
  CLI11_PARSE(app, argc, argv);
  try {
    return train(options, app);
  } catch (const std::exception& error) {
    std::cerr << "train_lm: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
