// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>      // std::size_t
#include <string>       // std::string
#include <string_view>  // std::string_view

namespace diffmamba {

/// What stands at the beginning of `bytes`: a whole character, the beginning of one whose rest is missing, or bytes
/// that begin no character. `length` counts the bytes it is made of; for `invalid` the longest part that could have
/// begun one (at least 1), which the Unicode standard (section 3.9) asks to replace by a single U+FFFD.
struct Utf8Character {
  enum class Kind { whole, unfinished, invalid } kind;
  std::size_t length;
  char32_t code = 0;
};

inline Utf8Character first_utf8_character(std::string_view bytes) {
  using Kind = Utf8Character::Kind;
  if (bytes.empty()) return {Kind::unfinished, 0};
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Kind::whole, 1, lead};
  const std::size_t length = lead >= 0xc2 && lead <= 0xdf   ? 2
                             : lead >= 0xe0 && lead <= 0xef ? 3
                             : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                            : 0;
  if (length == 0) return {Kind::invalid, 1};
  char32_t code = lead & (0xffu >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if (i >= bytes.size()) return {Kind::unfinished, i};
    // The second byte's range shuts out overlong forms, surrogates, and what lies beyond U+10FFFF.
    const unsigned low = i == 1 && lead == 0xe0 ? 0xa0 : i == 1 && lead == 0xf0 ? 0x90 : 0x80;
    const unsigned high = i == 1 && lead == 0xed ? 0x9f : i == 1 && lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i) < low || byte(i) > high) return {Kind::invalid, i};
    code = (code << 6) | (byte(i) & 0x3fu);
  }
  return {Kind::whole, length, code};
}

inline void append_utf8(std::string& text, char32_t code) {
  const auto add = [&](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xc0 | (code >> 6)), add(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    add(0xe0 | (code >> 12)), add(0x80 | ((code >> 6) & 0x3f)), add(0x80 | (code & 0x3f));
  } else {
    add(0xf0 | (code >> 18)), add(0x80 | ((code >> 12) & 0x3f)), add(0x80 | ((code >> 6) & 0x3f)),
        add(0x80 | (code & 0x3f));
  }
}

/// Bytes in, whole characters out, whatever the pieces split: what is unfinished waits for the next piece. Bytes that
/// can be part of no character come out as U+FFFD.
class Utf8Stream {
 public:
  /// The characters that are whole now; valid until the next call.
  std::string_view operator()(std::string_view bytes) {
    pending_ += bytes;
    ready_.clear();
    std::size_t at = 0;
    while (at < pending_.size()) {
      const auto character = first_utf8_character(std::string_view(pending_).substr(at));
      if (character.kind == Utf8Character::Kind::unfinished) break;
      if (character.kind == Utf8Character::Kind::whole)
        ready_.append(pending_, at, character.length);
      else
        append_utf8(ready_, 0xfffd);
      at += character.length;
    }
    pending_.erase(0, at);
    return ready_;
  }
  /// What is left when nothing more comes: nothing, or U+FFFD for an unfinished character.
  std::string_view finish() {
    ready_.clear();
    if (!pending_.empty()) append_utf8(ready_, 0xfffd);
    pending_.clear();
    return ready_;
  }

 private:
  std::string pending_, ready_;
};

}  // namespace diffmamba
