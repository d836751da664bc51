// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>          // std::map
#include <optional>     // std::optional
#include <string>       // std::string
#include <type_traits>  // std::is_same_v

#include "conformance/case.hpp"

namespace diffmamba::conformance {

/// Runs one case: reads arguments and attributes, calls the library, checks outputs and gradients.
using Adapter = void (*)(Case&);

/// The adapters of an operator by where and in what they compute: "cpu float64", "cuda bfloat16".
using Operator = std::map<std::string, Adapter>;

/// By the name that stands in the files.
inline std::map<std::string, Operator>& operators() {
  static std::map<std::string, Operator> all;
  return all;
}

/// Of an adapter that is written once for every type and device. The files that contain them are compiled for the CPU,
/// and once more, with DIFFMAMBA_CONFORMANCE_CUDA, for the GPU: a program has both where it links the GPU's kernels.
///   const Register registered("segsum", []<class T, class D>(Case& golden) { segsum<T, D>(golden); });
///   const Register registered("adamw_training", ..., NoBfloat16{});  // reason_to_skip says why
struct NoBfloat16 {};
template <class D>
class RegisterOn {
 public:
  template <class Generic>
  RegisterOn(const std::string& op, Generic generic) : RegisterOn(op, generic, NoBfloat16{}) {
    add(op, "bfloat16", run<Generic, bfloat16>);
  }
  template <class Generic>
  RegisterOn(const std::string& op, Generic, NoBfloat16) {
    add(op, "float64", run<Generic, double>);
    add(op, "float32", run<Generic, float>);
  }

 private:
  template <class Generic, class T>
  static void run(Case& golden) {
    Generic{}.template operator()<T, D>(golden);
  }
  static void add(const std::string& op, const std::string& dtype, Adapter adapter) {
    const std::string device = std::is_same_v<D, cuda> ? "cuda " : "cpu ";
    require(operators()[op].emplace(device + dtype, adapter).second, "conformance: two adapters for ", op);
  }
};
#ifdef DIFFMAMBA_CONFORMANCE_CUDA
using Register = RegisterOn<cuda>;
#else
using Register = RegisterOn<cpu>;
#endif

/// What this version of the library does not have, each with its reason. An option that is missing from an operator
/// which is there is no reason.
std::optional<std::string> reason_to_skip(const Case& golden, const std::string& dtype);

/// In bfloat16: the relative error ||got - want|| / ||want|| that the official kernels have in this output against a
/// float64 run of the same rounded inputs (measured on an H100, with mamba_ssm e9594ce and causal-conv1d 0d2252d).
double official_error(const std::string& op, const std::string& output, bool rounded);

}  // namespace diffmamba::conformance
