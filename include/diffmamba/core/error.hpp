// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sstream>    // std::ostringstream
#include <stdexcept>  // std::runtime_error

namespace diffmamba {

/// What every check in this library throws: one sentence that names the operator or file, the argument, what was
/// expected and what came.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error with the parts written one after another: fail("ssd: B has d_state ", n, " but C has ", m).
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

/// Checks stay on in release builds. The parts are formatted only when the check fails.
template <class... Parts>
inline void require(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(parts...);
}

}  // namespace diffmamba
