// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_backward_general.cuh"
#include "diffmamba/ops/ssd/ssd_backward_hopper.cuh"
#include "diffmamba/ops/ssd/ssd_backward_states.cuh"
#include "diffmamba/ops/ssd/ssd_backward_tokens.cuh"
#include "diffmamba/ops/ssd/ssd_backward_walk.cuh"
#include "diffmamba/tensor/tensor_map.cuh"

/// SSD backward on an NVIDIA GPU; the formulas and their names are those at the head of ssd_backward.hpp.
///
/// The tensor-core path (bfloat16 and float, headdim 64, d_state 64 or 128, no gate, D per head or none) takes chunks
/// of 128 tokens. Nothing was saved by forward:
///
///   1 decays   dt as the recurrence uses it and its running sums, in powers of two
///   2 walk     S before and dS' after every chunk, in the type of x, from a float state in registers; blocks walk
///              through heads of sequences, forwards for S and backwards for dS'. Where those are too few, segments of
///              them: first what each segment adds, then what each begins with, then the walk itself
///   3 states   a block owns a chunk and some heads of a group, and adds up over the heads the parts of dB and dC that
///              go through dS' and S, in float registers; also o and w
///   4 tokens   the same blocks again: G = C B^T once, then for each head dM = dY U^T, dx, the sums for da, and dt's
///              gradient; dG stays in float registers over the heads and gives the rest of dB and dC
///   5 sums     over the parts of a group, where it was split, and of the parameters over chunks and batch
///
/// For bfloat16 on Hopper 2 and 4 are the kernels of ssd_backward_hopper.cuh and 3 has its tiles brought by the copy
/// engine, if that can walk over x, dout, B and C (for 4, dx too); else they are those of ssd_backward_walk.cuh,
/// ssd_backward_states.cuh and ssd_backward_tokens.cuh, which any GPU from sm_80 on can run.
///
/// x, dy and dS' are read twice (x and dy in 2 too), S once, dx is written once. dx may be the memory of dout: only 4
/// writes it, each block where it alone has read. Beyond the operands it takes 4 headdim d_state / 128 bytes (8 with
/// float) per token and head for the states, and little else.
///
/// Accuracy: with bfloat16 operands of products are rounded to 16 bits (the states, M, dG, and x and dy, or B and C,
/// where decays are multiplied into them), all sums are float; with float everything is float, and exponents are as
/// exact. E = dM M is never rounded, its diagonal never enters da, and dD is the trace of dM.
namespace diffmamba::ssd {
namespace detail {

// CUDA kernels
// ---------------------------------------------------------------------------------------------------------

/// Adds up what the slices of a group gave; grid.y is 0 for dB and 1 for dC. A thread has 4 columns.
template <class T>
__global__ void __launch_bounds__(256) ssd_join_slices_kernel(DeviceGradients<T> to, TensorMemory<T> memory,
                                                              Index batches, Index length, int groups, int N) {
  const Index row = (Index{blockIdx.x} * 256 + threadIdx.x) / (N / 4), rows = batches * length * groups;
  const int column = static_cast<int>((Index{blockIdx.x} * 256 + threadIdx.x) % (N / 4)) * 4;
  T* const target = blockIdx.y == 0 ? to.dB : to.dC;
  if (row >= rows || target == nullptr) return;
  const float* from = (blockIdx.y == 0 ? memory.dB : memory.dC) + row * N + column;
  float4 sum = *reinterpret_cast<const float4*>(from);
  for (int slice = 1; slice < memory.slices.count; ++slice) {
    const float4 part = *reinterpret_cast<const float4*>(from + slice * rows * N);
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  const Index group = row % groups, token = row / groups % length, batch = row / groups / length;
  T* const place = blockIdx.y == 0 ? target + batch * to.dB_batch + token * to.dB_token + group * to.dB_group + column
                                   : target + batch * to.dC_batch + token * to.dC_token + group * to.dC_group + column;
  const bool aligned = blockIdx.y == 0 ? memory.aligned.dB : memory.aligned.dC;
  store_pair(place, mma::pack<T>(sum.x, sum.y), aligned);
  store_pair(place + 2, mma::pack<T>(sum.z, sum.w), aligned);
}

// Launchers
// ------------------------------------------------------------------------------------------------------------

inline int processors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}

/// Segments of the walk, by what the busiest multiprocessor sees, in chunks: two blocks of two heads share one; with
/// segments most work is done twice, and there are two more launches.
inline WalkSegments cut_walk(const Sizes& s) {
  WalkSegments best;
  const Index chunks = (s.length + backward_tokens - 1) / backward_tokens, width = 2 * processors();
  const Index walks = 2 * s.batch * s.ngroups * ((s.heads_per_group() + walk_heads - 1) / walk_heads);
  double least = 0;
  for (Index count = 1; count <= 64 && (count == 1 || count <= chunks / 4); ++count) {
    const Index each = (chunks + count - 1) / count;
    if (count > 1 && (chunks + each - 1) / each != count) continue;
    const double waves = static_cast<double>((walks * count + width - 1) / width);
    const double cost = waves * static_cast<double>(each) * (count > 1 ? 1.8 : 1.0) +
                        (count > 1 ? 8.0 + static_cast<double>(count) : 0.0);
    if (count > 1 && cost >= least) continue;
    least = cost;
    best.count = static_cast<int>(count);
    best.chunks = static_cast<int>(each);
  }
  return best;
}

/// Slices of a group: the fewest whose blocks leave the last wave on the GPU well filled. A block's own work counts as
/// two heads, and joining slices as a third of one for each.
inline HeadSlices cut_heads(const Sizes& s) {
  const Index blocks = s.batch * ((s.length + backward_tokens - 1) / backward_tokens) * s.ngroups;
  const Index all = s.heads_per_group(), width = processors();
  HeadSlices best;
  double lowest = 0;
  for (Index count = 1; count <= all && count <= 32; ++count) {
    const Index heads = (all + count - 1) / count;
    if ((all + heads - 1) / heads != count) continue;
    const Index waves = (blocks * count + width - 1) / width;
    const double cost = static_cast<double>(waves) * (static_cast<double>(heads) + 2.0 + (count > 1 ? 1.0 : 0.0));
    if (count > 1 && cost >= lowest) continue;
    lowest = cost;
    best = {static_cast<int>(count), static_cast<int>(heads)};
  }
  return best;
}

/// Cuts the tensor-core path's memory from a workspace, or (null) only counts its bytes.
template <class T>
TensorMemory<T> tensor_memory(const Sizes& s, Workspace<cuda>* workspace, std::size_t* bytes) {
  TensorMemory<T> m;
  const auto take = [&]<class Element>(Element*& place, Index count) {
    if (bytes != nullptr) *bytes += Workspace<cuda>::bytes_of<Element>(count);
    if (workspace != nullptr) place = workspace->template take<Element>(count);
  };
  const Index chunks = (s.length + backward_tokens - 1) / backward_tokens, places = s.batch * chunks * s.nheads;
  const Index state = s.d_state * s.headdim;
  m.chunks = static_cast<int>(chunks);
  m.segments = cut_walk(s);
  m.slices = cut_heads(s);
  take(m.steps, places * backward_tokens);
  take(m.sums, places * backward_tokens);
  if (sizeof(T) == 2) {  // read by Hopper's kernels
    take(m.to_end, places * backward_tokens);
    take(m.start, places * backward_tokens);
  }
  take(m.from_start, places * backward_tokens);
  take(m.through, places);
  take(m.dA, places);
  take(m.ddt_bias, places);
  take(m.dD, places);
  take(m.states, places * state);
  take(m.dstates, places * state);
  take(m.dB, m.slices.count * s.batch * s.length * s.ngroups * s.d_state);
  take(m.dC, m.slices.count * s.batch * s.length * s.ngroups * s.d_state);
  if (m.segments.count > 1) {
    const Index slots = 2 * s.batch * s.nheads * m.segments.count;
    take(m.segments.states, slots * state);
    take(m.segments.decays, slots);
  }
  return m;
}

/// Whether the tensor-core path takes a call: sizes and options say so and the GPU's shared memory, not the operands'.
template <class T>
bool tensor_cores_suit(const Inputs<T, cuda>& in) {
  const Sizes s = sizes(in);
  if constexpr (!std::is_same_v<T, double>) {
    const int bytes = s.d_state == 64 ? tokens_kernel_bytes<T, 64> : tokens_kernel_bytes<T, 128>;
    if (bytes > device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return false;
  }
  return !std::is_same_v<T, double> && s.batch > 0 && s.length > 0 && s.nheads > 0 && s.headdim == 64 &&
         (s.d_state == 64 || s.d_state == 128) && !in.z && !in.D_per_channel;
}
template <class T>
AlignedRows aligned_rows(const Inputs<T, cuda>& in, const OutputGradients<T, cuda>& upstream,
                         const GradientViews<T, cuda>& to) {
  const auto aligned = [](const View<const T, 4, cuda>& view) {
    bool good = reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
    for (int axis = 0; axis < 3; ++axis)
      good = good && (view.extent(axis) == 1 || view.stride(axis) % Index{16 / sizeof(T)} == 0);
    return good;
  };
  return {.x = aligned(in.x),
          .dout = aligned(upstream.dout),
          .B = aligned(in.B),
          .C = aligned(in.C),
          .dx = aligned(to.dx),
          .dB = aligned(to.dB),
          .dC = aligned(to.dC)};
}

/// Whether the kernels for Hopper have a body for the current stream's GPU and the copy engine can walk over the
/// operands.
template <class T, int N>
bool hopper_takes_backward(const Inputs<T, cuda>& in, const OutputGradients<T, cuda>& upstream) {
  if (!hopper::can_map(View<const T, 4, cuda>(in.x)) || !hopper::can_map(View<const T, 4, cuda>(in.B)) ||
      !hopper::can_map(View<const T, 4, cuda>(in.C)) || !hopper::can_map(upstream.dout))
    return false;
  const Sizes s = sizes(in);
  if (s.batch * (s.length + backward_tokens) / backward_tokens * s.nheads * N >= (Index{1} << 31)) return false;
  return hopper::has_body(ssd_hopper_walk_kernel<T, N, true>);
}

template <class T, int N>
void launch_tensor_backward(const Inputs<T, cuda>& views, const OutputGradients<T, cuda>& upstream_views,
                            const View<T, 4, cuda>& dx, const DeviceInputs<T>& in, const DeviceUpstream<T>& upstream,
                            const DeviceGradients<T>& to, const AlignedRows& aligned, Workspace<cuda>& workspace) {
  const Sizes s = sizes(views);
  const auto stream = cuda_runtime::current_stream().handle;
  TensorMemory<T> memory = tensor_memory<T>(s, &workspace, nullptr);
  memory.aligned = aligned;
  const auto launch = [&](const char* name, auto kernel, dim3 grid, int threads, int bytes, auto... arguments) {
    cuda_runtime::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "cudaFuncSetAttribute");
    kernel<<<grid, static_cast<unsigned>(threads), static_cast<std::size_t>(bytes), stream>>>(arguments...);
    cuda_runtime::check_launch(name);
  };
  ssd_chunk_decays_kernel<T, backward_tokens, decay_sum_t<T>>
      <<<dim3(grid_of(s.batch * memory.chunks), static_cast<unsigned>((s.nheads + 7) / 8)), 256, 0, stream>>>(
          in, memory, 1.4426950408889634);
  cuda_runtime::check_launch("ssd_chunk_decays_kernel");

  bool on_hopper = false;
  BackwardMaps maps = {};
  if constexpr (sizeof(T) == 2) {
    on_hopper = hopper_takes_backward<T, N>(views, upstream_views);
    const Extents<4> rows{1, s.batch * memory.chunks * s.nheads * N, 1, 64};
    if (on_hopper)
      maps = {hopper::tensor_map(View<const T, 4, cuda>(views.x), 64),
              hopper::tensor_map(upstream_views.dout, 64),
              hopper::tensor_map(View<const T, 4, cuda>(views.B), 64),
              hopper::tensor_map(View<const T, 4, cuda>(views.C), 64),
              hopper::tensor_map(View<T, 4, cuda>(memory.states, rows), 64),
              hopper::tensor_map(View<T, 4, cuda>(memory.dstates, rows), 64),
              {}};
  }
  const auto walk = [&]<bool Emit>(std::bool_constant<Emit>, const char* name) {
    if constexpr (sizeof(T) == 2)
      if (on_hopper) {
        const Index pairs = s.ngroups * ((s.heads_per_group() + walk_heads - 1) / walk_heads);
        return launch(name, ssd_hopper_walk_kernel<T, N, Emit>,
                      dim3(grid_of(s.batch * pairs * memory.segments.count), 2), walk_heads * 128, WalkMemory<N>::bytes,
                      in, upstream, to, memory, maps);
      }
    launch(name, ssd_walk_kernel<T, N, Emit>, dim3(grid_of(s.batch * s.nheads * memory.segments.count), 2), 128,
           walk_kernel_bytes<T, N>, in, upstream, to, memory);
  };
  if (memory.segments.count > 1) {
    walk(std::false_type(), "ssd_walk_kernel (segments)");
    ssd_walk_starts_kernel<T, N>
        <<<dim3(grid_of(s.batch * s.nheads), 2, N / 4), 256, 0, stream>>>(in, upstream, memory.segments);
    cuda_runtime::check_launch("ssd_walk_starts_kernel");
  }
  walk(std::true_type(), "ssd_walk_kernel");

  const unsigned blocks = grid_of(s.batch * memory.chunks * s.ngroups * memory.slices.count);
  const auto the_rest = [&]<bool Hopper>(std::bool_constant<Hopper>) {
    launch("ssd_backward_states_kernel", ssd_backward_states_kernel<T, N, Hopper>, blocks, 256,
           states_kernel_bytes<T, N, Hopper>, in, upstream, memory, s.batch, maps);
    if constexpr (Hopper)
      if (to.dx == nullptr || hopper::can_map(dx)) {
        if (to.dx != nullptr) maps.dx = hopper::tensor_map(dx, 16);
        return launch("ssd_hopper_tokens_kernel", ssd_hopper_tokens_kernel<T, N>, blocks, 512, TokensMemory<N>::bytes,
                      in, to, memory, s.batch, maps);
      }
    launch("ssd_backward_tokens_kernel", ssd_backward_tokens_kernel<T, N>, blocks, 256, tokens_kernel_bytes<T, N>, in,
           upstream, to, memory, s.batch);
  };
  if constexpr (sizeof(T) == 2)
    on_hopper ? the_rest(std::true_type()) : the_rest(std::false_type());
  else
    the_rest(std::false_type());
  if (memory.slices.count > 1 && (to.dB != nullptr || to.dC != nullptr)) {
    const Index threads = s.batch * s.length * s.ngroups * (N / 4);
    ssd_join_slices_kernel<<<dim3(grid_of((threads + 255) / 256), 2), 256, 0, stream>>>(to, memory, s.batch, s.length,
                                                                                        static_cast<int>(s.ngroups), N);
    cuda_runtime::check_launch("ssd_join_slices_kernel");
  }
  ssd_parameter_sums_kernel<<<grid_of(s.nheads), 256, 0, stream>>>(
      to, static_cast<int>(s.nheads), s.batch * memory.chunks, ChunkMemory<float, decay_sum_t<T>>(memory));
  cuda_runtime::check_launch("ssd_parameter_sums_kernel");
}

}  // namespace detail

/// Bytes of workspace that backward takes.
template <class T>
std::size_t workspace_bytes(const Inputs<T, cuda>& in, const Saved<T, cuda>&) {
  std::size_t bytes = 0;
  if constexpr (!std::is_same_v<T, double>) {
    const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
    if (detail::tensor_cores_suit(in)) {
      detail::tensor_memory<T>(sizes(in), nullptr, &bytes);
      return bytes;
    }
  }
  detail::general_memory<accumulate_t<T>>(sizes(in), nullptr, &bytes);
  return bytes;
}

/// Writes the gradients whose views are given, on the current stream, and never allocates. Throws Error.
template <class T>
void backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode) {
  check(in, saved, upstream, gradients);
  const Sizes s = sizes(in);
  const cuda_runtime::DeviceScope scope(cuda_runtime::current_stream().device);
  const auto mark = workspace.mark();
  const detail::DeviceInputs<T> inputs(in, saved.options);
  const detail::DeviceUpstream<T> from(upstream);
  const detail::DeviceGradients<T> to(gradients, mode);
  if (detail::tensor_cores_suit(in)) {
    if constexpr (!std::is_same_v<T, double>) {
      const detail::AlignedRows aligned = detail::aligned_rows<T>(in, upstream, gradients);
      if (s.d_state == 64)
        detail::launch_tensor_backward<T, 64>(in, upstream, gradients.dx, inputs, from, to, aligned, workspace);
      else
        detail::launch_tensor_backward<T, 128>(in, upstream, gradients.dx, inputs, from, to, aligned, workspace);
    }
  } else {
    detail::launch_general_backward(inputs, from, to, s, workspace);
  }
  workspace.reset(mark);
}

}  // namespace diffmamba::ssd
