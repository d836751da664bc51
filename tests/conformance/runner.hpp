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

struct Operator {
  Adapter float64, float32;
};

/// By the name that stands in the files.
inline std::map<std::string, Operator>& operators() {
  static std::map<std::string, Operator> all;
  return all;
}

/// const Register registered("segsum", segsum<double>, segsum<float>);
struct Register {
  Register(const std::string& op, Adapter float64, Adapter float32) {
    require(operators().emplace(op, Operator{float64, float32}).second, "conformance: two adapters for ", op);
  }
};

/// What this version of the library does not have, each with its reason. An option that is missing from an operator
/// which is there is no reason.
std::optional<std::string> reason_to_skip(const Case& golden);

}  // namespace diffmamba::conformance
