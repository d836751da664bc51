// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Writing text with random weights in bfloat16: time of a token (its step and the draw after it are one graph) at
// several batch sizes, with states in float and where that is offered in 16 bits, and of reading a prompt. The peers
// keep 16-bit states, but for those of the differential model.
//
//   bench_gpu_decoding [--filter WORD] [--json]
#include <algorithm>
#include <chrono>

#include "diffmamba/generate/device_decoder.hpp"
#include "support/gpu_timing.hpp"
#include "support/models.hpp"

namespace dm = diffmamba;
namespace gpu = dm::bench::gpu;
using dm::Index;

namespace {

dm::Tensor<std::int32_t, 2> prompt_of(Index batch, Index length, Index vocab_size) {
  dm::Tensor<std::int32_t, 2> prompt({batch, length});
  for (Index i = 0; i < prompt.size(); ++i)
    prompt.data()[i] = static_cast<std::int32_t>(dm::Philox{7}(static_cast<std::uint64_t>(i))[0] %
                                                 static_cast<std::uint32_t>(vocab_size));
  return prompt;
}

gpu::Time decode(const gpu::Model& model, Index batch, const dm::SamplerOptions& sampler, bool shortened = false) {
  constexpr int tokens = 100;
  auto state = model.prefill(prompt_of(batch, 100, model.config().vocab_size));
  if (shortened) state.shorten();
  dm::DeviceDecoder decoder(model, state, {.sampler = sampler});
  decoder.draw();
  for (int i = 0; i < 5; ++i) decoder.advance();
  decoder.finish();
  std::vector<double> times;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < tokens; ++i) decoder.advance();
    decoder.tokens(decoder.draws() - 1);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    times.push_back(1e3 * seconds.count() / tokens);
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

/// 2.7 billion parameters, whose values are so many times the same 129 million: drawing them all would take minutes.
void large(const gpu::Report& report) {
  const std::string name = "Mamba-2 2.7B, batch 1";
  if (!report.wants(name)) return;
  dm::ModelConfig config{.d_model = 2560, .vocab_size = 50277, .layers = dm::all("mamba2", 64)};
  gpu::Model model(config);
  const auto values = gpu::random_tensor<float>(dm::Extents{model.config().padded_vocab_size() * 2560}, 1, 0.02);
  model.visit([&](std::string_view, auto& parameter) {
    parameter.copy_from(values.view().slice<0>(0, parameter.size()).reshape(parameter.extents()));
  });
  model.release_masters();
  report.line(name, decode(model, 1, {.temperature = 0}),
              {.bytes = 2 * static_cast<double>(model.parameter_count()), .peer_milliseconds = 3.65});
}

}  // namespace

int main(int argc, char** argv) {
  const gpu::Report report(argc, argv, "decoding");
  for (const auto& one : gpu::model_cases()) {
    if (one.peer_decoding.empty() || !report.wants(one.name)) continue;
    gpu::Model model(one.config());
    dm::initialize(model, dm::Philox{1});
    model.release_masters();
    const double weights = 2 * static_cast<double>(model.parameter_count());
    for (std::size_t i = 0; i < one.peer_decoding.size(); ++i) {
      const Index batch = i == 0 ? 1 : i == 1 ? 64 : 128;
      report.line(one.name + ", batch " + std::to_string(batch), decode(model, batch, {.temperature = 0}),
                  {.bytes = weights, .peer_milliseconds = one.peer_decoding[i]});
      if (batch > 1 && one.name.find("Mamba-2") != std::string::npos)
        report.line(one.name + ", batch " + std::to_string(batch) + ", 16-bit states",
                    decode(model, batch, {.temperature = 0}, true),
                    {.bytes = weights, .peer_milliseconds = one.peer_decoding[i]});
    }
    for (const Index top_k : {50, 0})
      report.line(one.name + (top_k > 0 ? ", batch 1, top_k 50, top_p 0.9" : ", batch 1, top_p 0.9"),
                  decode(model, 1, {.temperature = 0.8, .top_k = top_k, .top_p = 0.9}), {.bytes = weights});
    const auto prompt = dm::to<dm::cuda>(prompt_of(1, 2048, one.vocab_size));
    auto state = model.make_state(1);
    report.line(one.name + ", a prompt of 2048",
                gpu::time(
                    1, [&](int) { model.prefill_on_device(prompt, state); }, 20, 0.0),
                {.bytes = weights});
  }
  large(report);
}
