// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::is_same_v

#include "diffmamba/ops/contract.hpp"  // require_operand
#include "diffmamba/tensor/takes_packs.hpp"

/// A few rows through a weight, with what stands before and behind that product while decoding, in one pass:
///
///   h   = before.scale * x / sqrt(mean(x^2) + before.eps) * before.weight     (a norm that is still due; or h = x)
///   r   = h + residual                                                         (float; without a residual r = h)
///   out = (r / sqrt(mean(r^2) + norm.eps) * norm.weight) weight^T + bias       (means over each group of channels)
///
/// and in columns [first, first + channels) of `out` one step of a causal convolution, as causal_conv1d::step,
///
///   out_c <- silu(conv_bias_c + sum_w conv_weight_{c,w} input_w)               (out_c the newest input of channel c)
///
/// after which conv_state has seen it. The same as rms_norm, linear and causal_conv1d one after another, up to
/// rounding: h, r and what enters the convolution stay in float, the normalised row is rounded before its division by
/// the root.
///
/// On a GPU, in bfloat16, for what `takes` says. There is no CPU form: nothing would be saved there.
namespace diffmamba::normed_linear {

/// RMSNorm; absent without a weight.
template <class T, Device DeviceType = cpu>
struct Norm {
  View<const accumulate_t<T>, 1, DeviceType> weight = {};  // (channels)
  double eps = 1e-5;
  double scale = 1.0;
};

/// The rows, before their product.
template <class T, Device DeviceType = cpu>
struct Source {
  RequiredView<const T, 2, DeviceType> x;                    // (rows, channels)
  Norm<T, DeviceType> before = {};                           // of x
  View<const accumulate_t<T>, 2, DeviceType> residual = {};  // (rows, channels)
  View<accumulate_t<T>, 2, DeviceType> residual_out = {};    // (rows, channels): takes r; not the memory of residual
  Norm<T, DeviceType> norm = {};                             // of r; must be there
  Index group_size = 0;                                      // channels of a group; 0: all are one
};

/// A step of a convolution of some columns; absent without a weight.
template <class T, Device DeviceType = cpu>
struct Convolution {
  Index first = 0;                                         // its first column
  View<const accumulate_t<T>, 2, DeviceType> weight = {};  // (channels, width)
  View<const accumulate_t<T>, 1, DeviceType> bias = {};    // (channels)
  View<accumulate_t<T>, 3, DeviceType> state = {};         // (rows, channels, size >= width - 1), newest last; shifted
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  Source<T, DeviceType> source;
  RequiredView<const T, 2, DeviceType> weight;           // (out, channels)
  View<const accumulate_t<T>, 1, DeviceType> bias = {};  // (out)
  Convolution<T, DeviceType> convolution = {};
};

/// Throws Error, naming the argument and both shapes.
template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const View<T, 2, DeviceType>& out) {
  constexpr const char* op = "normed_linear";
  const auto& s = in.source;
  const Index rows = s.x.extent(0), channels = s.x.extent(1), columns = in.weight.extent(0);
  require_operand(op, "x", s.x, s.x.extents());
  require_operand(op, "before.weight", s.before.weight, Extents{channels});
  require_operand(op, "residual", s.residual, Extents{rows, channels});
  require_operand(op, "residual_out", s.residual_out, Extents{rows, channels});
  require(!s.residual_out || s.residual_out.data() != s.residual.data(), op,
          ": residual_out is the memory of residual, which is read until all of the rows are done");
  require(bool(s.norm.weight), op, ": norm.weight is missing");
  require_operand(op, "norm.weight", s.norm.weight, Extents{channels});
  require(s.norm.scale == 1.0, op, ": norm.scale is ", s.norm.scale, "; only the norm before may have one");
  require(s.group_size >= 0 && (s.group_size == 0 || channels % s.group_size == 0), op, ": group_size ", s.group_size,
          " does not divide the ", channels, " channels");
  require_operand(op, "weight", in.weight, Extents{columns, channels});
  require_operand(op, "bias", in.bias, Extents{columns});
  require_operand(op, "out", out, Extents{rows, columns});
  const auto& c = in.convolution;
  if (!c.weight) return;
  const Index convolved = c.weight.extent(0), width = c.weight.extent(1);
  require(width >= 1 && c.first >= 0 && c.first + convolved <= columns, op, ": a convolution of columns ", c.first,
          " to ", c.first + convolved, " of ", columns, ", of width ", width);
  require_dense_rows(op, "convolution.weight", c.weight);
  require_operand(op, "convolution.bias", c.bias, Extents{convolved});
  require(c.state.extent(0) == rows && c.state.extent(1) == convolved && c.state.extent(2) >= width - 1, op,
          ": convolution.state is ", c.state.extents(), ", expected (", rows, ", ", convolved, ", ", width - 1,
          " or more)");
  require_dense_rows(op, "convolution.state", c.state);
}

namespace detail {

inline constexpr int most_warps = 8, most_rows = 8;

/// Shared memory of a block for its rows of the weight and all of x, each a little longer than it is.
inline std::size_t block_bytes(Index columns, Index rows, Index channels) {
  return static_cast<std::size_t>((columns + rows) * (channels + 32)) * 2;
}
inline constexpr std::size_t most_bytes = std::size_t{216} << 10, half_of_a_multiprocessor = std::size_t{108} << 10;

}  // namespace detail

/// Whether `forward` does this: up to eight rows of bfloat16, channels in whole blocks of 32 of which each of 1, 2, 4
/// or 8 groups has as many, all rows at multiples of 16 bytes, a convolution of width 4 with a state of four columns,
/// and a weight small enough that the norm, which every block computes, costs less than a launch.
template <class T, Device DeviceType>
bool takes(const Inputs<T, DeviceType>& in) {
  if constexpr (!std::is_same_v<DeviceType, cuda> || !std::is_same_v<T, bfloat16>) {
    return false;
  } else {
    using diffmamba::detail::takes_packs;
    const auto& s = in.source;
    const auto& c = in.convolution;
    const Index rows = s.x.extent(0), channels = s.x.extent(1);
    const Index groups = s.group_size > 0 ? channels / s.group_size : 1;
    constexpr Index most_elements = Index{16} << 20;
    return rows >= 1 && rows <= detail::most_rows && channels >= 32 &&
           detail::block_bytes(8, rows, channels) <= detail::most_bytes && channels % (32 * groups) == 0 &&
           detail::most_warps % groups == 0 && in.weight.size() <= most_elements && in.weight.extent(0) > 0 &&
           takes_packs<8>(View<const T, 2, DeviceType>(s.x)) && takes_packs<4>(s.before.weight) &&
           takes_packs<4>(s.residual) && takes_packs<4>(s.residual_out) && takes_packs<4>(s.norm.weight) &&
           takes_packs<8>(View<const T, 2, DeviceType>(in.weight)) &&
           (!c.weight ||
            (c.weight.extent(1) == 4 && c.state.extent(2) == 4 && takes_packs<4>(c.weight) && takes_packs<4>(c.state)));
  }
}

// normed_linear_forward.cuh, in the order of the current stream. Throws Error where `takes` is false. Under
// cuda_runtime::WeightsAtRest `weight` is read while the kernel before still runs.
template <class T>
void forward(const Inputs<T, cuda>& in, const std::type_identity_t<View<T, 2, cuda>>& out);

}  // namespace diffmamba::normed_linear
