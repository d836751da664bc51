// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>  // std::size_t
#include <cstdint>  // std::int32_t, std::uint64_t

#include "diffmamba/device/workspace.hpp"
#include "diffmamba/generate/sampler.hpp"

/// Sampling where the logits are: what Sampler does on the host, for every row of a batch, with nothing read back, so
/// that a step of decoding and the draw after it can be one graph. Row r draws as Sampler(options, r) does: the same
/// random numbers, and the same tokens but for what rounding decides. Probabilities are kept in float and summed as
/// integers in units of 2^-40 and less, so a draw has the same bits always; with temperature 0 and equal logits the
/// tokens are those of the CPU.
///
/// The logits are read as float. Defined in generate/device_sampler.cuh.
namespace diffmamba {

/// Drawn instead of a token.
inline constexpr std::int32_t sample_not_a_number = -1;    // a logit was NaN
inline constexpr std::int32_t sample_nothing_likely = -2;  // every logit was -infinity

/// All on the GPU; contiguous but for the rows of logits.
template <class R>
struct SampleArrays {
  RequiredView<const R, 2, cuda> logits;          // (batch, vocab_size)
  RequiredView<std::int32_t, 1, cuda> tokens;     // (batch), what was drawn
  RequiredView<std::uint64_t, 1, cuda> position;  // (batch), how many were drawn before; counted up
  View<std::int32_t, 2, cuda> history = {};       // (batch, window), a ring of the last tokens: for the penalty
  View<std::uint64_t, 1, cuda> remembered = {};   // (batch), how many tokens were ever written to it
  View<std::int32_t, 2, cuda> log = {};           // (rows, batch), draw n goes to row n % rows; may be pinned memory
  View<R, 2, cuda> filtered = {};                 // (batch, vocab_size), the logits after penalty, temperature and
                                                  // filters: -infinity where a token cannot be drawn
};

template <class R>
std::size_t device_sample_workspace_bytes(Index batch, Index vocab_size) {
  return Workspace<cuda>::bytes_of<float>(batch * vocab_size);
}

/// Draws a token of each row and, where there is a history, appends it.
template <class R>
void device_sample(const SampleArrays<R>& arrays, const SamplerOptions& options, Workspace<cuda>& workspace);

}  // namespace diffmamba
