// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>     // std::uint16_t
#include <filesystem>  // std::filesystem::path
#include <memory>      // std::shared_ptr
#include <string>      // std::string
#include <vector>      // std::vector

#include "diffmamba/data/text_tokenizer.hpp"
#include "diffmamba/io/json.hpp"

namespace diffmamba {

/// A text as tokens, split as is usual for byte and character models: the last 5 % are the test, the 5 % before them
/// validation. Cheap to copy: the parts look into one shared memory.
struct Corpus {
  TextTokenizer tokenizer;
  std::shared_ptr<const std::vector<std::uint16_t>> tokens;
  TokenSpan train, validation, test;
  std::size_t bytes = 0;  // of the text

  /// Cuts a text that is in memory.
  static Corpus from_text(std::string_view text, TextTokenizer tokenizer, const std::string& source = "text") {
    require(!text.empty(), source, ": the text is empty");
    require(tokenizer.vocab_size() <= 65536, source, ": ", tokenizer.vocab_size(),
            " different characters, at most 65536 are possible");
    const auto ids = tokenizer.encode(text, source);
    Corpus corpus;
    corpus.tokens = std::make_shared<const std::vector<std::uint16_t>>(ids.begin(), ids.end());
    corpus.tokenizer = std::move(tokenizer);
    corpus.bytes = text.size();
    const TokenSpan all = *corpus.tokens;
    const std::size_t part = all.size() / 20;
    corpus.train = all.first(all.size() - 2 * part);
    corpus.validation = all.subspan(all.size() - 2 * part, part);
    corpus.test = all.last(part);
    return corpus;
  }
};

/// Reads a text file. A file with zero bytes in it is binary and refused unless allow_binary is set (bytes only); for
/// characters it must be UTF-8. With a tokenizer given (of a model that exists) the text may use only its vocabulary.
struct CorpusOptions {
  TextMode mode = TextMode::bytes;
  bool allow_binary = false;
};

namespace detail {
inline std::string read_text(const std::filesystem::path& path, bool allow_binary) {
  std::string text = read_file(path);
  require(!text.empty(), path.string(), ": the file is empty");
  if (!allow_binary) {
    const auto zero = text.find('\0');
    require(zero == std::string::npos, path.string(), ": byte ", zero, " is zero: this is a binary file, not a text");
  }
  return text;
}
}  // namespace detail

inline Corpus load_corpus(const std::filesystem::path& path, const CorpusOptions& options = {}) {
  const std::string text = detail::read_text(path, options.allow_binary && options.mode == TextMode::bytes);
  auto tokenizer =
      options.mode == TextMode::bytes ? TextTokenizer() : TextTokenizer::of_characters(text, path.string());
  return Corpus::from_text(text, std::move(tokenizer), path.string());
}
inline Corpus load_corpus(const std::filesystem::path& path, const TextTokenizer& tokenizer,
                          bool allow_binary = false) {
  return Corpus::from_text(detail::read_text(path, allow_binary), tokenizer, path.string());
}

/// For config files: {"mode": "characters", "characters": "\n !$&"}.
inline Json to_json(const TextTokenizer& tokenizer) {
  Json json = {{"mode", name_of(tokenizer.mode())}};
  if (tokenizer.mode() == TextMode::characters) json["characters"] = tokenizer.characters();
  return json;
}
inline TextTokenizer tokenizer_from_json(const Json& json, const std::string& source) {
  require(json.is_object() && json.contains("mode") && json["mode"].is_string(), source, ": the tokenizer has no mode");
  if (text_mode(json["mode"].get_ref<const std::string&>()) == TextMode::bytes) return {};
  require(json.contains("characters") && json["characters"].is_string(), source, ": the tokenizer has no characters");
  return TextTokenizer::of_characters(json["characters"].get_ref<const std::string&>(), source);
}

}  // namespace diffmamba
