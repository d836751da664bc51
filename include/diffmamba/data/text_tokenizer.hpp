// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>      // std::sort, std::unique
#include <cstdint>        // std::int32_t
#include <span>           // std::span
#include <string>         // std::string
#include <string_view>    // std::string_view
#include <unordered_map>  // std::unordered_map
#include <vector>         // std::vector

#include "diffmamba/core/config.hpp"
#include "diffmamba/core/error.hpp"
#include "diffmamba/data/utf8.hpp"

namespace diffmamba {

/// Tokens of a text in order. Vocabularies of up to 65536 tokens.
using TokenSpan = std::span<const std::uint16_t>;

/// What a token of a text is: a byte (256 of them, any text), or one of the characters that occur in a text.
enum class TextMode { bytes, characters };

inline TextMode text_mode(std::string_view name) {
  if (name == "bytes") return TextMode::bytes;
  if (name == "characters") return TextMode::characters;
  fail("text mode \"", name, "\": expected bytes or characters");
}
inline std::string_view name_of(TextMode mode) {
  return mode == TextMode::bytes ? "bytes" : "characters";
}

/// Text to tokens and back, without any training: bytes, or the characters of a text in order of their code points.
class TextTokenizer {
 public:
  /// Bytes.
  TextTokenizer() = default;
  /// The distinct characters of a UTF-8 text, smallest code point first. `source` names the text in errors.
  static TextTokenizer of_characters(std::string_view text, const std::string& source = "characters") {
    TextTokenizer result;
    result.mode_ = TextMode::characters;
    std::vector<bool> seen(0x110000);
    for_each_character(text, source, [&](char32_t code) { seen[code] = true; });
    for (char32_t code = 0; code < seen.size(); ++code) {
      if (!seen[code]) continue;
      result.ids_.emplace(code, static_cast<std::int32_t>(result.characters_.size()));
      result.characters_.push_back(code);
    }
    return result;
  }

  TextMode mode() const { return mode_; }
  Index vocab_size() const { return mode_ == TextMode::bytes ? 256 : static_cast<Index>(characters_.size()); }
  /// All characters as one UTF-8 text, from which of_characters makes the same tokenizer; empty for bytes.
  std::string characters() const {
    std::string text;
    for (char32_t code : characters_) append_utf8(text, code);
    return text;
  }

  /// Throws Error for a character that the vocabulary lacks and for invalid UTF-8 (characters only).
  std::vector<std::int32_t> encode(std::string_view text, const std::string& source = "text") const {
    std::vector<std::int32_t> tokens;
    tokens.reserve(text.size());
    if (mode_ == TextMode::bytes) {
      for (char c : text) tokens.push_back(static_cast<unsigned char>(c));
      return tokens;
    }
    for_each_character(text, source, [&](char32_t code) {
      const auto found = ids_.find(code);
      if (found == ids_.end()) {
        std::string character;
        append_utf8(character, code);
        fail(source, ": the character '", character, "' is not among the ", vocab_size(),
             " characters of the vocabulary");
      }
      tokens.push_back(found->second);
    });
    return tokens;
  }

  /// The bytes of one token. Throws Error for a token out of range.
  std::string bytes_of(std::int32_t token) const {
    require(token >= 0 && token < vocab_size(), "tokenizer: token ", token, " is out of range, the vocabulary has ",
            vocab_size());
    if (mode_ == TextMode::bytes) return std::string(1, static_cast<char>(static_cast<unsigned char>(token)));
    std::string text;
    append_utf8(text, characters_[static_cast<std::size_t>(token)]);
    return text;
  }

  template <class Tokens>
  std::string decode(const Tokens& tokens) const {
    std::string text;
    for (auto token : tokens) text += bytes_of(static_cast<std::int32_t>(token));
    return text;
  }

  /// Tokens in, whole characters out: `auto text = tokenizer.stream(); std::cout << text(token);`
  auto stream() const {
    return [tokenizer = *this, utf8 = Utf8Stream()](std::int32_t token) mutable {
      return utf8(tokenizer.bytes_of(token));
    };
  }

 private:
  template <class Work>
  static void for_each_character(std::string_view text, const std::string& source, Work&& work) {
    for (std::size_t at = 0; at < text.size();) {
      const auto character = first_utf8_character(text.substr(at));
      require(character.kind == Utf8Character::Kind::whole, source, ": byte ", at,
              " begins no UTF-8 character: this is no text in UTF-8 (text mode bytes takes other encodings)");
      work(character.code);
      at += character.length;
    }
  }

  TextMode mode_ = TextMode::bytes;
  std::vector<char32_t> characters_;
  std::unordered_map<char32_t, std::int32_t> ids_;
};

}  // namespace diffmamba
