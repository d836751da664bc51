// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The end of a training step: global norm of the gradients, clipping, AdamW with float parameters and their bfloat16
// copies. 4 bytes a parameter are read for the norm; 16 read and 14 written by AdamW.
#include "diffmamba/train/adamw.hpp"
#include "support/gpu_timing.hpp"

namespace dm = diffmamba;
using dm::Index;

int main(int argc, char** argv) {
  const dm::bench::gpu::Report report(argc, argv, "adamw");
  for (const Index size : {Index{1} << 24, Index{1} << 27, Index{368} << 20}) {
    const auto gradients = dm::bench::gpu::random_tensor<float>(dm::Extents<1>(size), 2);
    dm::Tensor<float, 1, dm::cuda> values(dm::Extents<1>(size), 0.5f);
    dm::Tensor<dm::bfloat16, 1, dm::cuda> shadows{dm::Extents<1>(size)};
    const double n = static_cast<double>(size);
    const std::string name = std::to_string(size >> 20) + "M parameters, ";
    report.run(name + "norm", {.bytes = 4 * n}, [&] {
      auto workspace = dm::Workspace<dm::cuda>(dm::device_update_workspace_bytes<float>(size, 1));
      dm::Tensor<double, 1, dm::cuda> norm({1});
      return dm::bench::gpu::time(1, [&](int) {
        dm::device_norm(dm::View<const float, 1, dm::cuda>(gradients.view()), norm.view(), workspace);
      });
    });
    report.run(name + "norm and AdamW", {.bytes = 34 * n}, [&] {
      struct Flat {
        struct Segment {
          Index offset, size;
          enum class Decay { yes, no } decay;
        };
        dm::View<float, 1, dm::cuda> v, g;
        dm::View<dm::bfloat16, 1, dm::cuda> s;
        std::vector<Segment> segments;
        auto values() const { return v; }
        auto gradients() const { return g; }
        auto shadows() const { return s; }
      };
      struct Model {
        using value_type = dm::bfloat16;
        using device_type = dm::cuda;
        Flat flat_;
        Flat& flat() { return flat_; }
      } model;
      auto copied = gradients;
      model.flat_ = {values, copied, shadows, {{0, size, Flat::Segment::Decay::yes}}};
      dm::AdamW optimizer(model, {.lr = 1e-3});
      const dm::StepScalars now = optimizer.scalars(1e-3, 1.0, 1.0);
      auto scalars = dm::Tensor<dm::StepScalars, 1, dm::cuda>::uninitialized({1});
      dm::copy_elements(dm::cuda{}, &now, scalars.data(), 1);
      auto outcome = dm::Tensor<dm::StepOutcome, 1, dm::cuda>::uninitialized({1});
      const dm::StepOutcome nothing;
      dm::copy_elements(dm::cuda{}, &nothing, outcome.data(), 1);
      return dm::bench::gpu::time(1, [&](int) {
        optimizer.launch(model, dm::View<const dm::StepScalars, 1, dm::cuda>(scalars.view()), outcome.view(), {});
      });
    });
  }
}
