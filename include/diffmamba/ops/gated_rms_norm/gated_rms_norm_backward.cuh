// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>  // std::max

#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.cuh"

/// The backward pass of both gated norms on an NVIDIA GPU; gated_rms_norm_backward.hpp derives the formulas. A block
/// works on one group of its rows, so that the sums of the parameters stay in registers; a second launch adds them up.
namespace diffmamba::gated_rms_norm {
namespace detail {

/// Rows of a group of threads in shared memory: the present one and the next.
inline constexpr int stages = 2;

// CUDA kernels
// --------------------------------------------------------------------------------------------------------

/// `Sums`: 1 for dweight alone, 2 for dbias too.
template <bool Centred, int Sums, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, sum_blocks_each<Shape>)
    gated_norm_backward_kernel(const __grid_constant__ Inputs<T, cuda> in, const accumulate_t<T>* mean_in,
                               const accumulate_t<T>* rstd_in,
                               const __grid_constant__ OutputGradients<T, cuda> upstream,
                               const __grid_constant__ GradientViews<T, cuda> gradients,
                               const __grid_constant__ LineSums<accumulate_t<T>, Sums> sums, int size, int groups,
                               bool norm_before_gate) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors, Means = Centred ? 2 : 1;
  const Index length = in.x.extent(1), rows = in.x.extent(0) * length;
  const bool has_z = bool(in.z), several = Shape::cut(size);
  const A per_channel = A(1) / static_cast<A>(size);
  const int group = static_cast<int>(blockIdx.x % static_cast<unsigned>(groups)), begin = group * size;
  const Index line = blockIdx.x / static_cast<unsigned>(groups), lines = gridDim.x / static_cast<unsigned>(groups);
  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue_x(free, true), queue_d(free, true), queue_z(free, has_z);
  RowSums<Shape, A, Means> over_group;
  cuda_runtime::let_next_kernel_begin();
  cuda_runtime::wait_for_earlier_kernels();
  ColumnLines<Shape, A, Sums> columns(sums, line * groups * size + begin, size);
  const RowParameter<Shape, A> weights(in.weight.data() + begin, size);
  RowNumber<Shape, A> rstds(rstd_in + group, groups, line, lines, rows),
      means(Centred ? mean_in + group : nullptr, groups, line, lines, rows);

  const auto fetch = [&](Index row, int stage) {
    const RowPosition at(row, length);
    queue_x.fetch(stage, at.of(in.x) + begin, size);
    queue_d.fetch(stage, at.of(upstream.dout) + begin, size);
    if (has_z) queue_z.fetch(stage, at.of(in.z) + begin, size);
  };
  for_rows<Shape, stages>(line, lines, rows, fetch, [&](Index row, bool there, int stage) {
    const int count = there ? size : 0;  // a row that is not there has no channels
    const RowPosition at(there ? row : 0, length);
    const T* const x = at.of(in.x) + begin;
    const T* const z = has_z ? at.of(in.z) + begin : nullptr;
    const T* const dout = at.of(upstream.dout) + begin;
    const A rstd = rstds.next(row), mean = Centred ? means.next(row) : A(0);
    StoredUnit<T, Unit> xs[Vectors], zs[Vectors], ds[Vectors];
    A s[Vectors][Unit], h[Vectors][Unit], dy[Vectors][Unit];  // sigmoid(z), normalised, dL/d(output of the norm)
    const auto load = [&](int tile) {
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        queue_x.unit(c < count, stage, v, x, c, xs[v]);
        queue_d.unit(c < count, stage, v, dout, c, ds[v]);
        if (has_z) queue_z.unit(c < count, stage, v, z, c, zs[v]);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          s[v][i] = has_z ? sigmoid_for<T>(zs[v][i]) : A(1);
          const A gate = has_z ? zs[v][i] * s[v][i] : A(1);
          dy[v][i] = norm_before_gate ? ds[v][i] * gate : ds[v][i];
          h[v][i] = ((norm_before_gate ? xs[v][i] : xs[v][i] * gate) - mean) * rstd;
        }
      }
    };

