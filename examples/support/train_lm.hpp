// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "diffmamba/device/event.hpp"
#include "diffmamba/train.hpp"

/// What train_lm was told.
struct TrainOptions {
  std::string text = "data/tinyshakespeare.txt", text_mode = "bytes", out = "runs/train_lm", device = "cpu", dtype;
  std::string mixer = "diff_mamba2";
  std::vector<std::string> mixer_options;
  diffmamba::Index layers = 4, d_model = 256;
  bool untied = false, layer_norm = false, resume = false, allow_binary = false, no_tensorboard = false;
  double dropout = 0;
  int threads = 0;
  double peak_tflops = 0;
  diffmamba::TrainerOptions trainer;
};

inline diffmamba::ModelConfig model_config(const TrainOptions& o, diffmamba::Index vocab_size) {
  diffmamba::ModelConfig config{
      .d_model = o.d_model, .vocab_size = vocab_size, .layers = diffmamba::parse_layers(o.mixer, o.layers)};
  for (const auto& option : o.mixer_options) {
    const auto equals = option.find('=');
    diffmamba::require(equals != std::string::npos, "--mixer-option ", option, ": expected name=value");
    config.mixer.set(option.substr(0, equals), diffmamba::parse_option_value(option.substr(equals + 1)));
  }
  config.dropout = o.dropout;
  config.tie_embeddings = !o.untied;
  config.rms_norm = !o.layer_norm;
  return config;
}

namespace train_lm {

namespace dm = diffmamba;

/// FLOP/s of a product of 8192 x 8192 matrices of T.
template <class T>
double product_rate() {
  constexpr dm::Index size = 8192;
  dm::Tensor<T, 2> host({size, size});
  fill_uniform(host, dm::Philox{1}, -1, 1);  // a GPU multiplies numbers that are all alike faster than others
  const auto a = dm::to<dm::cuda>(host);
  dm::Tensor<T, 2, dm::cuda> c({size, size});
  const auto multiply = [&] { dm::matmul(a.view(), a.view(), c.view()); };
  multiply();
  dm::cuda_runtime::Event<> begin(dm::cuda_runtime::Timing::on), end(dm::cuda_runtime::Timing::on);
  constexpr int count = 10;
  begin.record();
  for (int i = 0; i < count; ++i) multiply();
  end.record();
  end.wait();
  return count * 2.0 * size * size * size / (1e-3 * begin.milliseconds_until(end));
}

/// Speed of the steps, without evaluations and checkpoints between them.
class Speed {
 public:
  void step() {
    const auto now = std::chrono::steady_clock::now();
    if (steps_++ > 0) seconds_.push_back(std::chrono::duration<double>(now - last_).count());
    last_ = now;
  }
  /// The median of a step's seconds; 0 if there were not enough.
  double seconds() {
    if (seconds_.empty()) return 0;
    std::nth_element(seconds_.begin(), seconds_.begin() + static_cast<std::ptrdiff_t>(seconds_.size() / 2),
                     seconds_.end());
    return seconds_[seconds_.size() / 2];
  }

 private:
  std::chrono::steady_clock::time_point last_;
  std::vector<double> seconds_;
  dm::Index steps_ = 0;
};

/// The whole program but its flags, on a device and with activations of a type. `given` goes into the run's folder.
template <dm::Device D, class T>
int run(TrainOptions& o, const dm::Json& given) {
  constexpr bool on_gpu = std::is_same_v<D, dm::cuda>;
  if constexpr (on_gpu) std::printf("device: %s\n", dm::cuda_runtime::device_name().c_str());
  dm::Threads threads(o.threads > 0 ? o.threads : dm::max_threads());

  const auto corpus = dm::load_corpus(o.text, {.mode = dm::text_mode(o.text_mode), .allow_binary = o.allow_binary});
  std::printf("text: %s, %zu bytes; %lld different tokens; train %zu, validation %zu, test %zu\n", o.text.c_str(),
              corpus.bytes, static_cast<long long>(corpus.tokenizer.vocab_size()), corpus.train.size(),
              corpus.validation.size(), corpus.test.size());

  dm::LanguageModel<D, T> model(model_config(o, corpus.tokenizer.vocab_size()));
  dm::initialize(model, dm::Philox{o.trainer.seed});
  std::printf("model: %lld layers of %s, d_model %lld: %lld parameters\n", static_cast<long long>(o.layers),
              o.mixer.c_str(), static_cast<long long>(o.d_model), static_cast<long long>(model.parameter_count()));
  double peak = 1e12 * o.peak_tflops;
  if constexpr (on_gpu)
    if (peak == 0) peak = product_rate<T>();

  o.trainer.folder = o.out;
  o.trainer.title = o.mixer;
  o.trainer.tensorboard = !o.no_tensorboard;
  Speed speed;
  const double tokens = static_cast<double>(o.trainer.batch * o.trainer.length);
  o.trainer.after_step = [&, said = false](dm::Index, const dm::StepResult&) mutable {
    speed.step();
    if (std::exchange(said, true)) return;
    const double kept = static_cast<double>(model.saved_bytes());
    std::printf("memory: forward keeps %.1f MB for backward, %.0f bytes per token", kept / 1e6, kept / tokens);
    if constexpr (on_gpu) {
      const auto memory = dm::cuda_runtime::memory_info();
      std::printf("; %.2f of %.2f GiB in use", static_cast<double>(memory.total - memory.free) / (1 << 30),
                  static_cast<double>(memory.total) / (1 << 30));
    }
    std::printf("\n");
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
  dm::write_json(std::filesystem::path(o.out) / "options.json", given);

  const auto outcome = trainer.run();
  if (const double seconds = speed.seconds(); on_gpu && seconds > 0) {
    const double per_step = tokens * static_cast<double>(o.trainer.accumulate);
    const double flop = 6 * static_cast<double>(model.parameter_count()) * per_step;
    std::printf(
        "speed: %.2f ms a step, %.0f tokens/s; 6 FLOP per parameter and token (scans not counted) are %.1f "
        "TFLOP/s, %.1f %% of %.0f TFLOP/s %s\n",
        1e3 * seconds, per_step / seconds, 1e-12 * flop / seconds, 100 * flop / seconds / peak, 1e-12 * peak,
        o.peak_tflops > 0 ? "as given" : "measured for a large product");
  }
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

/// Each in a file of its own, of the programs that are built with CUDA.
int run_on_cuda_bfloat16(TrainOptions& o, const dm::Json& given);
int run_on_cuda_float32(TrainOptions& o, const dm::Json& given);

}  // namespace train_lm
