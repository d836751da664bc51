// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>      // errno
#include <cmath>       // std::isnan
#include <cstdio>      // std::snprintf
#include <cstdlib>     // std::strtoll
#include <cstring>     // std::strerror
#include <filesystem>  // std::filesystem::path
#include <fstream>     // std::ofstream
#include <string>      // std::string
#include <vector>      // std::vector

#include "diffmamba/core/config.hpp"
#include "diffmamba/io/json.hpp"

namespace diffmamba {

/// A table on disk: a line of names, then one line per step, whole after every call. The first column is the step. NaN
/// leaves a field empty. A run that goes on from a checkpoint keeps the rows up to it and drops those after.
class CsvLog {
 public:
  /// last_step < 0 begins a new file.
  CsvLog(const std::filesystem::path& path, std::vector<std::string> columns, Index last_step = -1)
      : path_(path), columns_(std::move(columns)) {
    std::string header, kept;
    for (std::size_t i = 0; i < columns_.size(); ++i) header += (i > 0 ? "," : "") + columns_[i];
    header += '\n';
    std::error_code error;
    if (last_step >= 0 && std::filesystem::exists(path_, error)) {
      const std::string old = read_file(path_);
      require(old.starts_with(header), path_.string(), ": its columns are not ", header.substr(0, header.size() - 1),
              "; move it away to resume");
      for (std::size_t at = header.size(); at < old.size();) {
        const std::size_t end = old.find('\n', at);
        if (end == std::string::npos) break;  // half a line of a killed process
        if (std::strtoll(old.c_str() + at, nullptr, 10) <= last_step) kept += old.substr(at, end - at + 1);
        at = end + 1;
      }
    }
    AtomicFile file(path_);
    file.write(header + kept);
    file.commit();
    out_.open(path_, std::ios::app | std::ios::binary);
    require(out_.is_open(), path_.string(), ": cannot be written: ", std::strerror(errno));
  }

  void write(Index step, const std::vector<double>& values) {
    require(values.size() + 1 == columns_.size(), path_.string(), ": ", values.size() + 1, " values for ",
            columns_.size(), " columns");
    std::string line = std::to_string(step);
    for (double value : values) {
      char text[32] = "";
      if (!std::isnan(value)) std::snprintf(text, sizeof text, "%.9g", value);
      line += ',';
      line += text;
    }
    out_ << line + '\n' << std::flush;
    require(out_.good(), path_.string(), ": cannot be written: ", std::strerror(errno));
  }

 private:
  std::filesystem::path path_;
  std::vector<std::string> columns_;
  std::ofstream out_;
};

}  // namespace diffmamba
