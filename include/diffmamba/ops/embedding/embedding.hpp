// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>  // std::int32_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// The embedding: out[b, t] = weight[tokens[b, t]], and backwards dweight[v] = sum of dout[b, t] over tokens[b, t] = v,
/// in the order of the positions.
///
///   Tensor out = embedding::forward({.tokens = tokens, .weight = w})           embedding::forward(in, out)
///   Tensor dw = embedding::backward(in, dout)                                  embedding::backward(in, dout, dw, mode)
///
/// Nothing is saved. A tied head is linear::forward over the same weight; its dweight and this one add up in one tensor
/// (the head assigns, the embedding adds, or both add). A token below 0 or from vocab_size on throws Error with its
/// position, before anything is written. A weight padded to more rows than the vocabulary has simply has unused rows.
namespace diffmamba::embedding {

template <class T, class Token = std::int32_t, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const Token, 2, DeviceType> tokens;  // (batch, length), int32 or int64
  RequiredView<const T, 2, DeviceType> weight;      // (vocab_size, d_model), rows contiguous
};

template <class T, class Token>
void check(const Inputs<T, Token>& in) {
  static_assert(std::is_same_v<Token, std::int32_t> || std::is_same_v<Token, std::int64_t>,
                "embedding: tokens are int32 or int64");
  const Index vocab_size = in.weight.extent(0);
  require(in.weight.stride(1) == 1 || in.weight.extent(1) <= 1, "embedding: the rows of weight must be contiguous");
  for (Index b = 0; b < in.tokens.extent(0); ++b)
    for (Index t = 0; t < in.tokens.extent(1); ++t) {
      const Token token = in.tokens(b, t);
      require(0 <= token && token < vocab_size, "embedding: token ", token, " at position (", b, ", ", t,
              ") is outside the vocabulary of ", vocab_size);
    }
}

}  // namespace diffmamba::embedding
