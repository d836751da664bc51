// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/modules.hpp"
#include "diffmamba/nn/diff_s6.hpp"
#include "diffmamba/nn/differential.hpp"
#include "diffmamba/nn/mamba.hpp"

namespace diffmamba::conformance {
namespace {

template <class T, class D>
void diff_mamba(Case& golden) {
  auto options = Differential<Mamba<T, D>>::options(golden.integer("d_model", 0), read_depth(golden));
  read_options(golden, options);
  Differential<Mamba<T, D>> mixer(options);
  run_mixer(golden, mixer);
}

template <class T, class D>
void diff_s6(Case& golden) {
  golden.integer("i_layer", 1);  // there is no lambda
  MambaOptions options{.d_model = golden.integer("d_model", 0)};
  read_options(golden, options);
  DiffS6<T, D> mixer(options);
  run_mixer(golden, mixer);
}

const Register diff_mamba_registered("diff_mamba", []<class T, class D>(Case& golden) { diff_mamba<T, D>(golden); });
const Register diff_s6_registered("diff_s6", []<class T, class D>(Case& golden) { diff_s6<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
