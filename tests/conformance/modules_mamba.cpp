// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/modules.hpp"
#include "diffmamba/nn/mamba.hpp"

namespace diffmamba::conformance {
namespace {

template <class T, bool Decoding>
void mamba(Case& golden) {
  MambaOptions options{.d_model = golden.integer("d_model", 0)};
  read_options(golden, options);
  Mamba<T> mixer(options);
  Decoding ? run_decoding(golden, mixer) : run_mixer(golden, mixer);
}

const Register mixer_registered("mamba", mamba<double, false>, mamba<float, false>);
const Register decoding_registered("decode_mamba", mamba<double, true>, mamba<float, true>);

}  // namespace
}  // namespace diffmamba::conformance