    A sum[Means] = {};  // of g h, and of g, with g = weight dy
    for (int tile = 0; tile < Shape::tiles(size); ++tile) {
      load(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        A weight[Unit], product[Unit];
        weights.unit(c < count, v, c, weight);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          product[i] = dy[v][i] * h[v][i];
          sum[0] += weight[i] * product[i];
          if constexpr (Centred) sum[1] += weight[i] * dy[v][i];
        }
        columns.add(0, v, c, c < count, product);
        if constexpr (Sums > 1) columns.add(1, v, c, c < count, dy[v]);
      }
    }
    over_group(sum);
    const A gh_mean = sum[0] * per_channel, g_mean = Centred ? sum[Means - 1] * per_channel : A(0);

    T* const dx = gradients.dx ? at.of(gradients.dx) + begin : nullptr;
    T* const dz = gradients.dz ? at.of(gradients.dz) + begin : nullptr;
    T* const out = gradients.out ? at.of(gradients.out) + begin : nullptr;
    for (int tile = 0; tile < Shape::tiles(size); ++tile) {
      if (several) load(tile);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        const int c = Shape::channel(tile, v);
        if (c >= count) continue;
        A weight[Unit], y[Unit], to_x[Unit], to_z[Unit];
        weights.unit(true, v, c, weight);
#pragma unroll
        for (int i = 0; i < Unit; ++i) y[i] = 0;
        if (in.bias) load_unit(in.bias.data() + begin + c, y);
#pragma unroll
        for (int i = 0; i < Unit; ++i) {
          to_x[i] = rstd * (weight[i] * dy[v][i] - g_mean - h[v][i] * gh_mean);
          y[i] += h[v][i] * weight[i];
          if (!has_z) continue;
          const A gate = zs[v][i], slope = s[v][i] * (A(1) + gate * (A(1) - s[v][i]));  // silu'(z)
          if (norm_before_gate) {
            to_z[i] = ds[v][i] * y[i] * slope;
            y[i] *= gate * s[v][i];
          } else {
            to_z[i] = to_x[i] * xs[v][i] * slope;
            to_x[i] *= gate * s[v][i];
          }
        }
        if (dz != nullptr) store_unit(dz + c, to_z);
        if (dx != nullptr) store_unit(dx + c, to_x);
        if (out != nullptr) store_unit(out + c, y);
      }
    }
  });
  columns.finish(shared);
}

// Launchers
// -----------------------------------------------------------------------------------------------------------

/// Both gated norms. `mean` is absent in gated_rms_norm; it and `rstd` are dense.
template <bool Centred, class T>
void launch_backward(const Inputs<T, cuda>& in, const Options& options,
                     const View<const accumulate_t<T>, 3, cuda>& mean, const View<const accumulate_t<T>, 3, cuda>& rstd,
                     const OutputGradients<T, cuda>& upstream, const GradientViews<T, cuda>& gradients,
                     Workspace<cuda>& workspace, GradientMode mode) {
  using A = accumulate_t<T>;
  const Index channels = in.x.extent(2), rows = in.x.extent(0) * in.x.extent(1);
  if (channels == 0) return;
  const Index size = group_size(channels, options), groups = channels / size;
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const bool aligned =
      all_rows_aligned(in.x, in.weight, in.z, upstream.dout, gradients.dx, gradients.dz, in.bias, gradients.out);
  const auto mark = workspace.mark();
  LineSums<A, 2> sums{{}, {gradients.dweight.data(), gradients.dbias.data()}};
  for (int k = 0; k < 2; ++k)
    if (sums.to[k] != nullptr) sums.lines[k] = workspace.take<A>(most_lines(rows) * channels);
  auto from = in;
  auto up = upstream;
  auto target = gradients;
  flatten_rows(rows, from.x, from.z, up.dout, target.dx, target.dz, target.out);
  Index lines = 0;
  const auto launch = [&]<int Sums>(std::integral_constant<int, Sums>, auto shape) {
    using Shape = decltype(shape);
    lines = sum_blocks<Shape>(rows);
    if (lines == 0) return;
    // All groups share the blocks, but every group has one.
    constexpr Index most = most_sum_blocks<Shape>;
    if (lines * groups > most) lines = groups < most ? most / groups : 1;
    LineSums<A, Sums> wanted;
    for (int k = 0; k < Sums; ++k) {
      wanted.lines[k] = sums.lines[k];
      wanted.to[k] = sums.to[k];
    }
    const int bytes = std::max((in.z ? 3 : 2) * RowQueue<Shape, T, stages>::bytes, ColumnLines<Shape, A, Sums>::bytes);
    launch_rows("gated_norm_backward_kernel", gated_norm_backward_kernel<Centred, Sums, Shape, T>, lines * groups,
                Shape::threads, bytes, from, mean.data(), rstd.data(), up, target, wanted, static_cast<int>(size),
                static_cast<int>(groups), options.norm_before_gate || !in.z);
  };
  // What a model needs goes through vectors of 16 bytes; a bias, which official models do not have, does not.
  if (gradients.dbias)
    launch(std::integral_constant<int, 2>{}, RowShape<1, 256, 1, true>{});
  else
    with_row_shape<pack_size<T>, 1>(size, aligned,
                                    [&](auto shape) { launch(std::integral_constant<int, 1>{}, shape); });
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
