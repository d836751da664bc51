// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.cuh"

/// The backward pass of both gated norms on an NVIDIA GPU; gated_rms_norm_backward.hpp derives the formulas. A block
/// works on one group of its rows, so that the sums of the parameters stay in registers; a second launch adds them up.
namespace diffmamba::gated_rms_norm {
namespace detail {

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

template <bool Centred, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads)
    gated_norm_backward_kernel(const __grid_constant__ Inputs<T, cuda> in,
                               const __grid_constant__ View<const accumulate_t<T>, 3, cuda> mean_in,
                               const __grid_constant__ View<const accumulate_t<T>, 3, cuda> rstd_in,
                               const __grid_constant__ OutputGradients<T, cuda> upstream,
                               const __grid_constant__ GradientViews<T, cuda> gradients,
                               const __grid_constant__ LineSums<accumulate_t<T>, 2> sums, int size, int groups,
                               bool norm_before_gate) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit;
  const Index length = in.x.extent(1), rows = in.x.extent(0) * length;
  const bool several = Shape::cut(size), has_z = bool(in.z);
  const A per_channel = A(1) / static_cast<A>(size);
  const int group = static_cast<int>(blockIdx.x % static_cast<unsigned>(groups)), begin = group * size;
  const Index line = blockIdx.x / static_cast<unsigned>(groups), lines = gridDim.x / static_cast<unsigned>(groups);
  RowSums<Shape, A, Centred ? 2 : 1> over_group;
  ColumnLines<Shape, A, 2> columns(sums, line * groups * size + begin, size);
  const A* const weights = in.weight.data() + begin;

