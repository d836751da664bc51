// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/modules.hpp"
#include "diffmamba/nn/diff_mamba2e.hpp"
#include "diffmamba/nn/diff_s6_mamba2.hpp"
#include "diffmamba/nn/differential.hpp"
#include "diffmamba/nn/mamba2.hpp"

namespace diffmamba::conformance {
namespace {

/// The fused path normalises each group by itself, the unfused one all of them together; without the attribute it is
/// as the mixer has it.
void read_path(Case& golden, Mamba2Options& options) {
  const std::string path = golden.text("path", "");
  require(path.empty() || path == "fused" || path == "unfused", "attribute path is \"", path,
          "\", expected fused or unfused");
  if (!path.empty()) options.norm_groups = path == "fused" ? NormGroups::per_group : NormGroups::whole;
}

template <class M>
void run(Case& golden) {
  auto options = M::options(golden.integer("d_model", 0), read_depth(golden));
  read_path(golden, options.mixer);
  read_options(golden, options);
  M mixer(options);
  run_mixer(golden, mixer);
}

const Register differential("diff_mamba2",
                            []<class T, class D>(Case& golden) { run<Differential<Mamba2<T, D>>>(golden); });
const Register one_block("diff_mamba2e", []<class T, class D>(Case& golden) { run<DiffMamba2E<T, D>>(golden); });
const Register scans("diff_s6_mamba2", []<class T, class D>(Case& golden) { run<DiffS6Mamba2<T, D>>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
