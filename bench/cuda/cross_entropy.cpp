// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The loss of a language model: logits read once, and once written where there is a gradient.
#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"
#include "support/gpu_timing.hpp"

namespace dm = diffmamba;
using dm::cuda;
using dm::Index;

namespace {

template <class T>
void run(const dm::bench::gpu::Report& report, Index rows, Index vocab_size, Index columns) {
  const std::string name =
      std::string(dm::name_of(dm::dtype_of<T>)) + " " + std::to_string(rows) + " x " + std::to_string(vocab_size) + " ";
  const double once = static_cast<double>(rows * columns) * sizeof(T);
  const int sets = dm::bench::gpu::sets_for(once);
  std::vector<dm::Tensor<T, 2, cuda>> logits;
  const auto tile = dm::bench::gpu::random_tensor<T>(dm::Extents{Index{64}, columns}, 1, 2.0);
  for (int set = 0; set < sets; ++set) {
    logits.push_back(dm::Tensor<T, 2, cuda>::uninitialized(dm::Extents{rows, columns}));
    for (Index row = 0; row < rows; row += 64)
      dm::copy(tile.view().template slice<0>(0, std::min<Index>(64, rows - row)),
               logits.back().template slice<0>(row, std::min(row + 64, rows)));
  }
  dm::Tensor<std::int32_t, 1> host(dm::Extents<1>{rows});
  for (Index i = 0; i < rows; ++i) host(i) = static_cast<std::int32_t>(i * 7919 % vocab_size);
  const auto labels = dm::to<cuda>(host);
  dm::Tensor<dm::accumulate_t<T>, 1, cuda> loss(dm::Extents<1>{1}), factor(dm::Extents<1>{1}, 1e-4f);
  dm::Workspace<cuda> workspace(dm::cross_entropy::workspace_bytes<T>(rows));
  const dm::cross_entropy::Options options{.vocab_size = vocab_size, .reduction = dm::cross_entropy::Reduction::sum};
  const auto input = [&](int set) {
    return dm::cross_entropy::Inputs<T, std::int32_t, cuda>{.logits = logits[static_cast<std::size_t>(set)],
                                                            .labels = labels};
  };
  report.run(name + "forward", {.bytes = once}, [&] {
    return dm::bench::gpu::time(sets, [&](int set) {
      dm::cross_entropy::forward(input(set), options, loss.view(), dm::GradientMode::assign, workspace);
    });
  });
  report.run(name + "forward_backward", {.bytes = 2 * once}, [&] {
    return dm::bench::gpu::time(sets, [&](int set) {
      dm::cross_entropy::forward_backward(input(set), options, logits[static_cast<std::size_t>(set)].view(),
                                          factor.view(), loss.view(), dm::GradientMode::assign, workspace);
    });
  });
}

}  // namespace

int main(int argc, char** argv) {
  const dm::bench::gpu::Report report(argc, argv, "cross_entropy");
  run<dm::bfloat16>(report, 8192, 50277, 50288);
  run<dm::bfloat16>(report, 8192, 32000, 32000);
  run<dm::bfloat16>(report, 2048, 128256, 128256);
  run<dm::bfloat16>(report, 8192, 4099, 4099);
  run<dm::bfloat16>(report, 25600, 8192, 8192);
  run<dm::bfloat16>(report, 25600, 256, 256);
  run<float>(report, 4096, 50277, 50288);
  run<float>(report, 25600, 256, 256);
}