  for (Index first = line * Shape::rows; first < rows; first += lines * Shape::rows) {
    const Index row = first + Shape::group();
    const int count = row < rows ? size : 0;  // a row that is not there has no channels
    const RowPosition at(row < rows ? row : 0, length);
    const T* const x = at.of(in.x) + begin;
    const T* const z = has_z ? at.of(in.z) + begin : nullptr;
    const T* const dout = at.of(upstream.dout) + begin;
    const A rstd = rstd_in(at.batch, at.token, group), mean = Centred ? mean_in(at.batch, at.token, group) : A(0);
    // x, z and sigmoid(z); dout; normalised; dL/d(normalised).
    A value[Unit], gate[Unit], s[Unit], d[Unit], h[Unit], g[Unit];
    const auto load = [&](int c, bool add_columns) {
      const bool there = c < count;
      load_unit_if(there, x + c, value);
      load_unit_if(there, dout + c, d);
      if (has_z) load_unit_if(there, z + c, gate);
      load_unit_if(there, weights + c, g);
      A dy[Unit];
#pragma unroll
      for (int i = 0; i < Unit; ++i) {
        h[i] = value[i];
        dy[i] = d[i];
        if (has_z) {
          s[i] = sigmoid_for<T>(gate[i]);
          (norm_before_gate ? dy[i] : h[i]) *= gate[i] * s[i];
        }
        h[i] = (h[i] - mean) * rstd;
        g[i] *= dy[i];
      }
      if (!add_columns || !there) return;
      columns.add(1, c, dy);
#pragma unroll
      for (int i = 0; i < Unit; ++i) dy[i] *= h[i];
      columns.add(0, c, dy);
    };

    A means[Centred ? 2 : 1] = {};  // of g h, and of g
    for (int tile = 0; tile < Shape::tiles(size); ++tile) {
      load(Shape::channel(tile), true);
#pragma unroll
      for (int i = 0; i < Unit; ++i) {
        means[0] += g[i] * h[i];
        if constexpr (Centred) means[1] += g[i];
      }
    }
    if (!gradients.dx && !gradients.dz) continue;
    over_group(means);
    const A gh_mean = means[0] * per_channel, g_mean = Centred ? means[Centred ? 1 : 0] * per_channel : A(0);

    T* const dx = gradients.dx ? at.of(gradients.dx) + begin : nullptr;
    T* const dz = gradients.dz ? at.of(gradients.dz) + begin : nullptr;
    for (int tile = 0; tile < Shape::tiles(size); ++tile) {
      const int c = Shape::channel(tile);
      if (several) load(c, false);
      if (c >= count) continue;
      A up[Unit];  // of what the gate multiplies with: dz = up silu'(z)
      if (norm_before_gate) {
        if (dz != nullptr) {
          load_unit(weights + c, up);
#pragma unroll
          for (int i = 0; i < Unit; ++i) up[i] *= h[i];
          if (in.bias) {
            A bias[Unit];
            load_unit(in.bias.data() + begin + c, bias);
#pragma unroll
            for (int i = 0; i < Unit; ++i) up[i] += bias[i];
          }
#pragma unroll
          for (int i = 0; i < Unit; ++i) up[i] *= d[i];
        }
#pragma unroll
        for (int i = 0; i < Unit; ++i) g[i] = rstd * (g[i] - g_mean - h[i] * gh_mean);
      } else {
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          g[i] = rstd * (g[i] - g_mean - h[i] * gh_mean);
          up[i] = g[i] * value[i];
          if (has_z) g[i] *= gate[i] * s[i];
        }
      }
      if (dz != nullptr) {
#pragma unroll
        for (int i = 0; i < Unit; ++i) up[i] *= s[i] * (A(1) + gate[i] * (A(1) - s[i]));
        store_unit(dz + c, up);
      }
      if (dx != nullptr) store_unit(dx + c, g);
    }
  }
  columns.finish();
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Both gated norms. `mean` is absent in gated_rms_norm.
template <bool Centred, class T>
void launch_backward(const Inputs<T, cuda>& in, const Options& options,
                     const View<const accumulate_t<T>, 3, cuda>& mean, const View<const accumulate_t<T>, 3, cuda>& rstd,
                     const OutputGradients<T, cuda>& upstream, const GradientViews<T, cuda>& gradients,
                     Workspace<cuda>& workspace, GradientMode mode) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  if (channels == 0) return;
  const Index size = group_size(channels, options), groups = channels / size;
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  const bool aligned = all_rows_aligned(in.x, in.weight, in.z, upstream.dout, gradients.dx, gradients.dz, in.bias);
  const auto mark = workspace.mark();
  LineSums<A, 2> sums{{}, {gradients.dweight.data(), gradients.dbias.data()}};
  for (int k = 0; k < 2; ++k)
    if (sums.to[k] != nullptr) sums.lines[k] = workspace.take<A>(most_lines(rows) * channels);
  Index lines = 0;
  with_row_shape<T>(size, aligned, [&](auto shape) {
    using Shape = decltype(shape);
    lines = sum_blocks<Shape>(rows);
    if (lines == 0) return;
    // All groups share the blocks, but every group has one.
    if (lines * groups > most_sum_blocks) lines = groups < most_sum_blocks ? most_sum_blocks / groups : 1;
    gated_norm_backward_kernel<Centred, Shape, T>
        <<<static_cast<unsigned>(lines * groups), Shape::threads, 0, stream.handle>>>(
            in, mean, rstd, upstream, gradients, sums, static_cast<int>(size), static_cast<int>(groups),
            options.norm_before_gate || !in.z);
    cuda_runtime::check_launch("gated_norm_backward_kernel");
  });
  launch_line_sums(sums, lines, channels, mode);
  workspace.reset(mark);
}

}  // namespace detail

template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in) {
  const Index lines = detail::most_lines(in.x.extent(0) * in.x.extent(1));
  return 2 * Workspace<cuda>::bytes_of<accumulate_t<T>>(lines * in.x.extent(2));
}

template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  check(in, saved.options, upstream, gradients);
  require_shape("gated_rms_norm", "saved.rstd", saved.rstd.view(),
                Extents{in.x.extent(0), in.x.extent(1), group_count(in.x.extent(2), saved.options)});
  detail::launch_backward<false, T>(in, saved.options, {}, saved.rstd, upstream, gradients, workspace, mode);
}

}  // namespace diffmamba::gated_rms_norm
