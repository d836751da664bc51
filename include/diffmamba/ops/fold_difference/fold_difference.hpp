// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>        // std::array
#include <type_traits>  // std::type_identity_t

#include "diffmamba/core/gradient_mode.hpp"
#include "diffmamba/device/workspace.hpp"
#include "diffmamba/ops/contract.hpp"  // require_operand

/// The output projections of the two paths of a differential mixer and the subtraction behind them, as one matrix:
///
///   m1(x) - lambda m2(x) = [g1 | g2] [W1 | -lambda W2]^T + b1 - lambda b2
///   folded weight = scale * [W1 | -lambda W2]        folded bias = scale * (b1 - lambda b2)
///
/// with lambda one number, or one for each row of the weights. The columns of the folded weight have the order of the
/// tensor that both paths write, role by role: with the roles r and s the columns are [r of W1 | r of -lambda W2 | s of
/// W1 | s of -lambda W2]. Backwards, with dF and df the gradients of the folded weight and bias:
///
///   dW1 = scale dF_1      dW2 = -scale lambda dF_2      dlambda = -scale (sum(W2 * dF_2) + sum(b2 * df))
///
/// and the biases like the weights.
namespace diffmamba::fold_difference {

/// At most so many roles.
inline constexpr int max_roles = 4;

struct Options {
  double scale = 1.0;
  std::array<Index, max_roles> roles = {};  // columns of each role, in order; none: one role, all columns
};

/// Options with any container of role sizes.
template <class Sizes>
Options options_of(double scale, const Sizes& roles) {
  Options options{.scale = scale};
  std::size_t count = 0;
  for (const Index size : roles) {
    require(count < options.roles.size(), "fold_difference: more than ", max_roles, " roles");
    options.roles[count++] = size;
  }
  return options;
}

template <class T, Device DeviceType = cpu>
struct Inputs {
  RequiredView<const T, 3, DeviceType> weight;                // (2, rows, width): W1 and W2
  RequiredView<const accumulate_t<T>, 1, DeviceType> lambda;  // (1) or (rows)
  View<const accumulate_t<T>, 2, DeviceType> bias = {};       // (2, rows): b1 and b2
};

/// Where forward writes.
template <class T, Device DeviceType = cpu>
struct OutputViews {
  RequiredView<T, 2, DeviceType> weight;           // (rows, 2 width)
  View<accumulate_t<T>, 1, DeviceType> bias = {};  // (rows), exactly with a bias
};

/// dL/d(folded weight) and bias.
template <class T, Device DeviceType = cpu>
struct OutputGradients {
  RequiredView<const accumulate_t<T>, 2, DeviceType> dweight;  // (rows, 2 width)
  View<const accumulate_t<T>, 1, DeviceType> dbias = {};       // (rows), exactly with a bias
};

/// Where backward writes; absent ones are not computed. The mode concerns all of them.
template <class T, Device DeviceType = cpu>
struct GradientViews {
  View<accumulate_t<T>, 3, DeviceType> dweight = {};  // (2, rows, width)
  View<accumulate_t<T>, 2, DeviceType> dbias = {};    // (2, rows)
  View<accumulate_t<T>, 1, DeviceType> dlambda = {};  // as lambda
};

/// The column of the folded weight that column `i` of path 0 or 1 becomes.
DIFFMAMBA_HOST_DEVICE inline Index folded_column(const Index (&roles)[max_roles], int path, Index i) {
  Index before = 0;
  for (int role = 0; role < max_roles; ++role) {
    const Index size = roles[role];
    if (i < before + size) return 2 * before + path * size + (i - before);
    before += size;
  }
  return 0;
}

namespace detail {
/// The roles as a plain array, which device code can read.
struct Roles {
  Index sizes[max_roles] = {};

  Roles(const Options& options, Index width) {
    Index sum = 0;
    for (std::size_t k = 0; k < options.roles.size(); ++k) sum += sizes[k] = options.roles[k];
    if (sum == 0) sizes[0] = width;
  }
};
}  // namespace detail

/// Throws Error, naming the argument and both shapes.
template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options) {
  constexpr const char* op = "fold_difference";
  const Index rows = in.weight.extent(1), width = in.weight.extent(2);
  require_operand(op, "weight", in.weight, Extents{Index{2}, rows, width});
  require(in.lambda.extent(0) == 1 || in.lambda.extent(0) == rows, op, ": lambda is ", in.lambda.extents(),
          ", expected (1) or (", rows, ")");
  require_dense_rows(op, "lambda", in.lambda);
  require_operand(op, "bias", in.bias, Extents{Index{2}, rows});
  Index sum = 0;
  for (const Index size : options.roles) {
    require(size >= 0, op, ": a role has ", size, " columns");
    sum += size;
  }
  require(sum == 0 || sum == width, op, ": the roles have ", sum, " columns, the weights ", width);
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputViews<T, DeviceType>& outputs) {
  constexpr const char* op = "fold_difference";
  check(in, options);
  require_operand(op, "the folded weight", outputs.weight, Extents{in.weight.extent(1), 2 * in.weight.extent(2)});
  require(bool(outputs.bias) == bool(in.bias), op, ": bias and folded bias must be given together");
  require_operand(op, "the folded bias", outputs.bias, Extents{in.weight.extent(1)});
}

template <class T, Device DeviceType>
void check(const Inputs<T, DeviceType>& in, const Options& options, const OutputGradients<T, DeviceType>& upstream,
           const GradientViews<T, DeviceType>& gradients) {
  constexpr const char* op = "fold_difference";
  check(in, options);
  require_operand(op, "the gradient of the folded weight", upstream.dweight,
                  Extents{in.weight.extent(1), 2 * in.weight.extent(2)});
  require(bool(upstream.dbias) == bool(in.bias), op,
          ": bias and the gradient of the folded bias must be given together");
  require_operand(op, "the gradient of the folded bias", upstream.dbias, Extents{in.weight.extent(1)});
  require_operand(op, "dweight", gradients.dweight, in.weight.extents());
  require(in.bias || !gradients.dbias, op, ": dbias is asked for without bias");
  require_operand(op, "dbias", gradients.dbias, in.bias.extents());
  require_operand(op, "dlambda", gradients.dlambda, in.lambda.extents());
}

/// Bytes of workspace that backward takes at most; forward needs none.
template <class T, Device DeviceType>
std::size_t workspace_bytes(const Inputs<T, DeviceType>& in) {
  return Workspace<DeviceType>::template bytes_of<accumulate_t<T>>(in.weight.extent(1));
}

// fold_difference_forward.hpp
//   void forward(in, options, outputs);
// fold_difference_backward.hpp
//   void backward(in, options, upstream, gradients, workspace, mode = GradientMode::assign);

// On a GPU, defined in fold_difference_forward.cuh and fold_difference_backward.cuh.
template <class T>
void forward(const Inputs<T, cuda>& in, const Options& options,
             const std::type_identity_t<OutputViews<T, cuda>>& outputs);
template <class T>
void backward(const Inputs<T, cuda>& in, const Options& options,
              const std::type_identity_t<OutputGradients<T, cuda>>& upstream,
              const std::type_identity_t<GradientViews<T, cuda>>& gradients, Workspace<cuda>& workspace,
              GradientMode mode = GradientMode::assign);

}  // namespace diffmamba::fold_difference
