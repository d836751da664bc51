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
//   train_lm --device cuda --layers 12 --d-model 1024               on a GPU, in bfloat16 with float32 parameters
//
// The run's folder gets checkpoints, the best model by validation loss, log.csv, TensorBoard events, and a picture of
// the loss. Ctrl-C finishes the step, saves and leaves.

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>

#include "support/json_config.hpp"  // JsonConfig: --config FILE for CLI11
#include "support/train_lm.hpp"     // the program behind the flags

// Flags, or the same names in a JSON file. What is given on the command line counts more than what the file says.
void declare(CLI::App& app, TrainOptions& o) {
  app.option_defaults()->take_last();
  app.add_option("--text", o.text, "the text to learn from");
  app.add_option("--text-mode", o.text_mode, "bytes, or characters (UTF-8)")
      ->check(CLI::IsMember({"bytes", "characters"}));
  app.add_flag("--allow-binary", o.allow_binary, "take files with zero bytes too (bytes only)");
  app.add_option("--out", o.out, "folder of the run");
  app.add_flag("--resume", o.resume, "go on from the newest checkpoint in --out, with the options it was begun with");
  app.add_option("--device", o.device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--dtype", o.dtype,
                 "float32, or on cuda bfloat16 with float32 parameters, which is what is taken there by default")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--peak-tflops", o.peak_tflops,
                 "the GPU's peak rate, against which its use is stated; 0: that of a large product is measured");
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

int train(TrainOptions& o, const diffmamba::Json& given) {
  if (o.device == "cpu") {
    diffmamba::require(o.dtype != "bfloat16", "--dtype bfloat16 is for --device cuda; on the CPU it is float32");
    return train_lm::run<diffmamba::cpu, float>(o, given);
  }
#if defined(DIFFMAMBA_WITH_CUDA)
  return o.dtype == "float32" ? train_lm::run_on_cuda_float32(o, given) : train_lm::run_on_cuda_bfloat16(o, given);
#else
  diffmamba::fail("--device cuda: this program was built without CUDA; configure with -DDIFFMAMBA_ENABLE_CUDA=ON");
#endif
}

int main(int argc, char** argv) {
  CLI::App app("Trains a language model of Mamba and Diff-Mamba mixers on a text.", "train_lm");
  TrainOptions options;
  declare(app, options);
  JsonConfig::attach(app, argc, argv);
  CLI11_PARSE(app, argc, argv);
  try {
    return train(options, JsonConfig::given(app));
  } catch (const std::exception& error) {
    std::cerr << "train_lm: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
