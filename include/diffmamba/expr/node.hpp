// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>     // std::same_as
#include <tuple>        // std::tuple
#include <type_traits>  // std::is_base_of_v
#include <utility>      // std::move

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/tensor/tensor.hpp"

/// What an expression is made of. `silu(x) * w + 0.5f` computes nothing: it builds a value of nested node types, and
/// assigning it to a tensor (expr/evaluate.hpp) runs over the elements once.
///
/// Who owns what. A named tensor enters as a view of it; a temporary tensor, the result of a function say, is moved
/// into its node. So everything that is assigned in the statement that writes it is safe, `y = x + matmul(a, b)`
/// included. What is not safe is to keep an expression for later, because the tensors that it looks at may be gone by
/// then:
///
///   auto e = x + y;         // allowed: nothing has happened yet
///   z = e;                  // refused by a static_assert: an expression is used where it is written
///   z = std::move(e);       // allowed: the writer vouches for x and y
///
/// The types cannot see one thing: a function that returns an expression over its own local tensors. Let such a
/// function return a Tensor.
namespace diffmamba {

namespace detail {

struct ExpressionBase {};

/// The type of scalars and of masks of bool: they take the type of what they meet.
struct AnyType {};

template <class T>
struct ComputeType {
  using type = accumulate_t<T>;
};
template <>
struct ComputeType<bool> {
  using type = AnyType;
};

template <class T>
inline constexpr bool computable = std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, AnyType>;

template <class A, class B>
struct Join {
  static_assert(computable<A> && computable<B>,
                "diffmamba: expressions compute in float or double; convert integers with cast<float>(...)");
  static_assert(!computable<A> || !computable<B> || std::is_same_v<A, B> || std::is_same_v<A, AnyType> ||
                    std::is_same_v<B, AnyType>,
                "diffmamba: float and double do not mix in one expression; convert one side with cast<float>(...) or "
                "cast<double>(...)");
  using type = std::conditional_t<std::is_same_v<A, AnyType>, B, A>;
};

/// The device of scalars.
struct AnyDevice {};

template <class A, class B>
struct JoinDevice {
  static_assert(std::is_same_v<A, B> || std::is_same_v<A, AnyDevice> || std::is_same_v<B, AnyDevice>,
                "diffmamba: operands live on different devices; copy one with to<cpu>(...) or to<cuda>(...)");
  using type = std::conditional_t<std::is_same_v<A, AnyDevice>, B, A>;
};

template <template <class, class> class Combine, class First, class... Rest>
struct Fold {
  using type = First;
};
template <template <class, class> class Combine, class First, class Second, class... Rest>
struct Fold<Combine, First, Second, Rest...> {
  using type = typename Fold<Combine, typename Combine<First, Second>::type, Rest...>::type;
};

template <class T, int Rank, class D>
std::true_type is_view_of(const View<T, Rank, D>*);
std::false_type is_view_of(...);
template <class X>
inline constexpr bool is_view = decltype(is_view_of(static_cast<X*>(nullptr)))::value;

template <class X>
inline constexpr bool is_tensor = false;
template <class T, int Rank, class D>
inline constexpr bool is_tensor<Tensor<T, Rank, D>> = true;

/// NumPy's rule: axes are matched from the last; sizes agree or one of them is 1.
template <int RankA, int RankB>
auto broadcast(const Extents<RankA>& a, const Extents<RankB>& b) {
  constexpr int rank = RankA > RankB ? RankA : RankB;
  Extents<rank> result;
  for (int i = 1; i <= rank; ++i) {
    const Index x = i <= RankA ? a.sizes[RankA - i] : 1, y = i <= RankB ? b.sizes[RankB - i] : 1;
    if (x != y && x != 1 && y != 1) fail("expression: the shapes ", a, " and ", b, " do not broadcast");
    result.sizes[rank - i] = x == 1 ? y : x;
  }
  return result;
}
template <int Rank, class... More>
auto broadcast(const Extents<Rank>& a) {
  return a;
}
template <int RankA, int RankB, class... More>
auto broadcast(const Extents<RankA>& a, const Extents<RankB>& b, const More&... more) requires(sizeof...(More) > 0) {
  return broadcast(broadcast(a, b), more...);
}

template <class ExtentsType>
inline constexpr int rank_of = 0;
template <int Rank>
inline constexpr int rank_of<Extents<Rank>> = Rank;

template <class Compute, bool IsMask>
using value_type_of =
    std::conditional_t<IsMask, bool, std::conditional_t<std::is_same_v<Compute, AnyType>, float, Compute>>;

template <class F, class... Args>
constexpr bool masks_fit() {
  int position = 0;
  return (... && (Args::is_mask == (position++ < F::masks)));
}

/// Evaluates an expression of rank 0; defined with the evaluators.
template <class E>
auto value_of(const E& expression);

}  // namespace detail

template <class E>
requires(std::is_base_of_v<detail::ExpressionBase, E>) inline constexpr bool is_expression<E> = true;

/// Tensors, views and expressions.
template <class X>
concept Operand = is_expression<std::remove_cvref_t<X>> || detail::is_tensor<std::remove_cvref_t<X>> ||
    detail::is_view<std::remove_cvref_t<X>>;

/// Numbers: they take the element type of what they are combined with.
template <class X>
concept Scalar = std::is_arithmetic_v<std::remove_cvref_t<X>> || std::same_as<std::remove_cvref_t<X>, bfloat16> ||
    std::same_as<std::remove_cvref_t<X>, half>;

template <class X>
concept OperandOrScalar = Operand<X> || Scalar<X>;

namespace detail {

/// What every node can do: an expression of rank 0 is a number, `float loss = mean(x * x);`.
template <class Node>
struct Expression : ExpressionBase {
  /// The number that an expression of rank 0 stands for.
  auto value() && { return value_of(static_cast<const Node&>(*this)); }
  auto value() const& {
    static_assert(sizeof(Node) == 0, DIFFMAMBA_STORED_EXPRESSION);
    return 0.0f;
  }
};

/// A tensor of somebody else.
template <class T, int Rank, class D>
struct ViewNode : Expression<ViewNode<T, Rank, D>> {
  using compute_type = typename ComputeType<T>::type;
  using value_type = T;
  using device_type = D;
  static constexpr int rank = Rank;
  static constexpr bool is_mask = std::is_same_v<T, bool>;

