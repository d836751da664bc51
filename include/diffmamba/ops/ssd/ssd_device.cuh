// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd.hpp"

// What the kernels of ssd read and write, as pointers and strides.
namespace diffmamba::ssd::detail {

inline constexpr int tile_tokens = 64;  // tokens of a chunk on the tensor-core path

/// What a kernel needs of the inputs: pointers and strides, in elements.
template <class T>
struct DeviceInputs {
  const T *x, *dt, *B, *C, *z;
  const accumulate_t<T>*A, *D, *dt_bias, *initial_state;
  const accumulate_t<T>* log_decay = nullptr;  // of ssd::minimal, which has neither dt nor A
  Index x_batch, x_token, x_head, dt_batch, dt_token, dt_head, B_batch, B_token, B_group, C_batch, C_token, C_group;
  Index z_batch, z_token, z_head, D_head, D_channel;
  Index state_batch, state_head, state_channel;  // of initial_state
  Index log_batch = 0, log_token = 0, log_head = 0;
  Index length;
  int nheads, headdim, d_state, heads_per_group;
  Options options;

  explicit DeviceInputs(const Inputs<T, cuda>& in, const Options& how)
      : x(in.x.data()),
        dt(in.dt.data()),
        B(in.B.data()),
        C(in.C.data()),
        z(in.z.data()),
        A(in.A.data()),
        D(in.D ? in.D.data() : in.D_per_channel.data()),
        dt_bias(in.dt_bias.data()),
        initial_state(in.initial_state.data()),
        x_batch(in.x.stride(0)),
        x_token(in.x.stride(1)),
        x_head(in.x.stride(2)),
        dt_batch(in.dt.stride(0)),
        dt_token(in.dt.stride(1)),
        dt_head(in.dt.stride(2)),
        B_batch(in.B.stride(0)),
        B_token(in.B.stride(1)),
        B_group(in.B.stride(2)),
        C_batch(in.C.stride(0)),
        C_token(in.C.stride(1)),
        C_group(in.C.stride(2)),
        z_batch(in.z.stride(0)),
        z_token(in.z.stride(1)),
        z_head(in.z.stride(2)),
        D_head(in.D ? in.D.stride(0) : in.D_per_channel.stride(0)),
        D_channel(in.D_per_channel ? in.D_per_channel.stride(1) : 0),
        state_batch(in.initial_state.stride(0)),
        state_head(in.initial_state.stride(1)),
        state_channel(in.initial_state.stride(2)),
        length(in.x.extent(1)),
        nheads(static_cast<int>(in.x.extent(2))),
        headdim(static_cast<int>(in.x.extent(3))),
        d_state(static_cast<int>(in.B.extent(3))),
        heads_per_group(static_cast<int>(in.x.extent(2) / in.B.extent(2))),
        options(how) {}
};

/// Where a kernel writes; final_state may be null.
template <class T>
struct DeviceOutputs {
  T* out;
  accumulate_t<T>* final_state;
  Index out_batch, out_token, out_head, state_batch, state_head, state_channel;

  explicit DeviceOutputs(const OutputViews<T, cuda>& to)
      : out(to.out.data()),
        final_state(to.final_state.data()),
        out_batch(to.out.stride(0)),
        out_token(to.out.stride(1)),
        out_head(to.out.stride(2)),
        state_batch(to.final_state.stride(0)),
        state_head(to.final_state.stride(1)),
        state_channel(to.final_state.stride(2)) {}
};

}  // namespace diffmamba::ssd::detail
