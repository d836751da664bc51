// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::min
#include <type_traits>  // std::conditional_t

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/device/pack.cuh"  // Pack, narrow
#include "diffmamba/expr/evaluate.hpp"
#include "diffmamba/expr/overlap.hpp"
#include "diffmamba/expr/packing.hpp"  // collapse

/// Assignment on a GPU: the whole expression is one kernel, on the current stream. A thread computes several
/// neighbouring elements at a time, with accesses of 16 bytes, where all operands and the target lie densely along the
/// last axis (or repeat one element there); any other layout goes element by element. 16-bit types are converted when
/// they are loaded and rounded once when they are stored; what is between is float.
///
/// A reduction within an expression is computed before it, into memory of the arena: partial results of fixed parts of
/// the elements, then those in their order, so that the bits follow from the shapes alone.
///
/// Aliasing as on the CPU: an operand may be the target itself; one that shares memory with it in another way is
/// refused.
namespace diffmamba::detail {

// --- What a kernel gets: a trivially copyable image of the nodes -----------------------------------------------------

/// `count` neighbouring elements along the last axis.
template <class Value, int V>
struct Elements {
  Value of[V];
};

template <class T, class C, int S>
struct DeviceLeaf {
  using Value = std::conditional_t<std::is_same_v<T, bool>, bool, C>;
  const T* data;
  Strides<S> strides;

  template <int V>
  __device__ void load(const Index (&index)[S], Elements<Value, V>& to) const {
    const T* from = data;
#pragma unroll
    for (int axis = 0; axis < S; ++axis) from += index[axis] * strides.sizes[axis];
    if (V == 1 || strides.sizes[S - 1] == 0) {
      const Value value = static_cast<Value>(*from);
#pragma unroll
      for (int i = 0; i < V; ++i) to.of[i] = value;
      return;
    }
    constexpr int at_once = V < pack_size<T> ? V : pack_size<T>;
#pragma unroll
    for (int i = 0; i < V; i += at_once) {
      const auto elements = load_pack<at_once>(from + i);
#pragma unroll
      for (int k = 0; k < at_once; ++k) to.of[i + k] = static_cast<Value>(elements.elements[k]);
    }
  }
};

template <class C, int S>
struct DeviceNumber {
  using Value = C;
  C number;
  template <int V>
  __device__ void load(const Index (&)[S], Elements<Value, V>& to) const {
#pragma unroll
    for (int i = 0; i < V; ++i) to.of[i] = number;
  }
};

template <class To, class Arg, int S>
struct DeviceCast {
  using Value = To;
  Arg arg;
  template <int V>
  __device__ void load(const Index (&index)[S], Elements<Value, V>& to) const {
    Elements<typename Arg::Value, V> from;
    arg.load(index, from);
#pragma unroll
    for (int i = 0; i < V; ++i) to.of[i] = static_cast<To>(from.of[i]);
  }
};

/// The arguments of a function, one within the other. (std::tuple is for the host.)
template <class... Args>
struct DeviceArguments {};
template <class First, class... Rest>
struct DeviceArguments<First, Rest...> {
  First first;
  DeviceArguments<Rest...> rest;
};

template <class F, class C, int S, class... Args>
struct DeviceMap {
  using Value = std::conditional_t<F::gives_mask, bool, C>;
  F function;
  DeviceArguments<Args...> args;

  template <int V>
  __device__ void load(const Index (&index)[S], Elements<Value, V>& to) const {
    apply(args, index, to);
  }

 private:
  template <int V, class First, class... Rest, class... Done>
  __device__ void apply(const DeviceArguments<First, Rest...>& left, const Index (&index)[S], Elements<Value, V>& to,
                        const Done&... done) const {
    Elements<typename First::Value, V> values;
    left.first.load(index, values);
    apply(left.rest, index, to, done..., values);
  }
  template <int V, class... Done>
  __device__ void apply(const DeviceArguments<>&, const Index (&)[S], Elements<Value, V>& to,
                        const Done&... done) const {
#pragma unroll
    for (int i = 0; i < V; ++i) to.of[i] = static_cast<Value>(function(done.of[i]...));
  }
};

// --- The nodes laid over an index space, on the host -----------------------------------------------------------------

/// A node in an index space of rank S, computing in C. `each_layout` visits the strides of every leaf; `device()` is
/// what the kernel gets.
template <class Node, class C, int S>
struct Placed;

template <class T, class C, int S>
struct PlacedLeaf {
  const T* data;
  Strides<S> strides;

