// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/expr/node.hpp"
#include "diffmamba/math/exp.hpp"
#include "diffmamba/math/gelu.hpp"
#include "diffmamba/math/log.hpp"
#include "diffmamba/math/minmax.hpp"
#include "diffmamba/math/power.hpp"
#include "diffmamba/math/relu.hpp"
#include "diffmamba/math/sigmoid.hpp"
#include "diffmamba/math/silu.hpp"
#include "diffmamba/math/softplus.hpp"
#include "diffmamba/math/sqrt.hpp"
#include "diffmamba/math/tanh.hpp"

// Operators and functions of tensors, views, expressions and numbers. Each only builds a node.

namespace diffmamba {

namespace detail {

template <class F, class... Xs>
auto make_map(F f, Xs&&... xs) {
  return MapNode<F, node_t<Xs>...>(std::move(f), as_node(std::forward<Xs>(xs))...);
}

/// A function of the user's.
template <class F>
struct UserFunction {
  static constexpr int masks = 0;
  static constexpr bool gives_mask = false;
  F f;
  template <class... V>
  DIFFMAMBA_HOST_DEVICE auto operator()(V... v) const {
    return f(v...);
  }
};

template <class T, class X>
auto make_cast(X&& x) {
  return CastNode<T, node_t<X>>(as_node(std::forward<X>(x)));
}

}  // namespace detail

/// f of the elements of one or more operands, f a template over the type of the element, as math/ has them:
/// y = map([](auto x) { return x * sigmoid(x); }, x);
template <class F, OperandOrScalar... Xs>
requires(Operand<Xs> || ...) auto map(F f, Xs&&... xs) {
  return detail::make_map(detail::UserFunction<F>{std::move(f)}, std::forward<Xs>(xs)...);
}

/// The elements as float or double: what an expression needs that meets both, or integers. A comparison becomes 0
/// and 1.
template <class T, Operand X>
auto cast(X&& x) {
  return detail::make_cast<T>(std::forward<X>(x));
}

// A function object, and a function that makes a node with it.
#define DIFFMAMBA_FUNCTION(Object, arguments_are_masks, is_comparison, parameters, body) \
  namespace detail {                                                                     \
  struct Object {                                                                        \
    static constexpr int masks = arguments_are_masks;                                    \
    static constexpr bool gives_mask = is_comparison;                                    \
    template <class V>                                                                   \
    DIFFMAMBA_HOST_DEVICE auto operator() parameters const {                             \
      return body;                                                                       \
    }                                                                                    \
  };                                                                                     \
  }
#define DIFFMAMBA_UNARY(name, Object)                              \
  DIFFMAMBA_FUNCTION(Object, 0, false, (V x), name(x))             \
  template <Operand X>                                             \
  auto name(X&& x) {                                               \
    return detail::make_map(detail::Object{}, std::forward<X>(x)); \
  }
#define DIFFMAMBA_BINARY(name, Object, arguments_are_masks, is_comparison, body)       \
  DIFFMAMBA_FUNCTION(Object, arguments_are_masks, is_comparison, (V a, V b), body)     \
  template <OperandOrScalar A, OperandOrScalar B>                                      \
  requires(Operand<A> || Operand<B>) auto name(A&& a, B&& b) {                         \
    return detail::make_map(detail::Object{}, std::forward<A>(a), std::forward<B>(b)); \
  }

DIFFMAMBA_BINARY(operator+, Add, 0, false, a + b)
DIFFMAMBA_BINARY(operator-, Subtract, 0, false, a - b)
DIFFMAMBA_BINARY(operator*, Multiply, 0, false, a* b)
DIFFMAMBA_BINARY(operator/, Divide, 0, false, a / b)
DIFFMAMBA_BINARY(operator<, Less, 0, true, a < b)
DIFFMAMBA_BINARY(operator<=, LessEqual, 0, true, a <= b)
DIFFMAMBA_BINARY(operator>, Greater, 0, true, a > b)
DIFFMAMBA_BINARY(operator>=, GreaterEqual, 0, true, a >= b)
DIFFMAMBA_BINARY(operator==, Equal, 0, true, a == b)
DIFFMAMBA_BINARY(operator!=, NotEqual, 0, true, a != b)
DIFFMAMBA_BINARY(operator&, And, 2, true, a& b)  // of comparisons and tensors of bool
DIFFMAMBA_BINARY(operator|, Or, 2, true, a | b)
DIFFMAMBA_BINARY(maximum, Maximum, 0, false, maximum(a, b))
DIFFMAMBA_BINARY(minimum, Minimum, 0, false, minimum(a, b))
DIFFMAMBA_BINARY(pow, Pow, 0, false, pow(a, b))
DIFFMAMBA_BINARY(pow_derivative, PowDerivative, 0, false, pow_derivative(a, b))

DIFFMAMBA_FUNCTION(Negate, 0, false, (V x), -x)
template <Operand X>
auto operator-(X&& x) {
  return detail::make_map(detail::Negate{}, std::forward<X>(x));
}
DIFFMAMBA_FUNCTION(Not, 1, true, (V x), !x)
/// Of a comparison. (Of a tensor or view, `!` asks whether it is absent.)
template <class X>
requires(is_expression<std::remove_cvref_t<X>>) auto operator!(X&& x) {
  return detail::make_map(detail::Not{}, std::forward<X>(x));
}

DIFFMAMBA_UNARY(exp, Exp)
DIFFMAMBA_UNARY(log, Log)
DIFFMAMBA_UNARY(log1p, Log1p)
DIFFMAMBA_UNARY(sqrt, Sqrt)
DIFFMAMBA_UNARY(rsqrt, Rsqrt)
DIFFMAMBA_UNARY(tanh, Tanh)
DIFFMAMBA_UNARY(sigmoid, Sigmoid)
DIFFMAMBA_UNARY(silu, Silu)
DIFFMAMBA_UNARY(softplus, Softplus)
DIFFMAMBA_UNARY(relu, Relu)
DIFFMAMBA_UNARY(erf, Erf)
DIFFMAMBA_UNARY(gelu, Gelu)
DIFFMAMBA_UNARY(square, Square)
DIFFMAMBA_UNARY(abs, Abs)
DIFFMAMBA_UNARY(exp_derivative, ExpDerivative)
DIFFMAMBA_UNARY(log_derivative, LogDerivative)
DIFFMAMBA_UNARY(log1p_derivative, Log1pDerivative)
DIFFMAMBA_UNARY(sqrt_derivative, SqrtDerivative)
DIFFMAMBA_UNARY(rsqrt_derivative, RsqrtDerivative)
DIFFMAMBA_UNARY(tanh_derivative, TanhDerivative)
DIFFMAMBA_UNARY(sigmoid_derivative, SigmoidDerivative)
DIFFMAMBA_UNARY(silu_derivative, SiluDerivative)
DIFFMAMBA_UNARY(softplus_derivative, SoftplusDerivative)
DIFFMAMBA_UNARY(relu_derivative, ReluDerivative)
DIFFMAMBA_UNARY(erf_derivative, ErfDerivative)
DIFFMAMBA_UNARY(gelu_derivative, GeluDerivative)
DIFFMAMBA_UNARY(square_derivative, SquareDerivative)
DIFFMAMBA_UNARY(abs_derivative, AbsDerivative)

DIFFMAMBA_FUNCTION(Clamp, 0, false, (V x, V low, V high), clamp(x, low, high))
template <Operand X, OperandOrScalar Low, OperandOrScalar High>
auto clamp(X&& x, Low&& low, High&& high) {
  return detail::make_map(detail::Clamp{}, std::forward<X>(x), std::forward<Low>(low), std::forward<High>(high));
}

namespace detail {
struct Where {
  static constexpr int masks = 1;
  static constexpr bool gives_mask = false;
  template <class M, class V>
  DIFFMAMBA_HOST_DEVICE V operator()(M condition, V yes, V no) const {
    return select(condition, yes, no);
  }
};
}  // namespace detail

/// yes where the condition (a comparison, a tensor of bool) holds, else no; both are computed.
template <Operand Condition, OperandOrScalar Yes, OperandOrScalar No>
auto where(Condition&& condition, Yes&& yes, No&& no) {
  return detail::make_map(detail::Where{}, std::forward<Condition>(condition), std::forward<Yes>(yes),
                          std::forward<No>(no));
}

#undef DIFFMAMBA_FUNCTION
#undef DIFFMAMBA_UNARY
#undef DIFFMAMBA_BINARY

}  // namespace diffmamba
