// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The embedding and its gradient (float, added: rows of dout read, rows of dweight that occur read and written), and
// dropout.
#include "diffmamba/ops/dropout/dropout_forward.hpp"
#include "diffmamba/ops/embedding/embedding_backward.hpp"
#include "diffmamba/ops/embedding/embedding_forward.hpp"
#include "support/gpu_timing.hpp"

namespace dm = diffmamba;
using dm::bfloat16;
using dm::cuda;
using dm::Index;

int main(int argc, char** argv) {
  const dm::bench::gpu::Report report(argc, argv, "embedding");
  constexpr Index d_model = 1024;
  for (const auto& [batch, length, vocab_size] :
       {std::tuple<Index, Index, Index>{8, 2048, 50288}, {50, 512, 256}, {8, 2048, 1}}) {
    const Index count = batch * length;
    dm::Tensor<std::int32_t, 2> host(dm::Extents{batch, length});
    std::vector<char> seen(static_cast<std::size_t>(vocab_size));
    for (Index i = 0; i < count; ++i) {
      const dm::RandomWords words = dm::Philox{3}(static_cast<std::uint64_t>(i));
      // Frequencies as in text: some tokens often, most seldom.
      const double u = dm::to_uniform(words[0]);
      const auto token = static_cast<Index>(static_cast<double>(vocab_size) * u * u * u);
      host.data()[i] = static_cast<std::int32_t>(token);
      seen[static_cast<std::size_t>(token)] = 1;
    }
    const double rows = static_cast<double>(std::count(seen.begin(), seen.end(), 1));
    const auto tokens = dm::to<cuda>(host);
    const auto weight = dm::bench::gpu::random_tensor<bfloat16>(dm::Extents{vocab_size, d_model}, 1);
    dm::Tensor<float, 2, cuda> dweight(weight.extents());
    const double n = static_cast<double>(count) * static_cast<double>(d_model);
    const int sets = dm::bench::gpu::sets_for(2 * n);
    std::vector<dm::Tensor<bfloat16, 3, cuda>> out;
    std::vector<dm::Tensor<float, 3, cuda>> dout;
    for (int set = 0; set < sets; ++set) {
      out.push_back(dm::Tensor<bfloat16, 3, cuda>(dm::Extents{batch, length, d_model}));
      if (set == 0)
        dout.push_back(dm::bench::gpu::random_tensor<float>(dm::Extents{batch, length, d_model}, 2));
      else
        dout.push_back(dout[0]);
    }
    const dm::embedding::Inputs<bfloat16, std::int32_t, cuda> in{.tokens = tokens, .weight = weight};
    const std::string name =
        std::to_string(batch) + " x " + std::to_string(length) + ", vocabulary " + std::to_string(vocab_size) + " ";
    const double row_bytes = rows * static_cast<double>(d_model);
    report.run(name + "forward", {.bytes = 2 * n + 2 * row_bytes}, [&] {
      return dm::bench::gpu::time(
          sets, [&](int set) { dm::embedding::forward(in, out[static_cast<std::size_t>(set)].view()); });
    });
    report.run(name + "backward", {.bytes = 4 * n + 8 * row_bytes}, [&] {
      return dm::bench::gpu::time(sets, [&](int set) {
        dm::embedding::backward(in, std::as_const(dout[static_cast<std::size_t>(set)]).view(), dweight.view(),
                                dm::GradientMode::add);
      });
    });
    if (vocab_size == 1) continue;
    report.run(name + "dropout", {.bytes = 4 * n}, [&] {
      return dm::bench::gpu::time(sets, [&](int set) {
        auto& x = out[static_cast<std::size_t>(set)];
        dm::dropout::forward(std::as_const(x).view(), {.p = 0.1, .random = dm::Philox{1}}, x.view());
      });
    });
  }
}
