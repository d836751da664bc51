// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <spawn.h>     // posix_spawnp
#include <sys/wait.h>  // waitpid

#include <cerrno>      // EINTR
#include <filesystem>  // std::filesystem::path
#include <string>      // std::string
#include <vector>      // std::vector

#include "diffmamba/io/atomic_file.hpp"

extern char** environ;

namespace diffmamba {

/// A run of the picture: its name in the key, and a CSV file with the columns step, loss, validation_loss (in nats).
struct LossCurve {
  std::string name;
  std::filesystem::path csv;
};

namespace detail {
inline std::string gnuplot_quoted(const std::string& text) {
  std::string result = "'";
  for (char c : text) result += c == '\'' ? "''" : std::string(1, c);
  return result + "'";
}
}  // namespace detail

/// Draws the training loss (smoothed, over its pale raw values) and the validation loss of one or more runs with
/// gnuplot, as BASE.svg and BASE.png; the script stays beside them as BASE.gp. `unit` names the axis, as in "bits per
/// byte". Returns an empty string, or one sentence that says why there is no picture: without gnuplot that is no error.
inline std::string draw_loss(const std::filesystem::path& base, const std::vector<LossCurve>& curves,
                             const std::string& title, const std::string& unit) {
  static constexpr const char* colors[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b"};
  using detail::gnuplot_quoted;
  std::string plot;
  for (std::size_t i = 0; i < curves.size(); ++i) {
    const std::string color = colors[i % 6], file = gnuplot_quoted(curves[i].csv.string());
    const std::string pale = " lc rgb '#b0" + color.substr(1) + "'";  // the first byte is transparency
    plot += (i == 0 ? "plot n = 0, \\\n" : ", \\\n  n = 0, \\\n");
    plot += "  " + file + " using (column('step')):(bits(column('loss'))) with lines" + pale + " notitle, \\\n";
    plot += "  " + file + " using (column('step')):(smooth(bits(column('loss')))) with lines lw 2 lc rgb '" + color +
            "' title " + gnuplot_quoted(curves[i].name) + " noenhanced, \\\n";
    plot += "  " + file +
            " using (column('step')):(bits(column('validation_loss'))) with linespoints pt 7 ps 0.6 dt 2" +
            " lc rgb '" + color + "' title " + gnuplot_quoted(curves[i].name + ", validation") + " noenhanced";
  }
  std::string script = "set datafile separator ','\nset datafile columnheaders\nset datafile missing NaN\n";
  script += "set grid lc rgb '#dddddd'\nset border 3 lc rgb '#666666'\nset tics nomirror\nset key top right\n";
  script += "set title " + gnuplot_quoted(title) + " noenhanced\nset xlabel 'step'\nset ylabel " +
            gnuplot_quoted(unit) + " noenhanced\n";
  script += "bits(loss) = loss / log(2)\n";
  script += "weight(n) = n < 39 ? 2.0 / (n + 1) : 0.05\n";  // a mean over the last 40 steps or so, of fewer at first
  script += "smooth(x) = (n = n + 1, mean = n == 1 ? x : mean + weight(n) * (x - mean))\n";
  for (const std::string kind : {"svg", "png"}) {
    script += "set terminal " +
              std::string(kind == "svg" ? "svg size 900,540 dynamic background rgb 'white'" : "png size 900,540") +
              "\n";
    if (kind == "png") script += "if (strstrt(GPVAL_TERMINALS, ' pngcairo ')) set terminal pngcairo size 900,540\n";
    script += "set output " + gnuplot_quoted(base.string() + "." + kind) + "\n" + plot + "\n";
  }
  const std::string script_path = base.string() + ".gp";
  AtomicFile file(script_path);
  file.write(script + "set output\n");
  file.commit();

  char program[] = "gnuplot";
  std::string argument = script_path;
  char* arguments[] = {program, argument.data(), nullptr};
  pid_t child = 0;
  if (posix_spawnp(&child, program, nullptr, nullptr, arguments, environ) != 0)
    return "gnuplot is not installed, so there is no picture of the loss; later: gnuplot " + script_path;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return "";
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
    return "gnuplot is not installed, so there is no picture of the loss; later: gnuplot " + script_path;
  return "gnuplot could not draw " + script_path;
}

}  // namespace diffmamba
