// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>      // std::int32_t
#include <type_traits>  // std::type_identity_t

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
/// position, before anything is written; on a GPU nobody looks at the tokens before the kernel does, and such a token
/// gives a row of NaN and no gradient. A weight padded to more rows than the vocabulary has simply has unused rows.
namespace diffmamba::embedding {

template <class T, class Token = std::int32_t, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const Token, 2, DeviceType> tokens;  // (batch, length), int32 or int64
  RequiredView<const T, 2, DeviceType> weight;      // (vocab_size, d_model), rows contiguous
};

template <class T, class Token, class D>
void check_shapes(const Inputs<T, Token, D>& in) {
  static_assert(std::is_same_v<Token, std::int32_t> || std::is_same_v<Token, std::int64_t>,
                "embedding: tokens are int32 or int64");
  require(in.weight.stride(1) == 1 || in.weight.extent(1) <= 1, "embedding: the rows of weight must be contiguous");
}

template <class T, class Token>
void check(const Inputs<T, Token>& in) {
  check_shapes(in);
  const Index vocab_size = in.weight.extent(0);
  for (Index b = 0; b < in.tokens.extent(0); ++b)
    for (Index t = 0; t < in.tokens.extent(1); ++t) {
      const Token token = in.tokens(b, t);
      require(0 <= token && token < vocab_size, "embedding: token ", token, " at position (", b, ", ", t,
              ") is outside the vocabulary of ", vocab_size);
    }
}

// On a GPU, in the order of the current stream (embedding_forward.cuh, embedding_backward.cuh). The gradient that comes
// back may be of accumulate_t<T>, as a residual stream of bfloat16 activations is.

template <class T, class Token>
void forward(const Inputs<T, Token, cuda>& in, const std::type_identity_t<View<T, 3, cuda>>& out);
template <class T, class Token>
void backward(const Inputs<T, Token, cuda>& in, const std::type_identity_t<View<const T, 3, cuda>>& dout,
              const std::type_identity_t<View<accumulate_t<T>, 2, cuda>>& dweight,
              GradientMode mode = GradientMode::assign);
template <class T, class Token>
requires(!std::is_same_v<T, accumulate_t<T>>)  //
    void backward(const Inputs<T, Token, cuda>& in,
                  const std::type_identity_t<View<const accumulate_t<T>, 3, cuda>>& dout,
                  const std::type_identity_t<View<accumulate_t<T>, 2, cuda>>& dweight,
                  GradientMode mode = GradientMode::assign);

}  // namespace diffmamba::embedding
