// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/data/utf8.hpp"

#include <doctest/doctest.h>

using namespace diffmamba;

TEST_CASE("utf8: every character survives, byte by byte") {
  for (char32_t code = 0; code < 0x110000; code += code < 0x3000 ? 1 : 97) {
    if (code >= 0xd800 && code < 0xe000) continue;
    std::string text, streamed;
    append_utf8(text, code);
    const auto character = first_utf8_character(text);
    REQUIRE(character.kind == Utf8Character::Kind::whole);
    REQUIRE(character.code == code);
    REQUIRE(character.length == text.size());
    Utf8Stream stream;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto ready = stream(text.substr(i, 1));
      REQUIRE(ready.empty() == (i + 1 < text.size()));
      streamed += ready;
    }
    REQUIRE(streamed == text);
    REQUIRE(stream.finish().empty());
  }
}

TEST_CASE("utf8: what is no character becomes U+FFFD as the Unicode standard asks") {
  const std::string r = "\xef\xbf\xbd";
  const auto decoded = [](std::string_view bytes) {
    Utf8Stream stream;
    std::string text;
    for (char c : bytes) text += stream(std::string_view(&c, 1));
    return text + std::string(stream.finish());
  };
  CHECK(decoded("a\x80z") == "a" + r + "z");
  CHECK(decoded("\xc0\xaf") == r + r);          // overlong
  CHECK(decoded("\xed\xa0\x80") == r + r + r);  // a surrogate
  CHECK(decoded("\xf4\x90\x80\x80") == r + r + r + r);
  CHECK(decoded("\xe2\x82") == r);  // ends unfinished
  CHECK(decoded("\xe2\x82z") == r + "z");
  CHECK(decoded("\xe2\x82\xe2\x82\xac") == r + "\xe2\x82\xac");
  // Table 3-8 of the standard.
  CHECK(decoded("\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64") ==
        "a" + r + r + r + "b" + r + "c" + r + r + "d");
}
