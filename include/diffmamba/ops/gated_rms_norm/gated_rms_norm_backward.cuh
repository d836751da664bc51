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

/// `Sums`: 1 for dweight alone, 2 for dbias too.
template <bool Centred, int Sums, class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, 2)
    gated_norm_backward_kernel(const __grid_constant__ Inputs<T, cuda> in,
                               const __grid_constant__ View<const accumulate_t<T>, 3, cuda> mean_in,
                               const __grid_constant__ View<const accumulate_t<T>, 3, cuda> rstd_in,
                               const __grid_constant__ OutputGradients<T, cuda> upstream,
                               const __grid_constant__ GradientViews<T, cuda> gradients,
                               const __grid_constant__ LineSums<accumulate_t<T>, Sums> sums, int size, int groups,
                               bool norm_before_gate) {
  using A = accumulate_t<T>;
  constexpr int Unit = Shape::Unit, Vectors = Shape::Vectors;
  const Index length = in.x.extent(1), rows = in.x.extent(0) * length;
  const bool has_z = bool(in.z);
  const A per_channel = A(1) / static_cast<A>(size);
  const int group = static_cast<int>(blockIdx.x % static_cast<unsigned>(groups)), begin = group * size;
  const Index line = blockIdx.x / static_cast<unsigned>(groups), lines = gridDim.x / static_cast<unsigned>(groups);
  RowSums<Shape, A, Centred ? 2 : 1> over_group;
  ColumnLines<Shape, A, Sums> columns(sums, line * groups * size + begin, size);
  const A* const weights = in.weight.data() + begin;

  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* free = shared;
  const RowQueue<Shape, T, stages> queue_x(free, true), queue_d(free, true), queue_z(free, has_z);
  const Index stride = lines * Shape::rows;
  const auto fetch = [&](Index row, int stage) {
    if (row < rows) {
      const RowPosition at(row, length);
      queue_x.fetch(stage, at.of(in.x) + begin, size);
      queue_d.fetch(stage, at.of(upstream.dout) + begin, size);
      if (has_z) queue_z.fetch(stage, at.of(in.z) + begin, size);
    }
    mma::commit_copies();
  };
  Index row = line * Shape::rows + Shape::group();
  for (int stage = 0; stage + 1 < stages; ++stage) fetch(row + stage * stride, stage);

  int stage = 0;
  for (Index first = line * Shape::rows; first < rows; first += stride, row += stride) {
    const int count = row < rows ? size : 0;  // a row that is not there has no channels
    const RowPosition at(row < rows ? row : 0, length);
    const T* const x = at.of(in.x) + begin;
    const T* const z = has_z ? at.of(in.z) + begin : nullptr;
    const T* const dout = at.of(upstream.dout) + begin;
    const A rstd = rstd_in(at.batch, at.token, group), mean = Centred ? mean_in(at.batch, at.token, group) : A(0);
    // What follows from x, z and dout is computed twice: that is cheaper than the registers to keep it.
    using Stored = StoredUnit<T, Unit>;
    struct Values {
      A s, h, dy;  // sigmoid(z), normalised, dL/d(output of the norm)
    };
    const auto values_at = [&](const Stored& xs, const Stored& zs, const Stored& ds, int i) {
      Values result{A(1), xs[i], ds[i]};
      if (has_z) {
        result.s = sigmoid_for<T>(zs[i]);
        (norm_before_gate ? result.dy : result.h) *= zs[i] * result.s;
      }
      result.h = (result.h - mean) * rstd;
      return result;
    };
    const auto for_units = [&](auto&& work) {
      for (int tile = 0; tile < Shape::tiles(size); ++tile)
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
          const int c = Shape::channel(tile, v);
          if (c >= count) continue;
          Stored zs;
          if (has_z) zs = queue_z.unit(stage, v, z, c);
          work(v, c, queue_x.unit(stage, v, x, c), zs, queue_d.unit(stage, v, dout, c));
        }
    };

    mma::wait_for_copies<stages - 2>();
    fetch(row + (stages - 1) * stride, stage == 0 ? stages - 1 : stage - 1);
    A means[Centred ? 2 : 1] = {};  // of g h, and of g, with g = weight dy
    for_units([&](int v, int c, const Stored& xs, const Stored& zs, const Stored& ds) {
      A weight[Unit], dy[Unit];
      load_unit(weights + c, weight);
#pragma unroll
      for (int i = 0; i < Unit; ++i) {
        const Values at_channel = values_at(xs, zs, ds, i);
        dy[i] = at_channel.dy;
        const A product = dy[i] * at_channel.h;
        means[0] += weight[i] * product;
        if constexpr (Centred) means[1] += weight[i] * dy[i];
        weight[i] = product;
      }
      columns.add(0, v, c, weight);
      if constexpr (Sums > 1) columns.add(1, v, c, dy);
    });
    over_group(means);
    const A gh_mean = means[0] * per_channel, g_mean = Centred ? means[Centred ? 1 : 0] * per_channel : A(0);

    T* const dx = gradients.dx ? at.of(gradients.dx) + begin : nullptr;
    T* const dz = gradients.dz ? at.of(gradients.dz) + begin : nullptr;
    T* const out = gradients.out ? at.of(gradients.out) + begin : nullptr;
    for_units([&](int, int c, const Stored& xs, const Stored& zs, const Stored& ds) {
      A weight[Unit], y[Unit], to_x[Unit], to_z[Unit];
      load_unit(weights + c, weight);
#pragma unroll
      for (int i = 0; i < Unit; ++i) y[i] = 0;
      if (in.bias) load_unit(in.bias.data() + begin + c, y);
#pragma unroll
      for (int i = 0; i < Unit; ++i) {
        const Values at_channel = values_at(xs, zs, ds, i);
        const A s = at_channel.s, h = at_channel.h;
        to_x[i] = rstd * (weight[i] * at_channel.dy - g_mean - h * gh_mean);
        y[i] += h * weight[i];
        if (!has_z) continue;
        const A gate = zs[i], slope = s * (A(1) + gate * (A(1) - s));  // silu'(z)
        if (norm_before_gate) {
          to_z[i] = ds[i] * y[i] * slope;
          y[i] *= gate * s;
        } else {
          to_z[i] = to_x[i] * xs[i] * slope;
          to_x[i] *= gate * s;
        }
      }
      if (dz != nullptr) store_unit(dz + c, to_z);
      if (dx != nullptr) store_unit(dx + c, to_x);
      if (out != nullptr) store_unit(out + c, y);
    });
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
  cuda_runtime::let_next_kernel_begin();
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
  const bool aligned =
      all_rows_aligned(in.x, in.weight, in.z, upstream.dout, gradients.dx, gradients.dz, in.bias, gradients.out);
  const auto mark = workspace.mark();
  LineSums<A, 2> sums{{}, {gradients.dweight.data(), gradients.dbias.data()}};
  for (int k = 0; k < 2; ++k)
    if (sums.to[k] != nullptr) sums.lines[k] = workspace.take<A>(most_lines(rows) * channels);
  auto from = in;
  auto up = upstream;
  auto target = gradients;
  auto mean_rows = mean, rstd_rows = rstd;
  flatten_rows(rows, from.x, from.z, up.dout, target.dx, target.dz, target.out, mean_rows, rstd_rows);
  Index lines = 0;
  const auto launch = [&]<int Sums>(std::integral_constant<int, Sums>, auto shape) {
    using Shape = decltype(shape);
    lines = sum_blocks<Shape>(rows, resident_sum_blocks);
    if (lines == 0) return;
    // All groups share the blocks, but every group has one.
    if (lines * groups > resident_sum_blocks) lines = groups < resident_sum_blocks ? resident_sum_blocks / groups : 1;
    LineSums<A, Sums> wanted;
    for (int k = 0; k < Sums; ++k) {
      wanted.lines[k] = sums.lines[k];
      wanted.to[k] = sums.to[k];
    }
    const int bytes = (in.z ? 3 : 2) * RowQueue<Shape, T, stages>::bytes;
    const auto kernel = gated_norm_backward_kernel<Centred, Sums, Shape, T>;
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute");
    kernel<<<static_cast<unsigned>(lines * groups), Shape::threads, static_cast<std::size_t>(bytes), stream.handle>>>(
        from, mean_rows, rstd_rows, up, target, wanted, static_cast<int>(size), static_cast<int>(groups),
        options.norm_before_gate || !in.z);
    cuda_runtime::check_launch("gated_norm_backward_kernel");
  };
  // What a model needs goes through vectors of 16 bytes; a bias, which official models do not have, does not.
  if (gradients.dbias)
    launch(std::integral_constant<int, 2>{}, RowShape<1, 256, 1, true>{});
  else
    with_row_shape<T, 4>(size, aligned, [&](auto shape) { launch(std::integral_constant<int, 1>{}, shape); });
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
