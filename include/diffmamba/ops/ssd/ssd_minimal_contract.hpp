// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd.hpp"

/// The bare state space duality of the Mamba-2 paper (listing 1, `ssd_minimal_discrete`): x already holds dt x, A is
/// the log decay of every step, and each head has its own B and C (or shares them by groups, as in `ssd`),
///
///   S_t = exp(A_t) S_{t-1} + x_t B_t^T
///   y_t = S_t C_t
///
///   auto [out, final_state, saved] = ssd::minimal::forward<float>({.x = X, .A = A, .B = B, .C = C}, {.block_len =
///   64}); auto d = ssd::minimal::backward<float>(in, saved, {.dout = dY});
///
/// It runs on the same chunks as `ssd`. The length need not be a multiple of block_len.
namespace diffmamba::ssd::minimal {

struct Options {
  Index block_len = 64;  // an upper bound, like ssd::Options::chunk_size
};

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 4, DeviceType> x;                         // (batch, length, nheads, headdim)
  RequiredView<const accumulate_t<T>, 3, DeviceType> A;           // (batch, length, nheads), <= 0
  RequiredView<const T, 4, DeviceType> B;                         // (batch, length, ngroups, d_state)
  RequiredView<const T, 4, DeviceType> C;                         // (batch, length, ngroups, d_state)
  View<const accumulate_t<T>, 4, DeviceType> initial_state = {};  // (batch, nheads, headdim, d_state), else 0
};

template <class T, Device DeviceType = cpu>
using Saved = ssd::Saved<T, DeviceType>;
template <class T, Device DeviceType = cpu>
using Outputs = ssd::Outputs<T, DeviceType>;
template <class T, Device DeviceType = cpu>
using OutputGradients = ssd::OutputGradients<T, DeviceType>;

template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 4, DeviceType> dx;
  Tensor<accumulate_t<T>, 3, DeviceType> dA;
  Tensor<T, 4, DeviceType> dB, dC;
  Tensor<accumulate_t<T>, 4, DeviceType> dinitial_state;
};

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const ssd::Options& options) {
  constexpr const char* op = "ssd::minimal";
  require(options.chunk_size >= 1, op, ": block_len is ", options.chunk_size, ", expected 1 or more");
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  require_groups(in, op);
  require_shape(op, "A", in.A, Extents{batch, length, nheads});
  require_operand(op, "initial_state", in.initial_state, Extents{batch, nheads, headdim, d_state});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Saved<T, DeviceType>& saved,
           const OutputGradients<T, DeviceType>& upstream) {
  constexpr const char* op = "ssd::minimal";
  check(in, saved.options);
  const auto [batch, length, nheads, headdim, ngroups, d_state] = sizes(in);
  check_saved(saved, sizes(in), op);
  require_operand(op, "dout", upstream.dout, in.x.extents());
  require_operand(op, "dfinal_state", upstream.dfinal_state, Extents{batch, nheads, headdim, d_state});
}

// On the CPU in ssd_minimal.hpp. On a GPU, on the calling thread's current stream, in ssd_minimal.cuh: not on tensor
// cores, and block_len does not matter.
template <class T>
Outputs<T, cuda> forward(const Inputs<T, cuda>& in, const Options& options = {});
template <class T>
Gradients<T, cuda> backward(const Inputs<T, cuda>& in, const Saved<T, cuda>& saved,
                            const std::type_identity_t<OutputGradients<T, cuda>>& upstream);

}  // namespace diffmamba::ssd::minimal
