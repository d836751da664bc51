// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The causal convolution on a GPU against the CPU in double: every gradient, option, width and layout.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_step.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::random_tensor;
namespace conv = diffmamba::causal_conv1d;

namespace {

struct Case {
  Index batch, length, channels, width;
  bool silu = true, bias = true, initial = true;
  Index left = 0, right = 0;  // columns of x, dout and dx beside the channels
};

/// ||got - want|| / ||want||, after copies to the host.
template <class A, class B>
double norm_error(const A& got_there, const B& want) {
  const auto got = to<cpu>(got_there);
  REQUIRE(got.extents() == want.extents());
  double error = 0, norm = 0;
  for (Index i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want.data()[i]), g = static_cast<double>(got.data()[i]);
    error += (g - w) * (g - w);
    norm += w * w;
  }
  return std::sqrt(error / (norm > 0 ? norm : 1.0));
}

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank, cuda>& a, const Tensor<T, Rank, cuda>& b) {
  const auto x = to<cpu>(a), y = to<cpu>(b);
  return x.extents() == y.extents() &&
         (x.size() == 0 || std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * sizeof(T)) == 0);
}

/// Numbers that T holds exactly, as doubles on the host and as T on the GPU.
template <class T, int Rank>
struct Both {
  Tensor<double, Rank> here;
  Tensor<T, Rank, cuda> there;
  Both(const Extents<Rank>& extents, unsigned seed) {
    const auto rounded = to_tensor<T>(random_tensor<double>(extents, seed).view());
    here = to_tensor<double>(rounded.view());
    there = to<cuda>(rounded);
  }
};

template <class T>
struct Problem {
  using A = accumulate_t<T>;
  Case c;
  Both<T, 3> x, dout;  // with the columns beside
  Both<A, 2> weight;
  Both<A, 1> bias;
  Both<A, 3> initial_state, dfinal_state;

  explicit Problem(const Case& of)
      : c(of),
        x({c.batch, c.length, c.left + c.channels + c.right}, 1),
        dout({c.batch, c.length, c.left + c.channels + c.right}, 2),
        weight({c.channels, c.width}, 3),
        bias(Extents<1>{c.channels}, 4),
        initial_state({c.batch, c.channels, c.width - 1}, 5),
        dfinal_state({c.batch, c.channels, c.width - 1}, 6) {}

  conv::Options options() const { return {.activation = c.silu ? conv::Activation::silu : conv::Activation::none}; }
  template <class TensorLike>
  auto cut(TensorLike& wide) const {
    return wide.view().template slice<2>(c.left, c.left + c.channels);
  }
  conv::Inputs<double> here() const {
    conv::Inputs<double> in{.x = cut(x.here), .weight = weight.here};
    if (c.bias) in.bias = bias.here;
    if (c.initial) in.initial_state = initial_state.here;
    return in;
  }
  conv::Inputs<T, cuda> there() const {
    conv::Inputs<T, cuda> in{.x = cut(x.there), .weight = weight.there};
    if (c.bias) in.bias = bias.there;
    if (c.initial) in.initial_state = initial_state.there;
    return in;
  }
};

/// Everything that the two passes compute.
template <class T>
struct Results {
  using A = accumulate_t<T>;
  conv::Outputs<T, cuda> forward;
  conv::Gradients<T, cuda> d;
  explicit Results(const Problem<T>& p) : forward(conv::forward(p.there(), p.options())) {
    d = conv::backward(p.there(), forward.saved,
                       {.dout = p.cut(p.dout.there), .dfinal_state = p.dfinal_state.there.view()});
  }
};

