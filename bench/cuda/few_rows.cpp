// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Decoding: a few rows of activations against the weights of a model, one after another and not in the cache; then the
// products of a Mamba-2 370M one after another. The bytes are those of the weights. With --moving nobody promises that
// weights are at rest.
#include <cstring>
#include <optional>

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
  std::optional<dm::cuda_runtime::WeightsAtRest> at_rest(std::in_place);
  for (int i = 1; i < argc; ++i)
    if (std::strcmp(argv[i], "--moving") == 0) at_rest.reset();
  for (const auto& [out, in] :
       {std::pair<Index, Index>{4384, 1024}, {1024, 2048}, {50288, 1024}, {10576, 2560}, {2560, 5120}})
    for (const Index rows : {1, 2, 4, 8, 9}) {
      run<dm::bfloat16>(report, rows, out, in);
      if (rows == 1 || rows == 8) run<float>(report, rows, out, in);
    }

  constexpr Index layers = 48, d_model = 1024, d_inner = 2048, projected = 4384;
  std::vector<dm::Tensor<dm::bfloat16, 2, cuda>> in_proj, out_proj;
  in_proj.push_back(dm::bench::gpu::random_tensor<dm::bfloat16>(dm::Extents{projected, d_model}, 1, 0.03));
  out_proj.push_back(dm::bench::gpu::random_tensor<dm::bfloat16>(dm::Extents{d_model, d_inner}, 2, 0.02));
  while (in_proj.size() < layers) {
    in_proj.push_back(in_proj[0]);
    out_proj.push_back(out_proj[0]);
  }
  for (const Index rows : {1, 8, 64}) {
    const double bytes = 2.0 * layers * (projected * d_model + d_model * d_inner);
    report.run("bfloat16 " + std::to_string(rows) + " x 48 layers", {.bytes = bytes}, [&] {
      auto x = dm::bench::gpu::random_tensor<dm::bfloat16>(dm::Extents{rows, d_model}, 3);
      dm::Tensor<dm::bfloat16, 2, cuda> y(dm::Extents{rows, projected});
      return dm::bench::gpu::time(1, [&](int) {
        for (std::size_t layer = 0; layer < layers; ++layer) {
          dm::linear::forward(dm::linear::Inputs<dm::bfloat16, cuda>{.x = x, .weight = in_proj[layer]}, y);
          dm::linear::forward(
              dm::linear::Inputs<dm::bfloat16, cuda>{.x = y.slice<1>(0, d_inner), .weight = out_proj[layer]}, x);
        }
      });
    });
  }
}