  template <class Visit>
  void each_layout(Visit&& visit) {
    visit(strides);
  }
  int smallest() const { return static_cast<int>(sizeof(T)); }
  bool packs(const Extents<S>& space, int count) const {
    if (strides.sizes[S - 1] == 0) return true;
    bool good = strides.sizes[S - 1] == 1 &&
                reinterpret_cast<std::uintptr_t>(data) % (sizeof(T) * std::min(count, pack_size<T>)) == 0;
    for (int a = 0; a + 1 < S; ++a) good = good && (space[a] == 1 || strides.sizes[a] % count == 0);
    return good;
  }
  void check(const Extents<S>& space, const void* target, std::size_t item, const Strides<S>& to) const {
    if (data == target && sizeof(T) == item && same_strides(strides, to, space)) return;
    require(!share_memory(Footprint(data, space, strides, sizeof(T)), Footprint(target, space, to, item)),
            "assignment: an operand shares memory with the target, but not element by element (it is shifted, "
            "transposed or broadcast); assign to another tensor first");
  }
  DeviceLeaf<T, C, S> device() const { return {data, strides}; }
};

template <class T, int Rank, class D, class C, int S>
struct Placed<ViewNode<T, Rank, D>, C, S> : PlacedLeaf<T, C, S> {
  explicit Placed(const ViewNode<T, Rank, D>& node)
      : PlacedLeaf<T, C, S>{node.view().data(), strides_in<S>(node.extents(), node.view().strides())} {}
};
template <class T, int Rank, class D, class C, int S>
struct Placed<TensorNode<T, Rank, D>, C, S> : PlacedLeaf<T, C, S> {
  explicit Placed(const TensorNode<T, Rank, D>& node)
      : PlacedLeaf<T, C, S>{node.view().data(), strides_in<S>(node.extents(), node.view().strides())} {}
};

template <class C, int S>
struct Placed<ScalarNode, C, S> {
  C number;
  explicit Placed(const ScalarNode& node) : number(static_cast<C>(node.number)) {}
  template <class Visit>
  void each_layout(Visit&&) {}
  int smallest() const { return 16; }
  bool packs(const Extents<S>&, int) const { return true; }
  void check(const Extents<S>&, const void*, std::size_t, const Strides<S>&) const {}
  DeviceNumber<C, S> device() const { return {number}; }
};

/// What an argument computes in: its own type, or that of what it meets.
template <class Node, class C>
using computes_in =
    std::conditional_t<std::is_same_v<typename Node::compute_type, AnyType>, C, typename Node::compute_type>;

/// A tensor that is cast is loaded in the new type; also one of integers.
template <class Arg, class To>
inline constexpr bool is_cast_leaf = false;
template <class T, int Rank, class D, class To>
inline constexpr bool is_cast_leaf<ViewNode<T, Rank, D>, To> = !std::is_same_v<T, bool>;
template <class T, int Rank, class D, class To>
inline constexpr bool is_cast_leaf<TensorNode<T, Rank, D>, To> = !std::is_same_v<T, bool>;

template <class To, class Arg, class C, int S>
requires(is_cast_leaf<Arg, To>) struct Placed<CastNode<To, Arg>, C, S> : Placed<Arg, To, S> {
  explicit Placed(const CastNode<To, Arg>& node) : Placed<Arg, To, S>(node.arg) {}
};
template <class To, class Arg, class C, int S>
requires(!is_cast_leaf<Arg, To>) struct Placed<CastNode<To, Arg>, C, S> : Placed<Arg, computes_in<Arg, To>, S> {
  using Base = Placed<Arg, computes_in<Arg, To>, S>;
  explicit Placed(const CastNode<To, Arg>& node) : Base(node.arg) {}
  auto device() const { return DeviceCast<To, decltype(Base::device()), S>{Base::device()}; }
};

template <class F, class... Args, class C, int S>
struct Placed<MapNode<F, Args...>, C, S> {
  F function;
  std::tuple<Placed<Args, C, S>...> args;

  explicit Placed(const MapNode<F, Args...>& node) : Placed(node, std::index_sequence_for<Args...>{}) {}
  template <class Visit>
  void each_layout(Visit&& visit) {
    std::apply([&](auto&... arg) { (arg.each_layout(visit), ...); }, args);
  }
  int smallest() const {
    return std::apply([](const auto&... arg) { return std::min({16, arg.smallest()...}); }, args);
  }
  bool packs(const Extents<S>& space, int count) const {
    return std::apply([&](const auto&... arg) { return (arg.packs(space, count) && ...); }, args);
  }
  void check(const Extents<S>& space, const void* target, std::size_t item, const Strides<S>& to) const {
    std::apply([&](const auto&... arg) { (arg.check(space, target, item, to), ...); }, args);
  }
  auto device() const {
    return DeviceMap<F, C, S, decltype(std::declval<const Placed<Args, C, S>&>().device())...>{
        function, device_arguments(std::integral_constant<std::size_t, 0>{})};
  }

