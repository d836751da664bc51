// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/data/batches.hpp"

#include <doctest/doctest.h>

#include <set>

using namespace diffmamba;

namespace {
std::vector<std::uint16_t> counting(Index size) {
  std::vector<std::uint16_t> tokens(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::uint16_t>(i);
  return tokens;
}
}  // namespace

TEST_CASE("batches: an epoch shows every window once, targets follow inputs, epochs differ") {
  for (const Index size : {8, 9, 13, 101, 1000}) {
    const auto tokens = counting(size);
    Batches loop(tokens, {.batch = 1, .length = 7, .seed = 3});
    CAPTURE(size);
    std::vector<std::vector<int>> orders;
    for (int epoch = 0; epoch < 3; ++epoch) {
      std::set<int> begins;
      orders.emplace_back();
      for (Index w = 0; w < loop.windows(); ++w) {
        const Batch& batch = loop.next();
        for (Index t = 0; t < 7; ++t) {
          CHECK(batch.inputs(0, t) == batch.inputs(0, 0) + t);
          CHECK(batch.targets(0, t) == batch.inputs(0, t) + 1);
        }
        CHECK(batch.targets(0, 6) < size);
        begins.insert(batch.inputs(0, 0));
        orders.back().push_back(batch.inputs(0, 0));
      }
      CHECK(static_cast<Index>(begins.size()) == loop.windows());
      int last = -7;
      for (int begin : begins) {
        CHECK(begin - last >= 7);  // windows do not overlap
        last = begin;
      }
    }
    if (size >= 101) CHECK(orders[0] != orders[1]);
    if (size >= 101) CHECK(loop.windows() >= (size - 1) / 7 - 1);
  }
}

TEST_CASE("batches: a position is all that a restart needs; the seed decides the order") {
  const auto tokens = counting(500);
  const BatchOptions options{.batch = 3, .length = 10, .seed = 11};
  Batches first(tokens, options), second(tokens, options), other(tokens, {.batch = 3, .length = 10, .seed = 12});
  for (int i = 0; i < 37; ++i) first.next();
  second.seek(first.position());
  other.seek(first.position());
  bool differs = false;
  for (int i = 0; i < 40; ++i) {
    const Batch &a = first.next(), &b = second.next(), &c = other.next();
    for (Index k = 0; k < a.inputs.size(); ++k) {
      CHECK(a.inputs.data()[k] == b.inputs.data()[k]);
      differs |= a.inputs.data()[k] != c.inputs.data()[k];
    }
  }
  CHECK(differs);
}

TEST_CASE("batches: a range of the length that was asked for") {
  const auto tokens = counting(50);
  Index seen = 0;
  for (const auto& batch : batches(tokens, {.batch = 2, .length = 4, .count = 5})) seen += batch.tokens();
  CHECK(seen == 40);
  for (const auto& batch : batches(tokens, {.batch = 2, .length = 4, .count = 0})) seen += batch.tokens();
  CHECK(seen == 40);
  for (const auto& batch : batches(tokens, {.batch = 2, .length = 4}))
    if ((seen += batch.tokens()) > 1000) break;
  CHECK(seen > 1000);
}

TEST_CASE("batches: too short a text and empty batches are refused") {
  const auto tokens = counting(8);
  CHECK_THROWS_WITH_AS(batches(tokens, {.batch = 1, .length = 8}),
                       "batches: a text of 8 tokens is too short, windows of length 8 need 9", Error);
  CHECK_THROWS_WITH_AS(batches(tokens, {.batch = 0, .length = 2}), "batches: the batch size is 0, expected at least 1",
                       Error);
  CHECK_THROWS_WITH_AS(batches(tokens, {.batch = 1, .length = 0}), "batches: the length is 0, expected at least 1",
                       Error);
}
