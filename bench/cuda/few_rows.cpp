// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Decoding: a few rows of activations against the weights of a 370M model, one after another and not in the cache. The
// bytes are those of the weight.
#include "diffmamba/ops/linear/linear_forward.hpp"
#include "support/gpu_timing.hpp"

namespace dm = diffmamba;
using dm::cuda;
using dm::Index;

namespace {

template <class T>
void run(const dm::bench::gpu::Report& report, Index rows, Index out, Index in) {
  const std::string name = std::string(dm::name_of(dm::dtype_of<T>)) + " " + std::to_string(rows) + " x (" +
                           std::to_string(out) + " x " + std::to_string(in) + ")";
  const double bytes = static_cast<double>(out * in) * sizeof(T);
  report.run(name, {.bytes = bytes}, [&] {
    const int sets = dm::bench::gpu::sets_for(bytes);
    std::vector<dm::Tensor<T, 2, cuda>> weights;
    weights.push_back(dm::bench::gpu::random_tensor<T>(dm::Extents{out, in}, 1));
    while (static_cast<int>(weights.size()) < sets) weights.push_back(weights[0]);
    const auto x = dm::bench::gpu::random_tensor<T>(dm::Extents{rows, in}, 2);
    dm::Tensor<T, 2, cuda> y(dm::Extents{rows, out});
    return dm::bench::gpu::time(sets, [&](int set) {
      dm::linear::forward(dm::linear::Inputs<T, cuda>{.x = x, .weight = weights[static_cast<std::size_t>(set)]}, y);
    });
  });
}

}  // namespace

int main(int argc, char** argv) {
  const dm::bench::gpu::Report report(argc, argv, "few_rows");
  for (const auto& [out, in] :
       {std::pair<Index, Index>{4384, 1024}, {1024, 2048}, {50288, 1024}, {10576, 2560}, {2560, 5120}})
    for (const Index rows : {1, 2, 4, 8, 16, 17, 64}) {
      run<dm::bfloat16>(report, rows, out, in);
      if (rows == 1 || rows == 8) run<float>(report, rows, out, in);
    }
}