/// `rounding`: what the results of type T may be off by; `exact`: those of the accumulation type.
template <class T>
void compare(const Case& c, double rounding, double exact) {
  CAPTURE(c.length);
  CAPTURE(c.channels);
  CAPTURE(c.width);
  CAPTURE(c.left);
  const Problem<T> p(c);
  const auto want = conv::forward(p.here(), p.options());
  const auto dwant =
      conv::backward(p.here(), want.saved, {.dout = p.cut(p.dout.here), .dfinal_state = p.dfinal_state.here.view()});
  const Results<T> got(p);
  CHECK(norm_error(got.forward.out, want.out) < rounding);
  CHECK(norm_error(got.forward.final_state, want.final_state) == 0);
  CHECK(norm_error(got.d.dx, dwant.dx) < rounding);
  CHECK(norm_error(got.d.dweight, dwant.dweight) < exact);
  if (c.bias) CHECK(norm_error(got.d.dbias, dwant.dbias) < exact);
  if (c.initial && c.width > 1) CHECK(norm_error(got.d.dinitial_state, dwant.dinitial_state) < exact);
  const Results<T> again(p);
  CHECK(same_bits(again.forward.out, got.forward.out));
  CHECK(same_bits(again.d.dx, got.d.dx));
  CHECK(same_bits(again.d.dweight, got.d.dweight));
  CHECK(same_bits(again.d.dbias, got.d.dbias));
  CHECK(same_bits(again.d.dinitial_state, got.d.dinitial_state));
}

