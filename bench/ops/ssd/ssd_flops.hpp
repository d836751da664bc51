// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd.hpp"

/// Floating point operations of the matrix products of ssd.
namespace diffmamba::bench {

struct SsdFlops {
  double forward, backward;
};

/// How many count: the usual way takes chunks of Q steps as full squares; `triangles` takes of them what lies on and
/// below the diagonal, which is what must be computed.
inline SsdFlops ssd_flops(const ssd::Sizes& s, const ssd::Options& options, bool triangles = false) {
  const auto real = [](Index value) { return static_cast<double>(value); };
  const double tokens = real(s.batch * s.length), heads = real(s.nheads), groups = real(s.ngroups);
  const double q = real(ssd::chunk(options)), span = triangles ? (q + 1) / 2 : q;
  const double p = real(s.headdim), n = real(s.d_state);
  return {tokens * (groups * 2 * span * n + heads * (2 * span * p + 4 * n * p)),
          tokens * (groups * 6 * span * n + heads * (4 * span * p + 8 * n * p))};
}

}  // namespace diffmamba::bench
