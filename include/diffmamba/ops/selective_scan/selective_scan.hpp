// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>      // std::size_t
#include <type_traits>  // std::is_convertible_v
#include <utility>      // std::forward

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// The selective scan of Mamba (S6, arXiv 2312.00752, algorithm 2): per channel d, with d_state states n,
///
///   dt_t     = softplus(delta_t + delta_bias)                              (bias and softplus optional)
///   h_t[n]   = exp(dt_t A[n]) h_{t-1}[n] + dt_t B_t[n] u_t                 h_0 = initial_state, else 0
///   y_t      = sum_n C_t[n] h_t[n] + D u_t                                 (D optional)
///   out_t    = y_t silu(z_t)                                               (z optional)
///
///   selective_scan::Inputs<float> in{.u = u, .delta = delta, .A = A, .B = B, .C = C, .D = D, .z = z};
///   auto [out, final_state, saved] = selective_scan::forward(in, {.delta_softplus = true});
///   auto d = selective_scan::backward(in, saved, {.dout = dout});          d.du, d.ddelta, d.dA, ...
///   Tensor out_t = selective_scan::step(one_token, state, options);        advances the state in place
///
/// B and C are each given per token and group, where channel d uses group d / (channels / ngroups), or as constants of
/// every channel. Both initial and final state are differentiable.
///
/// Saved: the states at every 32nd token, so channels * d_state / 32 elements of accumulate_t<T> per token (2 bytes per
/// channel and token with d_state 16 in float; nothing up to length 32). Backward recomputes the rest.
namespace diffmamba::selective_scan {

/// Activations of a scan: (batch, length, channels), or (batch, length, paths, channels / paths) when the channels lie
/// in several pieces, as the two paths of a differential block do in the output of their common projection. The last
/// axis is contiguous, the others have any strides.
template <class T, Device DeviceType = cpu>
class ChannelView {
 public:
  using Pieces = View<T, 4, DeviceType>;
  using Whole = View<T, 3, DeviceType>;

  /// Absent.
  ChannelView() = default;
  /// A tensor or view of rank 3 or 4.
  template <class Source>
  requires(std::is_convertible_v<Source, Whole> || std::is_convertible_v<Source, Pieces>) ChannelView(Source&& source) {
    if constexpr (std::is_convertible_v<Source, Pieces>) {
      view_ = Pieces(source);
    } else {
      const Whole view = source;
      view_ = Pieces(view.data(), {view.extent(0), view.extent(1), Index{1}, view.extent(2)},
                     {view.stride(0), view.stride(1), Index{0}, view.stride(2)});
    }
  }
  /// Reading view of a writable one.
  template <class Writable>
  requires(std::is_same_v<const Writable, T> && !std::is_const_v<Writable>)
      ChannelView(const ChannelView<Writable, DeviceType>& other)
      : view_(other.pieces()) {}

  explicit operator bool() const { return static_cast<bool>(view_); }
  /// (batch, length, paths, channels / paths)
  const Pieces& pieces() const { return view_; }
  /// (batch, length, channels)
  Extents<3> extents() const { return {view_.extent(0), view_.extent(1), paths() * view_.extent(3)}; }
  Index extent(int axis) const { return extents()[axis]; }
  Index paths() const { return view_.extent(2); }

 private:
  Pieces view_;
};

/// A ChannelView that cannot be left out.
template <class T, Device DeviceType = cpu>
class RequiredChannelView : public ChannelView<T, DeviceType> {
 public:
  using Base = ChannelView<T, DeviceType>;
  RequiredChannelView() = delete;
  template <class Source>
  requires(std::is_convertible_v<Source, Base> && !std::is_base_of_v<RequiredChannelView, std::remove_cvref_t<Source>>)
      RequiredChannelView(Source&& source)
      : Base(std::forward<Source>(source)) {}
};

/// The views of B_constant, C_constant and of all parameters may have any strides.
template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredChannelView<const T, DeviceType> u;                     // (batch, length, channels)
  RequiredChannelView<const T, DeviceType> delta;                 // (batch, length, channels)
  RequiredView<const accumulate_t<T>, 2, DeviceType> A;           // (channels, d_state), negative
  View<const T, 4, DeviceType> B = {};                            // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> B_constant = {};     // (channels, d_state); instead of B
  View<const T, 4, DeviceType> C = {};                            // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> C_constant = {};     // (channels, d_state); instead of C
  View<const accumulate_t<T>, 1, DeviceType> D = {};              // (channels)
  ChannelView<const T, DeviceType> z = {};                        // (batch, length, channels)
  View<const accumulate_t<T>, 1, DeviceType> delta_bias = {};     // (channels)
  View<const accumulate_t<T>, 3, DeviceType> initial_state = {};  // (batch, channels, d_state), else 0
};

struct Options {
  bool delta_softplus = false;
};

/// Tokens between two saved states.
inline constexpr Index checkpoint_interval = 32;

/// What forward keeps for backward. Reusable: forward keeps the memory where the shape is still the same.
template <class T, Device DeviceType = cpu>
struct Saved {
  Options options;
  Tensor<accumulate_t<T>, 4, DeviceType> states;  // (batch, checkpoints, d_state, channels), after 32, 64, ... tokens
};

/// What forward returns.
template <class T, Device DeviceType = cpu>
struct Outputs {
  Tensor<T, 3, DeviceType> out;                        // (batch, length, channels)
  Tensor<accumulate_t<T>, 3, DeviceType> final_state;  // (batch, channels, d_state)
  Saved<T, DeviceType> saved;
};