const Case cases[] = {{2, 67, 40, 4},
                      {1, 1, 8, 4},
                      {3, 2, 17, 4},
                      {2, 0, 16, 4},
                      {2, 131, 264, 3, false},
                      {1, 300, 33, 2, true, false, false},
                      {2, 97, 64, 4, true, true, false, 8, 16},  // aligned rows of a projection
                      {2, 97, 64, 4, true, true, true, 3, 2},    // rows at any address
                      {1, 70, 20, 1, true, true, true},
                      {2, 150, 70, 7},
                      {1, 40, 3, 110}};  // wider than shared memory

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("causal_conv1d: double, float and bfloat16 follow the CPU in double") {
    for (const Case& c : cases) {
      compare<double>(c, 1e-13, 1e-13);
      compare<float>(c, 2e-6, 2e-6);
      compare<bfloat16>(c, 2.6e-3, 1e-5);  // rounding alone is 1.66e-3, more where there are few numbers
    }
    compare<bfloat16>({4, 2048, 2304, 4, true, true, false}, 1.8e-3, 1e-5);
  }

  TEST_CASE("causal_conv1d: half forward") {
    const Problem<half> p({2, 75, 40, 4});
    const auto want = conv::forward(p.here(), p.options());
    CHECK(norm_error(conv::forward(p.there(), p.options()).out, want.out) < 3e-4);
  }

  TEST_CASE("causal_conv1d: absent gradients are not computed, parameters are added to, nothing beside is written") {
    const Problem<float> p({2, 77, 24, 4, true, true, true, 4, 8});
    const auto forward = conv::forward(p.there(), p.options());
    const Results<float> all(p);
    Workspace<cuda> workspace(conv::workspace_bytes(p.there()));
    const conv::OutputGradients<float, cuda> upstream{.dout = p.cut(p.dout.there),
                                                      .dfinal_state = p.dfinal_state.there.view()};
    Tensor<float, 3, cuda> dx(p.x.there.extents(), 7.0f);
    conv::backward(p.there(), forward.saved, upstream, {.dx = p.cut(dx)}, workspace);
    const auto dx_here = to<cpu>(dx);
    CHECK(test::relative_error(to_tensor(dx_here.slice<2>(4, 28)), to<cpu>(all.d.dx)) == 0);
    CHECK(dx_here(0, 5, 3) == 7.0f);
    CHECK(dx_here(1, 76, 28) == 7.0f);

    Tensor<float, 2, cuda> dweight({24, 4});
    for (int call = 0; call < 2; ++call)
      conv::backward(p.there(), forward.saved, upstream, {.dweight = dweight.view()}, workspace,
                     call == 0 ? GradientMode::assign : GradientMode::add);
    const auto twice = to<cpu>(dweight), once = to<cpu>(all.d.dweight);
    for (Index i = 0; i < once.size(); ++i) CHECK(twice.data()[i] == 2 * once.data()[i]);

    // Only the state carries a gradient.
    Tensor<float, 3, cuda> through({2, 77, 24});
    conv::backward(p.there(), forward.saved, {.dfinal_state = p.dfinal_state.there.view()}, {.dx = through.view()},
                   workspace);
    const auto through_here = to<cpu>(through);
    CHECK(through_here(1, 76, 5) == static_cast<float>(p.dfinal_state.here(1, 5, 2)));
    CHECK(through_here(1, 73, 5) == 0.0f);
  }

  TEST_CASE("causal_conv1d: steps are the scan; a wider state, a ring, slots and padding") {
    for (Index width : {1, 2, 4, 7})
      for (Index extra : {0, 1, 3})
        for (bool ring : {false, true}) {
          const Index length = 13, cut = 4, channels = 130, size = width - 1 + extra;
          if (ring && size == 0) continue;
          CAPTURE(width);
          CAPTURE(size);
          CAPTURE(ring);
          const Problem<float> p({2, length, channels, width, true, true, false});
          const auto whole = conv::forward(p.here(), p.options());
          // What the state holds after `cut` tokens, in slots 2 and 0 of three.
          Tensor<float, 3> state({3, channels, size}, 0.5f);
          for (Index b = 0; b < 2; ++b)
            for (Index ch = 0; ch < channels; ++ch)
              for (Index j = 0; j < size; ++j) {
                const Index t = cut - size + j;
                const Index column = ring ? (t + 10 * size) % size : j;
                state(b == 0 ? 2 : 0, ch, column) = t < 0 ? 0.0f : static_cast<float>(p.x.here(b, t, ch));
              }
          auto there = to<cuda>(state);
          Tensor<Index, 1> slots(Extents{2}), seen(Extents{2}, cut);
          slots(0) = 2;
          slots(1) = 0;
          const auto slots_there = to<cuda>(slots);
          for (Index t = cut, n = 1; t < length; t += n, n = 3 - n) {
            n = std::min(n, length - t);
            const auto seen_there = to<cuda>(seen);
            conv::StepInputs<float, cuda> in{.x = p.x.there.view().slice<1>(t, t + n),
                                             .weight = p.weight.there,
                                             .bias = p.bias.there,
                                             .conv_state_indices = slots_there};
            if (ring) in.cache_seqlens = seen_there;
            const auto out = conv::step(in, there, p.options());
            CHECK(norm_error(out, to_tensor(whole.out.view().slice<1>(t, t + n))) < 2e-6);
            for (Index& count : seen) count += n;
          }
          const auto after = to<cpu>(there);
          for (Index j = 0; j < size; ++j) CHECK(after(1, 7, j) == 0.5f);  // nobody's slot
        }
    // One token, in the way of our models: width 4, a state of 4 columns, padding.
    const Problem<bfloat16> p({3, 1, 40, 4});
    const auto state = random_tensor<float>(Extents{3, 40, 4}, 9);
    auto there = to<cuda>(state);
    Tensor<Index, 1> slots(Extents{3});
    slots(0) = 1;
    slots(1) = -1;
    slots(2) = 0;
    const auto slots_there = to<cuda>(slots);
    const auto out = to<cpu>(conv::step(
        conv::StepInputs<bfloat16, cuda>{
            .x = p.x.there, .weight = p.weight.there, .bias = p.bias.there, .conv_state_indices = slots_there},
        there));
    const auto after = to<cpu>(there);
    for (Index ch = 0; ch < 40; ++ch) {
      double sum = p.bias.here(ch) + p.weight.here(ch, 3) * p.x.here(0, 0, ch);
      for (Index w = 0; w < 3; ++w) sum += p.weight.here(ch, w) * static_cast<double>(state(1, ch, w + 1));
      CHECK(static_cast<double>(out(0, 0, ch)) == doctest::Approx(sum).epsilon(5e-3));
      CHECK(static_cast<float>(out(1, 0, ch)) == 0.0f);
      CHECK(after(1, ch, 0) == state(1, ch, 1));
      CHECK(after(1, ch, 3) == static_cast<float>(p.x.here(0, 0, ch)));
      CHECK(after(2, ch, 1) == state(2, ch, 1));
    }
  }
}
