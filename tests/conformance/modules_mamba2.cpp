// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/modules.hpp"
#include "diffmamba/nn/mamba2.hpp"

namespace diffmamba::conformance {
namespace {

/// The fused path of the official modules normalises each group by itself, the unfused one all of them together.
NormGroups norm_groups(Case& golden) {
  const std::string path = golden.text("path", "fused");
  require(path == "fused" || path == "unfused", "attribute path is \"", path, "\", expected fused or unfused");
  return path == "fused" ? NormGroups::per_group : NormGroups::whole;
}

template <class T, class D, bool Decoding>
void mamba2(Case& golden) {
  Mamba2Options options{.d_model = golden.integer("d_model", 0), .norm_groups = norm_groups(golden)};
  read_options(golden, options);
  golden.expect("seq_idx", golden.has("in.seq_idx"));
  Mamba2<T, D> mixer(options);
  Decoding ? run_decoding(golden, mixer) : run_mixer(golden, mixer);
}

const Register mixer_registered("mamba2", []<class T, class D>(Case& golden) { mamba2<T, D, false>(golden); });
const Register simple_registered("mamba2_simple", []<class T, class D>(Case& golden) { mamba2<T, D, false>(golden); });
const Register decoding_registered("decode_mamba2", []<class T, class D>(Case& golden) { mamba2<T, D, true>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
