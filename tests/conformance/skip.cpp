// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"

namespace diffmamba::conformance {

std::optional<std::string> reason_to_skip(const Case& golden, const std::string& dtype) {
  static const std::map<std::string, std::string> absent = {
      {"mamba3", "Mamba-3 is not in this version"},
      {"mamba3_siso", "Mamba-3 is not in this version"},
      {"mamba3_mimo", "Mamba-3 is not in this version"},
      {"decode_mamba3", "Mamba-3 is not in this version"},
      {"mha", "attention is not in this version"},
      {"rotary", "rotary embeddings are not in this version"},
      {"gated_mlp", "the gated MLP is not in this version"},
      {"swiglu", "the gated MLP is not in this version"},
      {"selective_scan_complex", "the complex selective scan is not in this version"},
      {"causal_conv1d_varlen_states", "packed sequences are not in this version"},
      {"mamba_ssm_lm", "checkpoint folders of mamba_ssm are not read in this version"},
      {"hf_causal_lm", "checkpoint folders of Hugging Face models are not read in this version"},
  };
  if (const auto found = absent.find(golden.op()); found != absent.end()) return found->second;
  for (const char* packed : {"in.seq_idx", "in.cu_seqlens"})
    if (golden.has(packed)) return std::string(packed) + ": packed sequences are not in this version";
  if (golden.op() == "block") {
    if (golden.attributes().value("mixer", "") == "mha") return "attention is not in this version";
    if (golden.attributes().value("d_intermediate", 0) != 0) return "the gated MLP is not in this version";
  }
  if (dtype == "bfloat16" && (golden.op() == "mamba2_to_diffmamba2" || golden.op() == "adamw_training"))
    return "there are no whole models in bfloat16 on the CPU, nor an official figure, to judge one on a GPU by";
  return std::nullopt;
}

}  // namespace diffmamba::conformance
