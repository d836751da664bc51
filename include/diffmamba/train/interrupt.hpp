// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <csignal>  // std::sig_atomic_t, sigaction

namespace diffmamba {

/// While it lives, Ctrl-C (and SIGTERM) only raise a flag, so that a loop can finish its step and save; a second Ctrl-C
/// ends the program at once. Exceeding a file size limit becomes an error of the write instead of the program's death.
/// One object at a time.
class Interrupt {
 public:
  Interrupt() {
    flag() = 0;
    struct sigaction action {};
    action.sa_handler = [](int signal) {
      flag() = 1;
      struct sigaction second {};
      second.sa_handler = SIG_DFL;
      sigaction(signal, &second, nullptr);
    };
    sigaction(SIGINT, &action, &interrupt_);
    sigaction(SIGTERM, &action, &terminate_);
    action.sa_handler = SIG_IGN;
    sigaction(SIGXFSZ, &action, &file_size_);
  }
  ~Interrupt() {
    sigaction(SIGINT, &interrupt_, nullptr);
    sigaction(SIGTERM, &terminate_, nullptr);
    sigaction(SIGXFSZ, &file_size_, nullptr);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  bool requested() const { return flag() != 0; }

 private:
  static volatile std::sig_atomic_t& flag() {
    static volatile std::sig_atomic_t value = 0;
    return value;
  }
  struct sigaction interrupt_ {
  }, terminate_{}, file_size_{};
};

}  // namespace diffmamba
