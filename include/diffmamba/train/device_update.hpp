// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>  // std::size_t
#include <cstdint>  // std::int32_t, std::uint64_t

#include "diffmamba/device/workspace.hpp"
#include "diffmamba/tensor/view.hpp"
#include "diffmamba/train/adamw_element.hpp"

/// The end of a training step on a GPU: the global norm of the gradients, the factor that clips them, and AdamW over
/// one flat array, without the host ever knowing a number of it. So it can be recorded into a graph: what changes from
/// step to step, the learning rate and the number of the step, lies in device memory too.
///
///   norm = sqrt(sum g^2) in double, partial sums of fixed tiles added in a fixed order
///   scale = gradient_scale min(1, clip / (gradient_scale norm + 1e-6))        then AdamW as train/adamw.hpp has it
///
/// A loss or norm that is not finite marks the outcome as bad, and a bad outcome stays bad and lets nothing be updated
/// until the host clears it: parameters and averages stay as they were.
///
/// Memory is touched once: 16 bytes read and 12 written per parameter (float), 2 for its 16-bit shadow, and 4 read for
/// the norm. Defined in train/device_update.cuh.
namespace diffmamba {

/// What the host says before a step; copied to the device.
struct StepScalars {
  double lr = 0;
  double correction1 = 1, correction2 = 1;  // 1 - beta^t
  double gradient_scale = 1;                // of the gradients as they are summed up
  double clip = 0;                          // of the norm of the scaled gradients; infinity: never
};

/// What a step found out; on the device, copied back after it.
struct StepOutcome {
  double loss = 0;           // mean of the losses given
  double gradient_norm = 0;  // of the scaled gradients, before clipping
  std::int32_t bad = 0;      // not 0: something was not finite, in this or an earlier step
};

/// A tile of the flat array, whole in one group.
struct UpdateTile {
  Index begin = 0;
  std::int32_t count = 0;
  std::int32_t kind = 0;  // which of the kinds' constants
};
/// The different factors that groups have.
struct UpdateKind {
  double lr_scale = 1, decay_scale = 1;
};
inline constexpr Index update_tile = 8192;

/// Everything is contiguous and on the GPU. T is the type of the shadows, the rounded copies that matrix products read.
template <class R, class T = R>
struct UpdateArrays {
  RequiredView<R, 1, cuda> parameters;
  RequiredView<const R, 1, cuda> gradients;
  RequiredView<R, 1, cuda> exp_avg, exp_avg_sq;
  View<T, 1, cuda> shadows = {};  // none if absent
  RequiredView<const UpdateTile, 1, cuda> tiles;
  RequiredView<const UpdateKind, 1, cuda> kinds;
  RequiredView<const StepScalars, 1, cuda> scalars;  // (1)
  RequiredView<StepOutcome, 1, cuda> outcome;        // (1)
  View<const R, 1, cuda> losses = {};                // of the batches of the step; none if absent
};

/// Whether the norm is measured, which costs a pass over the gradients; else nothing is clipped and it is 0.
enum class MeasureNorm { no, yes };

template <class R>
std::size_t device_update_workspace_bytes(Index size, Index kinds) {
  using Space = Workspace<cuda>;
  return Space::bytes_of<double>((size + update_tile - 1) / update_tile) +
         Space::bytes_of<detail::AdamWConstants<R>>(kinds);
}

template <class R, class T>
void device_update(const UpdateArrays<R, T>& arrays, const AdamWOptions& options, MeasureNorm measure,
                   Workspace<cuda>& workspace);

/// result(0) = sqrt(sum x^2), in double, in a fixed order.
template <class R>
void device_norm(const View<const R, 1, cuda>& x, const View<double, 1, cuda>& result, Workspace<cuda>& workspace);

}  // namespace diffmamba
