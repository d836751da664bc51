// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/data/corpus.hpp"

#include <doctest/doctest.h>

#include "support/temporary_folder.hpp"

using namespace diffmamba;

TEST_CASE("corpus: the last 5 % are the test, the 5 % before them validation") {
  std::string text;
  for (int i = 0; i < 203; ++i) text += static_cast<char>('a' + i % 26);
  const Corpus corpus = Corpus::from_text(text, {});
  CHECK(corpus.train.size() == 183);
  CHECK(corpus.validation.size() == 10);
  CHECK(corpus.test.size() == 10);
  CHECK(corpus.validation[0] == text[183]);
  CHECK(corpus.test[9] == text[202]);
  const Corpus copy = corpus;
  CHECK(copy.test.data() == corpus.test.data());
}

TEST_CASE("corpus: characters are the distinct ones in order; text and tokens are two forms of one thing") {
  const std::string text = "Grüße, Welt! 12€";
  const auto tokenizer = TextTokenizer::of_characters(text);
  CHECK(tokenizer.vocab_size() == 14);
  CHECK(tokenizer.characters() == " !,12GWelrtßü€");
  CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  CHECK(tokenizer.encode("!")[0] == 1);
  CHECK_THROWS_WITH_AS(tokenizer.encode("Ä", "prompt"),
                       "prompt: the character 'Ä' is not among the 14 characters of the vocabulary", Error);
  CHECK_THROWS_WITH_AS(tokenizer.bytes_of(14), "tokenizer: token 14 is out of range, the vocabulary has 14", Error);
  CHECK_THROWS_AS(TextTokenizer().bytes_of(256), Error);
  CHECK_THROWS_AS(TextTokenizer().bytes_of(-1), Error);
  const auto again = tokenizer_from_json(parse_json(to_json(tokenizer).dump(), "json"), "json");
  CHECK(again.characters() == tokenizer.characters());
  auto stream = TextTokenizer().stream();
  std::string streamed;
  for (int token : TextTokenizer().encode(text)) streamed += stream(token);
  CHECK(streamed == text);
}

TEST_CASE("corpus: a missing, empty, binary or mistaken file is one sentence") {
  test::TemporaryFolder folder;
  const auto path = folder / "text";
  const auto message = [&](const std::string& bytes, CorpusOptions options) -> std::string {
    std::ofstream(path, std::ios::binary) << bytes;
    try {
      load_corpus(path, options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message("text", {}).empty());
  CHECK(message("", {}) == path.string() + ": the file is empty");
  CHECK(message(std::string("ab\0c", 4), {}) == path.string() + ": byte 2 is zero: this is a binary file, not a text");
  CHECK(message(std::string("ab\0c", 4), {.allow_binary = true}).empty());
  CHECK(message("caf\xe9", {}).empty());
  CHECK(message("caf\xe9", {.mode = TextMode::characters}).find(path.string() + ": byte 3 begins no UTF-8 character") ==
        0);
  CHECK_THROWS_WITH_AS(load_corpus(folder / "none"), ((folder / "none").string() + ": no such file").c_str(), Error);
  CHECK_THROWS_WITH_AS(load_corpus(folder.path()), (folder.path().string() + ": not a file").c_str(), Error);
  std::ofstream(path) << "abcx";
  CHECK_THROWS_AS(load_corpus(path, TextTokenizer::of_characters("abc")), Error);
}
