// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/ops/matmul/matmul.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// The linear layer: y = x weight^T + bias, with the weight as every checkpoint stores it, (out, in).
///
///   Tensor y = linear::forward({.x = x, .weight = w})              linear::forward(in, y): into the caller's memory
///   auto [dx, dweight, dbias] = linear::backward(in, dy)           linear::backward(in, dy, {.dx = ..}, mode)
///
/// Nothing is saved for the backward pass: it takes the same Inputs again. (batch, length, channels) comes as
/// x.reshape(Extents{batch * length, channels}), which copies nothing, slices of the last axis included. A weight may
/// be a slice of a larger one. A head that is tied to the embedding is this operator with the embedding's weight, whose
/// gradients then add up: GradientMode::add into the same dweight.
namespace diffmamba::linear {

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 2, DeviceType> x;                // (rows, in)
  RequiredView<const T, 2, DeviceType> weight;           // (out, in)
  View<const accumulate_t<T>, 1, DeviceType> bias = {};  // (out)
};

/// What backward returns. dbias is empty where there is no bias.
template <class T, Device DeviceType = cpu>
struct Gradients {
  Tensor<T, 2, DeviceType> dx;                     // (rows, in)
  Tensor<accumulate_t<T>, 2, DeviceType> dweight;  // (out, in)
  Tensor<accumulate_t<T>, 1, DeviceType> dbias;    // (out)
};

/// What backward writes; absent ones are not computed. dx is assigned, dweight and dbias follow the GradientMode.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<T, 2, DeviceType> dx = {};                     // (rows, in)
  View<accumulate_t<T>, 2, DeviceType> dweight = {};  // (out, in)
  View<accumulate_t<T>, 1, DeviceType> dbias = {};    // (out)
};

template <class T>
void check(const Inputs<T>& in) {
  require(in.x.extent(1) == in.weight.extent(1), "linear: x has ", in.x.extent(1), " channels but weight takes ",
          in.weight.extent(1), " (x: ", in.x.extents(), ", weight: ", in.weight.extents(), ")");
  if (in.bias) require_shape("linear", "bias", in.bias, Extents<1>{in.weight.extent(0)});
}

}  // namespace diffmamba::linear