  View<const T, Rank, D> source;

  explicit ViewNode(const View<const T, Rank, D>& view) : source(view) {
    require(static_cast<bool>(view), "expression: an operand of rank ", Rank, " is absent or was moved from");
  }
  const Extents<Rank>& extents() const { return source.extents(); }
  const View<const T, Rank, D>& view() const { return source; }
};

/// A temporary tensor, kept alive by the expression.
template <class T, int Rank, class D>
struct TensorNode : Expression<TensorNode<T, Rank, D>> {
  using compute_type = typename ComputeType<T>::type;
  using value_type = T;
  using device_type = D;
  static constexpr int rank = Rank;
  static constexpr bool is_mask = std::is_same_v<T, bool>;

  Tensor<T, Rank, D> source;

  explicit TensorNode(Tensor<T, Rank, D>&& tensor) : source(std::move(tensor)) {
    require(static_cast<bool>(source), "expression: an operand of rank ", Rank, " is absent or was moved from");
  }
  TensorNode(TensorNode&&) = default;  // and no copies: an expression is used once
  const Extents<Rank>& extents() const { return source.extents(); }
  View<const T, Rank, D> view() const {
    require(static_cast<bool>(source), "expression: it was used already, and a temporary in it is gone");
    return source.view();
  }
};

/// A number, kept in double and rounded once to the element type of what it meets.
struct ScalarNode : Expression<ScalarNode> {
  using compute_type = AnyType;
  using value_type = double;
  using device_type = AnyDevice;
  static constexpr int rank = 0;
  static constexpr bool is_mask = false;

  double number;