/// What forward writes. The final state may be the memory of the initial one only where no backward pass follows.
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredChannelView<T, DeviceType> out;                 // (batch, length, channels)
  View<accumulate_t<T>, 3, DeviceType> final_state = {};  // (batch, channels, d_state)
};

/// Where the loss comes from: absent ones are zero.
template <class T, Device DeviceType = cpu>
struct OutputGradients {
  ChannelView<const T, DeviceType> dout = {};                    // (batch, length, channels)
  View<const accumulate_t<T>, 3, DeviceType> dfinal_state = {};  // (batch, channels, d_state)
};

/// What backward returns; empty where the input is absent (dinitial_state is always there).
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 3, DeviceType> du, ddelta;                    // (batch, length, channels)
  Tensor<accumulate_t<T>, 2, DeviceType> dA;              // (channels, d_state)
  Tensor<T, 4, DeviceType> dB;                            // (batch, length, ngroups, d_state)
  Tensor<accumulate_t<T>, 2, DeviceType> dB_constant;     // (channels, d_state)
  Tensor<T, 4, DeviceType> dC;                            // (batch, length, ngroups, d_state)
  Tensor<accumulate_t<T>, 2, DeviceType> dC_constant;     // (channels, d_state)
  Tensor<accumulate_t<T>, 1, DeviceType> dD;              // (channels)
  Tensor<T, 3, DeviceType> dz;                            // (batch, length, channels)
  Tensor<accumulate_t<T>, 1, DeviceType> ddelta_bias;     // (channels)
  Tensor<accumulate_t<T>, 3, DeviceType> dinitial_state;  // (batch, channels, d_state)
};

/// What backward writes; absent ones are skipped. dA, dB_constant, dC_constant, dD and ddelta_bias follow the
/// GradientMode, the others are assigned. Shapes as in Gradients, strides as in Inputs.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  ChannelView<T, DeviceType> du = {}, ddelta = {};
  View<accumulate_t<T>, 2, DeviceType> dA = {};
  View<T, 4, DeviceType> dB = {};
  View<accumulate_t<T>, 2, DeviceType> dB_constant = {};
  View<T, 4, DeviceType> dC = {};
  View<accumulate_t<T>, 2, DeviceType> dC_constant = {};
  View<accumulate_t<T>, 1, DeviceType> dD = {};
  ChannelView<T, DeviceType> dz = {};
  View<accumulate_t<T>, 1, DeviceType> ddelta_bias = {};
  View<accumulate_t<T>, 3, DeviceType> dinitial_state = {};
};

/// One token of Mamba-1. All strides are free, except that B, C and the state have a contiguous last axis.
template <class T, Device DeviceType = cpu>
struct StepInputs {
  RequiredView<const T, 2, DeviceType> u;                      // (batch, channels)
  RequiredView<const T, 2, DeviceType> delta;                  // (batch, channels)
  RequiredView<const accumulate_t<T>, 2, DeviceType> A;        // (channels, d_state)
  RequiredView<const T, 3, DeviceType> B;                      // (batch, ngroups, d_state)
  RequiredView<const T, 3, DeviceType> C;                      // (batch, ngroups, d_state)
  View<const accumulate_t<T>, 1, DeviceType> D = {};           // (channels)
  View<const T, 2, DeviceType> z = {};                         // (batch, channels)
  View<const accumulate_t<T>, 1, DeviceType> delta_bias = {};  // (channels)
  View<const Index, 1, DeviceType> state_batch_indices = {};   // (batch): row b of the inputs -> row of the state
};

/// One token in heads (the official selective_state_update): head h uses group h / (nheads / ngroups). All strides are
/// free, except that A, B, C and the state have a contiguous last axis; what is tied in a head is a view with stride 0.
template <class T, Device DeviceType = cpu>
struct HeadStepInputs {
  RequiredView<const T, 3, DeviceType> x;                     // (batch, nheads, headdim)
  RequiredView<const T, 3, DeviceType> dt;                    // (batch, nheads, headdim)
  RequiredView<const accumulate_t<T>, 3, DeviceType> A;       // (nheads, headdim, d_state); tied: any stride 0
  RequiredView<const T, 3, DeviceType> B;                     // (batch, ngroups, d_state)
  RequiredView<const T, 3, DeviceType> C;                     // (batch, ngroups, d_state)
  View<const accumulate_t<T>, 2, DeviceType> D = {};          // (nheads, headdim)
  View<const T, 3, DeviceType> z = {};                        // (batch, nheads, headdim)
  View<const accumulate_t<T>, 2, DeviceType> dt_bias = {};    // (nheads, headdim)
  View<const Index, 1, DeviceType> state_batch_indices = {};  // (batch): row b of the inputs -> row of the state
};

// selective_scan_forward.hpp
//   Outputs<T> forward(in, options = {})
//   void forward(in, options, output_views, Saved<T>* saved, Workspace<>& workspace)     saved null: inference
//   std::size_t workspace_bytes(in, options)
// selective_scan_backward.hpp
//   Gradients<T> backward(in, saved, output_gradients)
//   void backward(in, saved, output_gradients, gradient_views, mode, workspace)
//   std::size_t workspace_bytes(in, saved)
// selective_scan_step.hpp
//   Tensor<T, 2> step(step_inputs, state, options = {})               state: (slots, channels, d_state), in place
//   Tensor<T, 3> step(head_step_inputs, state, options = {})          state: (slots, nheads, headdim, d_state)
//   void step(inputs, state, options, out)                            the same, never allocates
}  // namespace diffmamba::selective_scan
