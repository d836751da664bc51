// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>   // open
#include <unistd.h>  // write, fsync, close

#include <cerrno>        // errno
#include <cstddef>       // std::size_t
#include <cstring>       // std::strerror
#include <filesystem>    // std::filesystem::path
#include <string_view>   // std::string_view
#include <system_error>  // std::error_code

#include "diffmamba/core/error.hpp"

namespace diffmamba {

/// Writes a file that is whole or not there: the bytes go to `<path>.partial` beside it, `commit` forces them to the
/// disk and renames. Whatever happens before (an exception, a full disk, kill -9), the old file keeps its content.
/// Errors are one sentence with the file and the system's reason.
///
///   AtomicFile file("model.safetensors");
///   file.write(bytes.data(), bytes.size());
///   file.commit();
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)), partial_(path_) {
    partial_ += ".partial";
    ::unlink(partial_.c_str());  // what a killed process left behind
    descriptor_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (descriptor_ < 0) give_up("cannot be created", errno);
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() {
    if (descriptor_ >= 0) {
      ::close(descriptor_);
      ::unlink(partial_.c_str());
    }
  }

  void write(const void* data, std::size_t bytes) {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::write(descriptor_, next, bytes);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) give_up("cannot be written", errno);
      next += written;
      bytes -= static_cast<std::size_t>(written);
    }
  }
  void write(std::string_view text) { write(text.data(), text.size()); }

  /// Replaces the old file. After this the new one is there even if the machine loses power.
  void commit() {
    if (::fsync(descriptor_) != 0) give_up("cannot be forced to the disk", errno);
    const int closed = ::close(descriptor_);
    descriptor_ = -1;
    if (closed != 0 || ::rename(partial_.c_str(), path_.c_str()) != 0) {
      const int error = errno;
      ::unlink(partial_.c_str());
      give_up("cannot be put in its place", error);
    }
    const auto folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
    if (const int directory = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC); directory >= 0) {
      ::fsync(directory);  // the rename itself; some file systems cannot, which is no reason to fail
      ::close(directory);
    }
  }

 private:
  [[noreturn]] void give_up(const char* what, int error) const {
    fail(path_.string(), ": ", what, ": ", std::strerror(error));
  }

  std::filesystem::path path_, partial_;
  int descriptor_ = -1;
};

/// Creates a folder and its parents; one sentence if that cannot be.
inline void create_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  require(!error && std::filesystem::is_directory(folder, error), folder.string(),
          ": the folder cannot be created: ", error ? error.message() : "a file of this name is in the way");
}

}  // namespace diffmamba