  explicit ScalarNode(double x) : number(x) {}
  Extents<0> extents() const { return {}; }
};

template <class X>
auto as_node(X&& x) {
  using Bare = std::remove_cvref_t<X>;
  if constexpr (is_expression<Bare>) {
    static_assert(!std::is_lvalue_reference_v<X>, DIFFMAMBA_STORED_EXPRESSION);
    return Bare(std::move(x));
  } else if constexpr (is_tensor<Bare>) {
    using T = typename Bare::value_type;
    using D = typename Bare::device_type;
    if constexpr (std::is_lvalue_reference_v<X> || std::is_const_v<std::remove_reference_t<X>>)
      return ViewNode<T, Bare::rank, D>(x.view());
    else
      return TensorNode<T, Bare::rank, D>(std::move(x));
  } else if constexpr (is_view<Bare>) {
    return ViewNode<typename Bare::value_type, Bare::rank, typename Bare::device_type>(x);
  } else {
    return ScalarNode(static_cast<double>(x));
  }
}

template <class X>
using node_t = decltype(as_node(std::declval<X>()));

/// A function of the elements at one place of several operands. `F` is called with registers (Lanes<float>), on a GPU
/// with numbers. F::masks says how many leading arguments are masks (results of comparisons, tensors of bool),
/// F::gives_mask whether it is a comparison itself.
template <class F, class... Args>
struct MapNode : Expression<MapNode<F, Args...>> {
  using compute_type = typename Fold<Join, AnyType, typename Args::compute_type...>::type;
  using device_type = typename Fold<JoinDevice, AnyDevice, typename Args::device_type...>::type;
  static constexpr bool is_mask = F::gives_mask;
  using value_type = value_type_of<compute_type, is_mask>;
  using ExtentsType = decltype(broadcast(std::declval<const Args&>().extents()...));
  static constexpr int rank = rank_of<ExtentsType>;

  [[no_unique_address]] F function;
  std::tuple<Args...> args;
  ExtentsType sizes;

  explicit MapNode(F f, Args&&... nodes)
      : function(std::move(f)), args(std::move(nodes)...), sizes(common_extents(std::index_sequence_for<Args...>{})) {
    static_assert(masks_fit<F, Args...>(),
                  "diffmamba: a comparison or tensor of bool is no number and a number no condition; select with "
                  "where(condition, a, b) or convert with cast<float>(...)");
  }
  const ExtentsType& extents() const { return sizes; }
  operator value_type() && requires(rank == 0) { return std::move(*this).value(); }

 private:
  template <std::size_t... I>
  ExtentsType common_extents(std::index_sequence<I...>) const {
    return broadcast(std::get<I>(args).extents()...);
  }
};

/// The elements in another type: what is below computes in its own, the rest in T.
template <class T, class Arg>
struct CastNode : Expression<CastNode<T, Arg>> {
  static_assert(
      std::is_same_v<T, float> || std::is_same_v<T, double>,
      "diffmamba: cast<T> converts to the types that expressions compute in, float and double; other types are "
      "rounded to when they are assigned to");
  using compute_type = T;
  using device_type = typename Arg::device_type;
  static constexpr bool is_mask = false;
  using value_type = T;
  static constexpr int rank = Arg::rank;

  Arg arg;

  explicit CastNode(Arg&& node) : arg(std::move(node)) {}
  decltype(auto) extents() const { return arg.extents(); }
  operator T() && requires(rank == 0) { return std::move(*this).value(); }
};

/// `Op` (sum, mean, max, min) over the axes for which Reduced[axis] is true; with Keep they stay as axes of one
/// element.
template <class Op, bool Keep, class Arg, bool... Reduced>
struct ReductionNode : Expression<ReductionNode<Op, Keep, Arg, Reduced...>> {
  static_assert(!Arg::is_mask,
                "diffmamba: a comparison or tensor of bool is no number; count with sum(cast<float>(a > b))");
  using compute_type = typename Join<AnyType, typename Arg::compute_type>::type;
  using device_type = typename Arg::device_type;
  static constexpr bool is_mask = false;
  using value_type = value_type_of<compute_type, false>;
  static constexpr int reduced_axes = (0 + ... + static_cast<int>(Reduced));
  static constexpr int rank = Keep ? Arg::rank : Arg::rank - reduced_axes;
  static constexpr bool reduced[sizeof...(Reduced) + 1] = {Reduced..., false};

  Arg arg;
  Extents<rank> sizes;

  explicit ReductionNode(Arg&& node) : arg(std::move(node)) {
    Index count = 1;
    for (int axis_in = 0, axis_out = 0; axis_in < Arg::rank; ++axis_in) {
      const Index size = arg.extents().sizes[axis_in];
      if (reduced[axis_in]) count *= size;
      if (!reduced[axis_in] || Keep) sizes.sizes[axis_out++] = reduced[axis_in] ? 1 : size;
    }
    require(count > 0 || Op::empty_is_defined, Op::name, ": over no element of a tensor ", arg.extents());
  }
  const Extents<rank>& extents() const { return sizes; }
  operator value_type() && requires(rank == 0) { return std::move(*this).value(); }
};

}  // namespace detail

}  // namespace diffmamba
