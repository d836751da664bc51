// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/ioctl.h>  // TIOCGWINSZ
#include <unistd.h>     // isatty

#include <algorithm>    // std::clamp
#include <chrono>       // std::chrono::steady_clock
#include <cmath>        // std::exp
#include <cstdio>       // std::FILE, std::fprintf
#include <string>       // std::string
#include <string_view>  // std::string_view

#include "diffmamba/core/config.hpp"

namespace diffmamba {

namespace detail {
template <class... Values>
std::string print(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}
}  // namespace detail

/// "950", "5.2k", "1.25M"
inline std::string short_number(double value) {
  if (value >= 999.5e3) return detail::print("%.2fM", value / 1e6);
  if (value >= 9995) return detail::print("%.1fk", value / 1e3);
  if (value >= 999.5) return detail::print("%.2fk", value / 1e3);
  return detail::print("%.0f", value);
}

/// "0:42", "12:05", "3:07:09"
inline std::string clock_time(double seconds) {
  const auto s = static_cast<long long>(seconds < 0 ? 0 : seconds + 0.5);
  if (s >= 3600) return detail::print("%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  return detail::print("%lld:%02lld", s / 60, s % 60);
}

/// A line that says how far a loop is, how fast, and how long it still takes. On a terminal it is drawn over itself, at
/// most ten times a second; anywhere else (a file, a pipe) it is a plain line now and then, so that logs stay short.
///
///   ProgressBar bar(steps);
///   bar.show(step, tokens, "loss 1.234");
class ProgressBar {
 public:
  struct Options {
    std::string unit = "tokens";
    double seconds_between_lines = 10;  // where there is no terminal
    std::FILE* out = stderr;
  };
  /// `total` steps, of which `done` were made before (a run that was resumed).
  explicit ProgressBar(Index total, Index done, Options options)
      : options_(std::move(options)), total_(total), first_(done), terminal_(isatty(fileno(options_.out)) != 0) {
    begin_ = last_rate_ = Clock::now();
  }
  explicit ProgressBar(Index total, Index done = 0) : ProgressBar(total, done, Options{}) {}
  ~ProgressBar() { finish(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// `done` steps of the total, `units` (tokens) since this object was made, and whatever else is to be said.
  void show(Index done, double units, std::string_view text = {}) {
    const auto now = Clock::now();
    update_rate(now, done, units);
    const bool last = done >= total_;
    const double wait = terminal_ ? 0.1 : options_.seconds_between_lines;
    if (shown_ && !last && seconds(last_shown_, now) < wait) return;
    shown_ = true;
    last_shown_ = now;
    const double left = steps_per_second_ > 0 ? static_cast<double>(total_ - done) / steps_per_second_ : 0;
    std::string line = detail::print("%lld/%lld ", static_cast<long long>(done), static_cast<long long>(total_));
    std::string rest(text);
    if (!rest.empty()) rest += " | ";
    rest += short_number(rate_) + " " + options_.unit + "/s | ";
    rest += last ? clock_time(seconds(begin_, now)) + " in all" : clock_time(left) + " left";
    if (terminal_) {
      const Index room = columns() - 1 - static_cast<Index>(line.size() + rest.size()) - 3;
      if (room >= 5) line += bar(done, std::min<Index>(room, 40)) + " ";
      line = (line + rest).substr(0, static_cast<std::size_t>(std::max<Index>(columns() - 1, 1)));
      std::fprintf(options_.out, "\r%s\x1b[K", line.c_str());
      open_line_ = true;
    } else {
      std::fprintf(options_.out, "%s%s\n", line.c_str(), rest.c_str());
    }
    std::fflush(options_.out);
  }

  /// A line of its own above the bar.
  void say(std::string_view text) {
    std::fprintf(options_.out, "%s%.*s\n", open_line_ ? "\r\x1b[K" : "", static_cast<int>(text.size()), text.data());
    open_line_ = false;
    std::fflush(options_.out);
  }
  /// Ends the line.
  void finish() {
    if (open_line_) std::fprintf(options_.out, "\n");
    open_line_ = false;
  }
  /// Of the last seconds.
  double units_per_second() const { return rate_; }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  }
  // A mean that forgets within some ten seconds: the rate follows the machine, the time left does not jump.
  void update_rate(Clock::time_point now, Index done, double units) {
    const double passed = seconds(last_rate_, now);
    if (passed <= 0) return;
    const double keep = rate_ > 0 ? std::exp(-passed / 10) : 0;
    rate_ = keep * rate_ + (1 - keep) * (units - last_units_) / passed;
    steps_per_second_ =
        keep * steps_per_second_ + (1 - keep) * static_cast<double>(done - std::max(first_, last_done_)) / passed;
    last_rate_ = now;
    last_units_ = units;
    last_done_ = done;
  }
  Index columns() const {
    winsize size{};
    return ioctl(fileno(options_.out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  }
  std::string bar(Index done, Index width) const {
    const Index full = total_ > 0 ? std::clamp<Index>(done * width / total_, 0, width) : width;
    return "[" + std::string(static_cast<std::size_t>(full), '#') +
           std::string(static_cast<std::size_t>(width - full), '.') + "]";
  }

  Options options_;
  Index total_, first_, last_done_ = 0;
  bool terminal_, shown_ = false, open_line_ = false;
  double rate_ = 0, steps_per_second_ = 0, last_units_ = 0;
  Clock::time_point begin_, last_rate_, last_shown_;
};

}  // namespace diffmamba