 private:
  template <std::size_t... I>
  Placed(const MapNode<F, Args...>& node, std::index_sequence<I...>)
      : function(node.function), args(Placed<Args, C, S>(std::get<I>(node.args))...) {}
  template <std::size_t I>
  auto device_arguments(std::integral_constant<std::size_t, I>) const {
    if constexpr (I == sizeof...(Args)) {
      return DeviceArguments<>{};
    } else {
      const auto rest = device_arguments(std::integral_constant<std::size_t, I + 1>{});
      return with_first(std::get<I>(args).device(), rest);
    }
  }
  template <class First, class... Rest>
  static DeviceArguments<First, Rest...> with_first(const First& first, const DeviceArguments<Rest...>& rest) {
    return {first, rest};
  }
};

/// The result of a reduction, computed when it is placed.
template <class C, int Rank>
struct ReducedTensor {
  Tensor<C, Rank, cuda> result;
};
template <class Op, bool Keep, class Arg, bool... Reduced, class C, int S>
struct Placed<ReductionNode<Op, Keep, Arg, Reduced...>, C, S>
    : ReducedTensor<C, ReductionNode<Op, Keep, Arg, Reduced...>::rank>, PlacedLeaf<C, C, S> {
  using Node = ReductionNode<Op, Keep, Arg, Reduced...>;
  explicit Placed(const Node& node)
      : ReducedTensor<C, Node::rank>{reduce_on_gpu<C>(node)},
        PlacedLeaf<C, C, S>{this->result.data(), strides_in<S>(node.extents(), row_major(node.extents()))} {}
};

// --- Elements --------------------------------------------------------------------------------------------------------

/// The index of element `place` of the axes [begin, end), counted in row-major order.
template <class Count, int S>
__device__ inline void decode(Index place, const Extents<S>& space, int begin, int end, Index (&index)[S]) {
  Count rest = static_cast<Count>(place);
#pragma unroll
  for (int axis = S - 1; axis >= 0; --axis) {
    if (axis < begin || axis >= end) continue;
    const Count extent = static_cast<Count>(space.sizes[axis]);
    index[axis] = static_cast<Index>(rest % extent);
    rest /= extent;
  }
}

// CUDA kernels

/// V neighbouring elements a thread and round.
template <int V, class Count, class T, int S, class Node>
__global__ void evaluate_kernel(Node node, T* data, Strides<S> to, Extents<S> space, Index packs) {
  Extents<S> of_packs = space;
  of_packs.sizes[S - 1] /= V;
  for (Index i = Index{blockIdx.x} * blockDim.x + threadIdx.x; i < packs; i += Index{gridDim.x} * blockDim.x) {
    Index index[S] = {};
    decode<Count>(i, of_packs, 0, S, index);
    index[S - 1] *= V;
    Elements<typename Node::Value, V> values;
    node.load(index, values);
    T* target = data;
#pragma unroll
    for (int axis = 0; axis < S; ++axis) target += index[axis] * to.sizes[axis];
    constexpr int at_once = V < pack_size<T> ? V : pack_size<T>;
#pragma unroll
    for (int k = 0; k < V; k += at_once) {
      Pack<T, at_once> pack;
#pragma unroll
      for (int e = 0; e < at_once; ++e) pack.elements[e] = narrow<T>(values.of[k + e]);
      *reinterpret_cast<Pack<T, at_once>*>(target + k) = pack;
    }
  }
}

/// Reduces `part` elements from blockIdx.y * part on of every output blockIdx.x, its threads side by side. The axes
/// before `split` are kept. With `finish` the results are complete, over `count` elements.
template <int V, class Op, class C, int S, class Node>
__global__ void reduce_rows_kernel(Node node, C* to, Extents<S> space, int split, Index reduced, Index part,
                                   bool finish, Index count) {
  Index index[S] = {};
  decode<Index>(blockIdx.x, space, 0, split, index);
  Extents<S> of_packs = space;
  of_packs.sizes[S - 1] /= V;
  const Index begin = Index{blockIdx.y} * part, end = ::min(begin + part, reduced);
  C sums[V];
#pragma unroll
  for (int k = 0; k < V; ++k) sums[k] = static_cast<C>(Op::identity);
  for (Index i = begin / V + threadIdx.x; i < end / V; i += blockDim.x) {
    decode<Index>(i, of_packs, split, S, index);
    index[S - 1] *= V;
    Elements<typename Node::Value, V> values;
    node.load(index, values);
#pragma unroll
    for (int k = 0; k < V; ++k) sums[k] = Op::combine(sums[k], static_cast<C>(values.of[k]));
  }
#pragma unroll
  for (int k = 1; k < V; ++k) sums[0] = Op::combine(sums[0], sums[k]);
  __shared__ C of_warps[32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    sums[0] = Op::combine(sums[0], __shfl_xor_sync(0xffffffffu, sums[0], distance));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sums[0];
  __syncthreads();
  if (threadIdx.x != 0) return;
  C total = of_warps[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) total = Op::combine(total, of_warps[warp]);
  to[Index{blockIdx.x} * gridDim.y + blockIdx.y] = finish ? Op::finish(total, count) : total;
}

/// The same with a thread for every output: where neighbouring outputs are made of neighbouring elements.
template <class Op, class C, int S, class Node>
__global__ void reduce_columns_kernel(Node node, C* to, Extents<S> space, int split, Index outputs, Index reduced,
                                      Index part, bool finish, Index count) {
  const Index output = Index{blockIdx.x} * blockDim.x + threadIdx.x;
  if (output >= outputs) return;
  Index index[S] = {};
  decode<Index>(output, space, 0, split, index);
  const Index begin = Index{blockIdx.y} * part, end = ::min(begin + part, reduced);
  C total = static_cast<C>(Op::identity);
#pragma unroll 4
  for (Index i = begin; i < end; ++i) {
    decode<Index>(i, space, split, S, index);
    Elements<typename Node::Value, 1> value;
    node.load(index, value);
    total = Op::combine(total, static_cast<C>(value.of[0]));
  }
  to[output * gridDim.y + blockIdx.y] = finish ? Op::finish(total, count) : total;
}

// Launchers

/// Into how many parts the elements of every output are cut: a function of the shapes alone.
inline Index reduction_parts(Index outputs, Index reduced, Index least) {
  constexpr Index blocks_at_most = 1024;  // several for each multiprocessor there is
  const Index wanted = outputs >= blocks_at_most ? 1 : blocks_at_most / (outputs > 0 ? outputs : 1);
  const Index possible = reduced / least > 1 ? reduced / least : 1;
  return wanted < possible ? wanted : possible;
}

/// A reduction into memory of the arena.
template <class C, class Op, bool Keep, class Arg, bool... Reduced>
auto reduce_on_gpu(const ReductionNode<Op, Keep, Arg, Reduced...>& node) {
  using Node = ReductionNode<Op, Keep, Arg, Reduced...>;
  constexpr int S = Arg::rank > 0 ? Arg::rank : 1;
  auto result = Tensor<C, Node::rank, cuda>::uninitialized(node.extents());
  if (result.size() == 0) return result;
  Placed<Arg, C, S> arg(node.arg);
  // Kept axes first, then the reduced ones, each as few as possible.
  Extents<S> space;
  int group[S] = {}, order[S] = {}, kept = 0;
  Index outputs = 1, reduced = 1;
  for (int pass = 0, at = 0; pass < 2; ++pass)
    for (int a = 0; a < S; ++a) {
      const bool is_reduced = Arg::rank > 0 && Node::reduced[a];
      if (is_reduced != (pass == 1)) continue;
      order[at] = a;
      space[at] = Arg::rank > 0 ? node.arg.extents().sizes[a] : 1;
      group[at] = pass;
      (pass == 0 ? outputs : reduced) *= space[at++];
    }
  arg.each_layout([&](Strides<S>& s) {
    const Strides<S> before = s;
    for (int a = 0; a < S; ++a) s[a] = before[order[a]];
  });
  const auto each = [&](auto&& visit) { arg.each_layout(visit); };
  collapse(space, group, each);
  while (kept < S && group[kept] == 0) ++kept;
  // Whether some operand is dense along the kept axes and none along the reduced ones.
  bool along_kept = false, along_reduced = false;
  arg.each_layout([&](Strides<S>& s) {
    along_kept = along_kept || (kept > 0 && s[kept - 1] == 1 && space[kept - 1] > 1);
    along_reduced = along_reduced || (kept < S && s[S - 1] == 1 && space[S - 1] > 1);
  });
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  require(outputs < Index{1} << 31, Op::name, ": ", outputs, " results are too many for a GPU");
  Tensor<C, 1, cuda> partials;
  Index parts = 1;
  const auto place_for = [&](Index count) {
    parts = count;
    if (parts > 1) partials = Tensor<C, 1, cuda>::uninitialized({outputs * parts});
    return parts > 1 ? partials.data() : result.data();
  };
  if (along_kept && !along_reduced) {
    C* const to = place_for(reduction_parts((outputs + 127) / 128, reduced, 64));
    const Index part = (reduced + parts - 1) / parts;
    reduce_columns_kernel<Op>
        <<<dim3(static_cast<unsigned>((outputs + 127) / 128), static_cast<unsigned>(parts)), 128, 0, stream.handle>>>(
            arg.device(), to, space, kept, outputs, reduced, part, parts == 1, reduced);
    cuda_runtime::check_launch("reduce_columns_kernel");
  } else {
    C* const to = place_for(reduction_parts(outputs, reduced, 8192));
    constexpr int V = 4;
    const bool packs = kept < S && space[S - 1] % V == 0 && arg.packs(space, V);
    const Index part = ((reduced + parts - 1) / parts + V - 1) / V * V;
    const dim3 grid(static_cast<unsigned>(outputs), static_cast<unsigned>(parts));
    const unsigned threads = part <= 1024 ? 32 : 256;
    if (packs)
      reduce_rows_kernel<V, Op>
          <<<grid, threads, 0, stream.handle>>>(arg.device(), to, space, kept, reduced, part, parts == 1, reduced);
    else
      reduce_rows_kernel<1, Op>
          <<<grid, threads, 0, stream.handle>>>(arg.device(), to, space, kept, reduced, part, parts == 1, reduced);
    cuda_runtime::check_launch("reduce_rows_kernel");
  }
  if (parts > 1) {
    const DeviceLeaf<C, C, 2> leaf{partials.data(), Strides<2>{parts, Index{1}}};
    reduce_rows_kernel<1, Op><<<static_cast<unsigned>(outputs), 32, 0, stream.handle>>>(
        leaf, result.data(), Extents<2>{outputs, parts}, 1, parts, parts, true, reduced);
    cuda_runtime::check_launch("reduce_rows_kernel (parts)");
  }
  return result;
}

/// target = node, broadcast to the target's shape, which must be possible.
template <class T, int Rank, class Node>
void evaluate_blocks(const View<T, Rank, cuda>& target, const Node& node) {
  using C = computes_in<Node, std::conditional_t<std::is_same_v<T, double>, double, float>>;
  constexpr int S = Rank > 0 ? Rank : 1;
  if (target.size() == 0) return;
  Extents<S> space;
  Strides<S> to = strides_in<S>(target.extents(), target.strides());
  for (int i = 0; i < S; ++i) space[i] = Rank == 0 ? 1 : target.extents().sizes[i];
  for (int i = 0; i < S; ++i)
    require(space[i] == 1 || to[i] != 0, "assignment: the target ", target.extents(),
            " is broadcast and cannot be written");
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  Placed<Node, C, S> placed(node);
  const auto each = [&](auto&& visit) {
    visit(to);
    placed.each_layout(visit);
  };
  for (int i = 1; i < S; ++i)  // the axis with the smallest step last
    for (int j = i; j > 0 && to[j] != 0 && to[j - 1] != 0 && to[j - 1] < to[j]; --j) {
      std::swap(space[j], space[j - 1]);
      each([&](Strides<S>& s) { std::swap(s[j], s[j - 1]); });
    }
  int group[S] = {};
  collapse(space, group, each);
  placed.check(space, target.data(), sizeof(T), to);

  const PlacedLeaf<T, C, S> result{target.data(), to};
  const int smallest = std::min(placed.smallest(), static_cast<int>(sizeof(T)));
  const auto launch = [&](auto width) {
    constexpr int V = decltype(width)::value;
    const Index packs = space.size() / V;
    const unsigned blocks = cuda_runtime::blocks_for(packs, 256);
    if (packs < Index{1} << 31)
      evaluate_kernel<V, unsigned><<<blocks, 256, 0, stream.handle>>>(placed.device(), target.data(), to, space, packs);
    else
      evaluate_kernel<V, Index><<<blocks, 256, 0, stream.handle>>>(placed.device(), target.data(), to, space, packs);
    cuda_runtime::check_launch("evaluate_kernel");
  };
  const auto fits = [&](int count) {
    return smallest * count <= 16 && to[S - 1] == 1 && space[S - 1] % count == 0 && result.packs(space, count) &&
           placed.packs(space, count);
  };
  if (fits(8))
    launch(std::integral_constant<int, 8>{});
  else if (fits(4))
    launch(std::integral_constant<int, 4>{});
  else
    launch(std::integral_constant<int, 1>{});
}

}  // namespace diffmamba::detail
