// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/ops/embedding/embedding.hpp"

#include <cstring>

#include "diffmamba/ops/embedding/embedding_backward.hpp"
#include "diffmamba/ops/embedding/embedding_forward.hpp"
#include "diffmamba/ops/linear/linear_backward.hpp"
#include "diffmamba/ops/linear/linear_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::check_gradient;
using diffmamba::test::dot;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;

namespace {

/// Tokens with many repetitions.
template <class Token>
Tensor<Token, 2> some_tokens(Index batch, Index length, Index vocab_size) {
  Tensor<Token, 2> tokens({batch, length});
  for (Index i = 0; i < tokens.size(); ++i)
    tokens.data()[i] = static_cast<Token>(i % 3 == 0 ? vocab_size - 1 : i * i % vocab_size);
  return tokens;
}

}  // namespace

TEST_CASE_TEMPLATE("embedding: rows of the weight, and their sums back", Token, std::int32_t, std::int64_t) {
  for (const Index length : {0, 1, 13})
    for (const Index d_model : {1, 63, 64, 130}) {
      const auto tokens = some_tokens<Token>(2, length, 7);
      const auto weight = random_tensor<double, 2>({7, d_model}, 1);
      const auto dout = random_tensor<double, 3>({2, length, d_model}, 2);
      const embedding::Inputs<double, Token> in{.tokens = tokens, .weight = weight};
      const auto out = embedding::forward(in);
      Tensor<double, 2> want(weight.extents());
      for (Index b = 0; b < 2; ++b)
        for (Index t = 0; t < length; ++t)
          for (Index c = 0; c < d_model; ++c) {
            CHECK(out(b, t, c) == weight(tokens(b, t), c));
            want(tokens(b, t), c) += dout(b, t, c);
          }
      auto dweight = embedding::backward(in, dout);
      CHECK(relative_error(dweight, want) == 0);
      embedding::backward(in, dout, dweight, GradientMode::add);
      for (Index i = 0; i < want.size(); ++i)
        CHECK(dweight.data()[i] == doctest::Approx(2 * want.data()[i]).epsilon(1e-12));
    }
}

TEST_CASE("embedding: the gradient of a tied weight, embedding and head, against central differences") {
  const auto tokens = some_tokens<std::int32_t>(2, 5, 6);
  auto weight = random_tensor<double, 2>({6, 4}, 1);
  const auto dlogits = random_tensor<double, 2>({10, 6}, 2);
  const embedding::Inputs<double> in{.tokens = tokens, .weight = weight};
  const auto loss = [&] {
    const auto hidden = embedding::forward(in);
    return dot(linear::forward(linear::Inputs<double>{.x = hidden.reshape(Extents{10, 4}), .weight = weight}), dlogits);
  };
  const auto hidden = embedding::forward(in);
  auto [dhidden, dweight, dbias] =
      linear::backward(linear::Inputs<double>{.x = hidden.reshape(Extents{10, 4}), .weight = weight}, dlogits);
  embedding::backward(in, dhidden.reshape(Extents{2, 5, 4}), dweight, GradientMode::add);
  check_gradient("weight", weight, dweight, loss);
}

TEST_CASE("embedding: strided tokens, a window of a weight, 16-bit weights with float gradients") {
  const auto wide = some_tokens<std::int32_t>(3, 8, 5);
  const auto tokens = wide.slice<1>(2, 7);
  const auto dense = to_tensor(tokens);
  const auto all = random_tensor<float, 2>({5, 20}, 1);
  const auto weight = all.slice<1>(3, 15);
  const auto dense_weight = to_tensor(weight);
  const auto out = embedding::forward(embedding::Inputs<float>{.tokens = tokens, .weight = weight});
  CHECK(relative_error(out, embedding::forward(embedding::Inputs<float>{.tokens = dense, .weight = dense_weight})) ==
        0);

  const auto small = random_tensor<bfloat16, 2>({5, 20}, 1);
  const auto dout = random_tensor<bfloat16, 3>({3, 5, 20}, 2);
  const Tensor<float, 2> got =
      embedding::backward(embedding::Inputs<bfloat16>{.tokens = tokens, .weight = small}, dout);
  Tensor<double, 2> want({5, 20});
  for (Index b = 0; b < 3; ++b)
    for (Index t = 0; t < 5; ++t)
      for (Index c = 0; c < 20; ++c) want(tokens(b, t), c) += static_cast<double>(dout(b, t, c));
  CHECK(relative_error(got, want) < 1e-6);
}

TEST_CASE("embedding: the same bits on one and two threads") {
  const auto tokens = some_tokens<std::int32_t>(4, 100, 50);
  const auto weight = random_tensor<float, 2>({50, 300}, 1);
  const auto dout = random_tensor<float, 3>({4, 100, 300}, 2);
  const auto run = [&](int count) {
    Threads threads(count);
    return embedding::backward(embedding::Inputs<float>{.tokens = tokens, .weight = weight}, dout);
  };
  const auto one = run(1), two = run(2);
  CHECK(std::memcmp(one.data(), two.data(), static_cast<std::size_t>(one.size()) * sizeof(float)) == 0);
}

TEST_CASE("embedding: mistakes") {
  Tensor<std::int32_t, 2> tokens({2, 3});
  const Tensor<float, 2> weight({5, 4});
  const embedding::Inputs<float> in{.tokens = tokens, .weight = weight};
  Tensor<float, 3> wrong({2, 3, 5});
  CHECK_THROWS_WITH_AS(embedding::forward(in, wrong),
                       "embedding: out has the shape (2, 3, 5), expected (2, 3, 4)", Error);
  tokens(1, 2) = 5;
  CHECK_THROWS_WITH_AS(embedding::forward(in), "embedding: token 5 at position (1, 2) is outside the vocabulary of 5",
                       Error);
  tokens(1, 2) = -1;
  CHECK_THROWS_WITH_AS(embedding::forward(in), "embedding: token -1 at position (1, 2) is outside the vocabulary of 5",
                       Error);
}
