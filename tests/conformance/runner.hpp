// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>       // std::map
#include <optional>  // std::optional
#include <string>    // std::string

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

/// Of an adapter that is written once for every type and device; the GPU is there where the program links its kernels.
///   const Register registered("segsum", []<class T, class D>(Case& golden) { segsum<T, D>(golden); });
///   const Register registered("adamw_training", ..., NoBfloat16{});  // reason_to_skip says why
struct NoBfloat16 {};
struct Register {
  template <class Generic>
  Register(const std::string& op, Generic) {
    add(op, {
                {"cpu float64", run<Generic, double, cpu>},
                {"cpu float32", run<Generic, float, cpu>},
                {"cpu bfloat16", run<Generic, bfloat16, cpu>},
#ifdef DIFFMAMBA_CONFORMANCE_CUDA
                {"cuda float64", run<Generic, double, cuda>},
                {"cuda float32", run<Generic, float, cuda>},
                {"cuda bfloat16", run<Generic, bfloat16, cuda>},
#endif
            });
  }
  template <class Generic>
  Register(const std::string& op, Generic, NoBfloat16) {
    add(op, {
                {"cpu float64", run<Generic, double, cpu>},
                {"cpu float32", run<Generic, float, cpu>},
#ifdef DIFFMAMBA_CONFORMANCE_CUDA
                {"cuda float64", run<Generic, double, cuda>},
                {"cuda float32", run<Generic, float, cuda>},
#endif
            });
  }

 private:
  template <class Generic, class T, class D>
  static void run(Case& golden) {
    Generic{}.template operator()<T, D>(golden);
  }
  static void add(const std::string& op, const Operator& adapters) {
    require(operators().emplace(op, adapters).second, "conformance: two adapters for ", op);
  }
};

/// What this version of the library does not have, each with its reason. An option that is missing from an operator
/// which is there is no reason.
std::optional<std::string> reason_to_skip(const Case& golden, const std::string& dtype);

/// In bfloat16: the relative error ||got - want|| / ||want|| that the official kernels have in this output against a
/// float64 run of the same rounded inputs (measured on an H100, with mamba_ssm e9594ce and causal-conv1d 0d2252d).
double official_error(const std::string& op, const std::string& output, bool rounded);

}  // namespace diffmamba::conformance
