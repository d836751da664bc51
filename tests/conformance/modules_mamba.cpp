// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/modules.hpp"
#include "diffmamba/nn/mamba.hpp"

namespace diffmamba::conformance {
namespace {

template <class T, class D, bool Decoding>
void mamba(Case& golden) {
  MambaOptions options{.d_model = golden.integer("d_model", 0)};
  read_options(golden, options);
  Mamba<T, D> mixer(options);
  Decoding ? run_decoding(golden, mixer) : run_mixer(golden, mixer);
}

const Register mixer_registered("mamba", []<class T, class D>(Case& golden) { mamba<T, D, false>(golden); });
const Register decoding_registered("decode_mamba", []<class T, class D>(Case& golden) { mamba<T, D, true>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
