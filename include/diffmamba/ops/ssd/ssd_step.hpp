// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/parallel.hpp"
#include "diffmamba/ops/ssd/ssd.hpp"
#include "diffmamba/ops/ssd/ssd_tile.hpp"

// Decoding: the recurrence itself, one token after another. A token reads and writes every state once and does four
// operations on each of its elements, so memory is what it costs.
namespace diffmamba::ssd {
namespace detail {

/// One row of the state, one step: s = decay s + input B; returns s . C.
template <class T, class A>
A step_row(A* s, const T* B, const T* C, Index d_state, A decay, A input) {
  A sum = A(0);
  Index n = 0;
  if constexpr (std::is_same_v<T, A>) {
    const Lanes<A> keep = Lanes<A>::all(decay), add = Lanes<A>::all(input);
    Lanes<A> sums = Lanes<A>::all(A(0));
    for (; n + packet_size<A> <= d_state; n += packet_size<A>) {
      const Lanes<A> value = multiply_add(keep, Lanes<A>::load(s + n), add * Lanes<A>::load(B + n));
      value.store(s + n);
      sums = multiply_add(value, Lanes<A>::load(C + n), sums);
    }
    sum = sums.sum();
  }
  for (; n < d_state; ++n) {
    s[n] = decay * s[n] + input * static_cast<A>(B[n]);
    sum += s[n] * static_cast<A>(C[n]);
  }
  return sum;
}

}  // namespace detail

/// Advances the states in place and writes the outputs of the new tokens; allocates nothing. Throws Error.
template <class T>
void step(const StepInputs<T>& in, const std::type_identity_t<View<accumulate_t<T>, 4>>& ssm_state,
          const Options& options, const std::type_identity_t<View<T, 4>>& out) {
  using A = accumulate_t<T>;
  check(in, ssm_state, options, out);
  const auto s = sizes(in);
  for (Index b = 0; in.state_indices && b < s.batch; ++b)
    require(-1 <= in.state_indices(b) && in.state_indices(b) < ssm_state.extent(0), "ssd::step: state_indices(", b,
            ") is ", in.state_indices(b), ", expected -1 or a slot below ", ssm_state.extent(0));

  constexpr Index enough = 1 << 15;  // elements of the state that are worth waking a thread for
  const Index per_head = s.headdim * s.d_state > 0 ? s.headdim * s.d_state : 1;
  const Index heads = per_head >= enough ? 1 : enough / per_head;
  parallel_for(tiles_of(s.batch * s.nheads, heads), [&](Index tile) {
    const Index last = std::min((tile + 1) * heads, s.batch * s.nheads);
    for (Index i = tile * heads; i < last; ++i) {
      const Index b = i / s.nheads, h = i % s.nheads, g = h / s.heads_per_group();
      const Index slot = in.state_indices ? in.state_indices(b) : b;
      const A bias = in.dt_bias ? in.dt_bias(h) : A(0);
      for (Index t = 0; t < s.length; ++t) {
        const A dt = discretize(static_cast<A>(in.dt(b, t, h)), bias, options), kept = decay(dt, in.A(h));
        const T *x = in.x.pointer(b, t, h), *z = in.z ? in.z.pointer(b, t, h) : nullptr;
        T* y = out.pointer(b, t, h);
        for (Index p = 0; p < s.headdim; ++p) {
          A sum = A(0);
          if (slot >= 0) {
            const A value = static_cast<A>(x[p]);
            sum = detail::step_row(ssm_state.pointer(slot, h, p), in.B.pointer(b, t, g), in.C.pointer(b, t, g),
                                   s.d_state, kept, dt * value);
            sum += (in.D_per_channel ? in.D_per_channel(h, p) : in.D ? in.D(h) : A(0)) * value;
            if (z != nullptr) sum *= silu(static_cast<A>(z[p]));
          }
          y[p] = static_cast<T>(sum);
        }
      }
    }
  });
}

/// The same; the outputs, (batch, tokens, nheads, headdim), in memory from the arena of the device.
template <class T, Device DeviceType = cpu>
Tensor<T, 4, DeviceType> step(const StepInputs<T, DeviceType>& in,
                              const std::type_identity_t<View<accumulate_t<T>, 4, DeviceType>>& ssm_state,
                              const Options& options = {}) {
  auto out = Tensor<T, 4, DeviceType>::uninitialized(in.x.extents());
  step(in, ssm_state, options, out);
  return out;
}

}  // namespace diffmamba::ssd
