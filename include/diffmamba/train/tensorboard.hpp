// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>  // gethostname, getpid

#include <array>        // std::array
#include <bit>          // std::bit_cast
#include <cerrno>       // errno
#include <chrono>       // std::chrono::system_clock
#include <cstdint>      // std::uint32_t, std::uint64_t
#include <cstring>      // std::strerror
#include <filesystem>   // std::filesystem::path
#include <fstream>      // std::ofstream
#include <string>       // std::string
#include <string_view>  // std::string_view

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/error.hpp"
#include "diffmamba/io/atomic_file.hpp"

namespace diffmamba {

/// CRC-32C (Castagnoli), bit-reflected polynomial 0x82f63b78.
inline std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto table = [] {
    std::array<std::uint32_t, 256> entries{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = (c & 1u) ? (c >> 1) ^ 0x82f63b78u : c >> 1;
      entries[i] = c;
    }
    return entries;
  }();
  std::uint32_t crc = 0xffffffffu;
  for (char byte : bytes) crc = table[(crc ^ static_cast<unsigned char>(byte)) & 0xffu] ^ (crc >> 8);
  return ~crc;
}

/// An event file that TensorBoard reads: `tensorboard --logdir FOLDER`. Each record is its length (8 bytes), the masked
/// CRC of those, a protocol buffer `Event`, and its masked CRC; the buffers have so few fields that they are written by
/// hand: Event {1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary}, Summary {1: Value}, Value {1:
/// string tag, 2: float simple_value}.
class TensorBoardLog {
 public:
  explicit TensorBoardLog(const std::filesystem::path& folder) {
    create_folder(folder);
    char host[256] = "localhost";
    ::gethostname(host, sizeof host - 1);
    const auto stem = "events.out.tfevents." + std::to_string(static_cast<long long>(now())) + "." + host + "." +
                      std::to_string(::getpid());
    path_ = folder / stem;
    for (int i = 1; std::filesystem::exists(path_); ++i) path_ = folder / (stem + "." + std::to_string(i));
    out_.open(path_, std::ios::binary);
    require(out_.is_open(), path_.string(), ": cannot be written: ", std::strerror(errno));
    std::string event = fixed64_field(1, now());
    event += bytes_field(3, "brain.Event:2");
    record(event);
  }

  void scalar(std::string_view tag, Index step, double value) {
    const std::string summary_value = bytes_field(1, tag) + fixed32_field(2, static_cast<float>(value));
    record(fixed64_field(1, now()) + varint_field(2, static_cast<std::uint64_t>(step)) +
           bytes_field(5, bytes_field(1, summary_value)));
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  static double now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
  template <class Word>
  static std::string little_endian(Word word) {
    std::string bytes;
    for (std::size_t i = 0; i < sizeof(Word); ++i)
      bytes += static_cast<char>(static_cast<unsigned char>(word >> (8 * i)));
    return bytes;
  }
  static std::string varint(std::uint64_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(static_cast<unsigned char>(value | 0x80));
    return bytes += static_cast<char>(static_cast<unsigned char>(value));
  }
  // A field begins with its number and how its value is coded: 0 varint, 1 eight bytes, 2 length and bytes, 5 four
  // bytes.
  static std::string key(unsigned field, unsigned coding) { return varint(field << 3 | coding); }
  static std::string varint_field(unsigned field, std::uint64_t value) { return key(field, 0) + varint(value); }
  static std::string fixed64_field(unsigned field, double value) {
    return key(field, 1) + little_endian(std::bit_cast<std::uint64_t>(value));
  }
  static std::string bytes_field(unsigned field, std::string_view bytes) {
    return key(field, 2) + varint(bytes.size()) + std::string(bytes);
  }
  static std::string fixed32_field(unsigned field, float value) {
    return key(field, 5) + little_endian(std::bit_cast<std::uint32_t>(value));
  }
  static std::uint32_t masked_crc(std::string_view bytes) {
    const std::uint32_t crc = crc32c(bytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  }
  void record(const std::string& event) {
    const std::string length = little_endian(std::uint64_t{event.size()});
    out_ << length << little_endian(masked_crc(length)) << event << little_endian(masked_crc(event)) << std::flush;
    require(out_.good(), path_.string(), ": cannot be written: ", std::strerror(errno));
  }

  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace diffmamba
