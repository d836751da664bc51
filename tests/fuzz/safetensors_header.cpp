// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: no header, however it is made, may do anything but parse or throw Error, and one that parses must
// describe ranges inside the data.
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I include tests/fuzz/safetensors_header.cpp
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "diffmamba/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::uint16_t data_bytes = 0;  // the first two bytes say how much data follows the header
  if (size < sizeof data_bytes) return 0;
  std::memcpy(&data_bytes, data, sizeof data_bytes);
  const std::string header(reinterpret_cast<const char*>(data) + sizeof data_bytes, size - sizeof data_bytes);
  try {
    const auto parsed = diffmamba::parse_safetensors_header(header, data_bytes, "fuzz");
    std::uint64_t bytes = 0;
    for (const auto& [name, info] : parsed.tensors) {
      if (info.begin > info.end || info.end > data_bytes) std::abort();
      if (static_cast<std::uint64_t>(info.size()) * diffmamba::size_of(info.dtype) != info.end - info.begin)
        std::abort();
      bytes += info.end - info.begin;
    }
    if (bytes != data_bytes) std::abort();
  } catch (const diffmamba::Error&) {
  }
  return 0;
}
