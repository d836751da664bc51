// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Tensors of more than 2^31 and 2^32 elements, forward and backward, in bfloat16. The last rows are those of a short
// run over the last tokens, from the state that a run over all tokens before them left. Skipped where memory is short.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "diffmamba/ops/causal_conv1d/causal_conv1d_backward.hpp"
#include "diffmamba/ops/causal_conv1d/causal_conv1d_forward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_backward.hpp"
#include "diffmamba/ops/gated_rms_norm/gated_rms_norm_forward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_backward.hpp"
#include "diffmamba/ops/rms_norm/rms_norm_forward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_backward.hpp"
#include "diffmamba/ops/selective_scan/selective_scan_forward.hpp"
#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/ops/ssd/ssd_forward.hpp"
#include "diffmamba/ops/swiglu/swiglu_backward.hpp"
#include "diffmamba/ops/swiglu/swiglu_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::random_tensor;
using T = bfloat16;

namespace {

constexpr Index channels = 4096, tail = 192;  // tail: tokens of the short run

/// (1, length, width): random tokens, the same 2^24 numbers or so again and again.
Tensor<T, 3, cuda> repeated(Index length, Index width, unsigned seed, double scale = 1, double mean = 0) {
  auto result = Tensor<T, 3, cuda>::uninitialized({1, length, width});
  Index done = std::min<Index>(length, (Index{1} << 24) / width - 3);
  const auto first = to_tensor<T>(random_tensor<float>(Extents{Index{1}, done, width}, seed, scale, mean).view());
  copy(first, result.slice<1>(0, done));
  while (done < length) {
    const Index more = std::min(done, length - done);
    copy(std::as_const(result).slice<1>(0, more), result.slice<1>(done, done + more));
    done += more;
  }
  return result;
}

template <class E, int Rank>
auto last(const Tensor<E, Rank, cuda>& tensor, Index tokens = tail) {
  return tensor.template slice<1>(tensor.extent(1) - tokens, tensor.extent(1));
}
template <class E, int Rank>
auto but_last(const Tensor<E, Rank, cuda>& tensor) {
  return tensor.template slice<1>(0, tensor.extent(1) - tail);
}

/// Decay rates below 0: what grows would overflow over so many tokens.
template <int Rank>
Tensor<float, Rank, cuda> rates(const Extents<Rank>& extents, unsigned seed) {
  auto result = random_tensor<float>(extents, seed, 0.3, -1.0);
  for (float& rate : result) rate = std::min(rate, -0.05f);
  return to<cuda>(result);
}

/// ||got - want|| / ||want|| of two views on the GPU.
template <class A, class B, int Rank>
double norm_error(const View<A, Rank, cuda>& got, const View<B, Rank, cuda>& want) {
  const auto x = to<cpu>(got), y = to<cpu>(want);
  double error = 0, norm = 0;
  for (Index i = 0; i < y.size(); ++i) {
    const double a = static_cast<double>(x.data()[i]), b = static_cast<double>(y.data()[i]);
    error += (a - b) * (a - b);
    norm += b * b;
  }
  REQUIRE(norm > 0);
  return std::sqrt(error / norm);
}

/// Runs the body with memory enough, and gives back all of it.
template <class Body>
void with_memory(double bytes, Body&& body) {
  arena<cuda>().release();
  if (static_cast<double>(cuda_runtime::memory_info().free) < bytes) {
    MESSAGE("skipped: less than ", bytes / 1e9, " GB are free");
    return;
  }
  body();
  arena<cuda>().release();
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("large: causal_conv1d past 2^31 and 2^32 elements") {
    for (const Index length : {(Index{1} << 19) + 5, (Index{1} << 20) + 5}) {
      CAPTURE(length);
      with_memory(static_cast<double>(length * channels) * 8 * 1.15, [&] {
        const auto x = repeated(length, channels, 1), dout = repeated(length, channels, 2);
        const auto weight = to<cuda>(random_tensor<float>(Extents{channels, Index{4}}, 3));
        const auto bias = to<cuda>(random_tensor<float>(Extents<1>{channels}, 4));
        const causal_conv1d::Options silu{.activation = causal_conv1d::Activation::silu};
        const causal_conv1d::Inputs<T, cuda> in{.x = x, .weight = weight, .bias = bias};
        const auto all = causal_conv1d::forward(in, silu);
        const auto d = causal_conv1d::backward(in, all.saved, {.dout = dout.view()});

        const causal_conv1d::Inputs<T, cuda> before{.x = but_last(x), .weight = weight, .bias = bias};
        const auto first = causal_conv1d::forward(before, silu);
        const auto dfirst_params = [&] {
          auto gradients = causal_conv1d::backward(before, first.saved, {.dout = but_last(dout)});
          return std::pair(to<cpu>(gradients.dweight), to<cpu>(gradients.dbias));
        }();
        const causal_conv1d::Inputs<T, cuda> end{
            .x = last(x), .weight = weight, .bias = bias, .initial_state = first.final_state};
        const auto tail_run = causal_conv1d::forward(end, silu);
        const auto dtail = causal_conv1d::backward(end, tail_run.saved, {.dout = last(dout)});
        CHECK(norm_error(last(all.out), tail_run.out.view()) == 0);
        CHECK(norm_error(last(d.dx), std::as_const(dtail.dx).view()) == 0);
        // The parameters' gradients are those of the parts together.
        const auto dweight = to<cpu>(d.dweight), dweight_tail = to<cpu>(dtail.dweight);
        double error = 0, norm = 0;
        for (Index i = 0; i < dweight.size(); ++i) {
          const double want = double{dfirst_params.first.data()[i]} + double{dweight_tail.data()[i]};
          error += (double{dweight.data()[i]} - want) * (double{dweight.data()[i]} - want);
          norm += want * want;
        }
        CHECK(std::sqrt(error / norm) < 1e-4);
      });
    }
  }

  TEST_CASE("large: rms_norm past 2^32 elements") {
    const Index length = (Index{1} << 20) + 5;
    with_memory(static_cast<double>(length * channels) * 8 * 1.1, [&] {
      const auto x = repeated(length, channels, 1), dout = repeated(length, channels, 2);
      const auto weight = to<cuda>(random_tensor<float>(Extents<1>{channels}, 3));
      const rms_norm::Inputs<T, cuda> in{.x = x, .weight = weight};
      const auto all = rms_norm::forward(in, {});
      const auto d = rms_norm::backward(in, all.saved, {.dout = dout.view()});
      const rms_norm::Inputs<T, cuda> end{.x = last(x), .weight = weight};
      const auto tail_run = rms_norm::forward(end, {});
      const auto dtail = rms_norm::backward(end, tail_run.saved, {.dout = last(dout)});
      CHECK(norm_error(last(all.out), tail_run.out.view()) == 0);
      CHECK(norm_error(last(d.dx), std::as_const(dtail.dx).view()) == 0);
    });
  }

  TEST_CASE("large: gated_rms_norm and swiglu past 2^32 elements") {
    const Index length = (Index{1} << 20) + 5;
    with_memory(static_cast<double>(length * channels) * 12 * 1.1, [&] {
      const auto x = repeated(length, channels, 1), z = repeated(length, channels, 2);
      const auto dout = repeated(length, channels, 3);
      const auto weight = to<cuda>(random_tensor<float>(Extents<1>{channels}, 4));
      {
        const gated_rms_norm::Inputs<T, cuda> in{.x = x, .weight = weight, .z = z};
        const auto all = gated_rms_norm::forward(in, {});
        const auto d = gated_rms_norm::backward(in, all.saved, {.dout = dout.view()});
        const gated_rms_norm::Inputs<T, cuda> end{.x = last(x), .weight = weight, .z = last(z)};
        const auto tail_run = gated_rms_norm::forward(end, {});
        const auto dtail = gated_rms_norm::backward(end, tail_run.saved, {.dout = last(dout)});
        CHECK(norm_error(last(all.out), tail_run.out.view()) == 0);
        CHECK(norm_error(last(d.dx), std::as_const(dtail.dx).view()) == 0);
        CHECK(norm_error(last(d.dz), std::as_const(dtail.dz).view()) == 0);
      }
      auto out = Tensor<T, 3, cuda>::uninitialized(x.extents()), dx = out, dz = out;
      auto out_tail = Tensor<T, 3, cuda>::uninitialized({1, tail, channels}), dx_tail = out_tail, dz_tail = out_tail;
      const swiglu::Inputs<T, cuda> in{.x = x, .z = z}, end{.x = last(x), .z = last(z)};
      swiglu::forward(in, out.view());
      swiglu::backward(in, dout.view(), {.dx = dx.view(), .dz = dz.view()});
      swiglu::forward(end, out_tail.view());
      swiglu::backward(end, last(dout), {.dx = dx_tail.view(), .dz = dz_tail.view()});
      CHECK(norm_error(last(std::as_const(out)), std::as_const(out_tail).view()) == 0);
      CHECK(norm_error(last(std::as_const(dx)), std::as_const(dx_tail).view()) == 0);
      CHECK(norm_error(last(std::as_const(dz)), std::as_const(dz_tail).view()) == 0);
    });
  }

  TEST_CASE("large: logits of more than 2^32 elements, and a strided copy of them") {
    const Index rows = (Index{1} << 16) + 5, vocab = Index{1} << 16;
    with_memory(static_cast<double>(rows * vocab) * 4 * 1.1, [&] {
      auto logits = repeated(rows, vocab, 1);
      Tensor<std::int32_t, 1> labels(Extents<1>{rows});
      for (Index i = 0; i < rows; ++i) labels(i) = static_cast<std::int32_t>((i * 7919) % vocab);
      const auto all_labels = to<cuda>(labels);
      const auto tail_labels = std::as_const(all_labels).slice<0>(rows - tail, rows);
      // In the order of the copy, rows become columns.
      auto turned = Tensor<T, 2, cuda>::uninitialized({vocab, rows});
      const View<const T, 2, cuda> matrix = std::as_const(logits).reshape(Extents{rows, vocab});
      copy(matrix.permute<1, 0>(), turned.view());
      auto back = Tensor<T, 2, cuda>::uninitialized({tail, vocab}), own = back;
      copy(std::as_const(turned).slice<1>(rows - tail, rows).permute<1, 0>(), back.view());
      copy(matrix.slice<0>(rows - tail, rows), own.view());
      CHECK(norm_error(std::as_const(back).view(), std::as_const(own).view()) == 0);

      const cross_entropy::Options none{.reduction = cross_entropy::Reduction::none};
      const auto in = [](const auto& view, const auto& of) {
        return cross_entropy::Inputs<T, std::int32_t, cuda>{.logits = view, .labels = of};
      };
      const auto want = cross_entropy::forward(in(std::as_const(own).view(), tail_labels), none);
      const auto got = cross_entropy::forward(in(matrix, all_labels.view()), none);
      CHECK(norm_error(std::as_const(got.loss).slice<0>(rows - tail, rows), std::as_const(want.loss).view()) == 0);
      // The gradient takes the place of the logits.
      const auto dloss = Tensor<float, 1, cuda>(Extents<1>{rows}, 1.0f);
      cross_entropy::backward(in(matrix, all_labels.view()), got.saved, dloss.view(),
                              logits.reshape(Extents{rows, vocab}));
      const auto dtail =
          cross_entropy::backward(in(std::as_const(own).view(), tail_labels), want.saved, dloss.slice<0>(0, tail));
      CHECK(norm_error(matrix.slice<0>(rows - tail, rows), std::as_const(dtail).view()) == 0);
    });
  }

  TEST_CASE("large: ssd past 2^32 elements") {
    const Index length = (Index{1} << 20) + 5, nheads = 64, d_state = 64;
    with_memory(static_cast<double>(length * channels) * 8 * 1.3, [&] {
      const auto x = repeated(length, channels, 1), dout = repeated(length, channels, 2);
      const auto B = repeated(length, d_state, 3), C = repeated(length, d_state, 4);
      const auto dt = repeated(length, nheads, 5, 0.5, -2.0);
      const auto A = rates(Extents<1>{nheads}, 6);
      const auto heads = [&](const auto& view, Index width) {
        return view.reshape(Extents<4>{1, view.extent(1), view.extent(2) / width, width});
      };
      const auto inputs = [&](const auto& part) {
        return ssd::Inputs<T, cuda>{.x = heads(part(x), 64),
                                    .dt = part(dt),
                                    .A = A,
                                    .B = heads(part(B), d_state),
                                    .C = heads(part(C), d_state)};
      };
      const ssd::Options options{.dt_softplus = true};
      const auto in = inputs([](const auto& tensor) { return tensor.view(); });
      const auto all = ssd::forward(in, options);
      const auto d = ssd::backward(in, all.saved, {.dout = heads(dout.view(), 64)});
      Tensor<float, 4, cuda> state;
      {
        auto first = ssd::forward(inputs([](const auto& tensor) { return but_last(tensor); }), options);
        state = std::move(first.final_state);
      }
      auto end = inputs([](const auto& tensor) { return last(tensor); });
      end.initial_state = state;
      const auto tail_run = ssd::forward(end, options);
      const auto dtail = ssd::backward(end, tail_run.saved, {.dout = heads(last(dout), 64)});
      CHECK(norm_error(last(all.out), tail_run.out.view()) < 5e-3);  // chunks lie otherwise
      CHECK(norm_error(last(d.dx), std::as_const(dtail.dx).view()) < 5e-3);
      CHECK(norm_error(last(d.dB), std::as_const(dtail.dB).view()) < 1e-2);
    });
  }

  // The checkpoints, in float, have as many elements as u: 80 GB hold a backward pass of 2^31 elements.
  TEST_CASE("large: selective_scan past 2^31 elements, and past 2^32 forward") {
    const Index d_state = 16;
    for (const Index length : {(Index{1} << 19) + 5, (Index{1} << 20) + 5}) {
      const bool both = length < Index{1} << 20;
      with_memory(static_cast<double>(length * channels) * (both ? 26 : 16), [&] {
        const auto u = repeated(length, channels, 1), delta = repeated(length, channels, 3, 0.5, -2.0);
        const auto B = repeated(length, d_state, 4), C = repeated(length, d_state, 5);
        const auto A = rates(Extents{channels, d_state}, 6);
        const auto groups = [&](const auto& view) {
          return view.reshape(Extents<4>{1, view.extent(1), Index{1}, d_state});
        };
        const auto inputs = [&](const auto& part) {
          return selective_scan::Inputs<T, cuda>{
              .u = part(u), .delta = part(delta), .A = A, .B = groups(part(B)), .C = groups(part(C))};
        };
        const selective_scan::Options options{.delta_softplus = true};
        const auto in = inputs([](const auto& tensor) { return tensor.view(); });
        Tensor<float, 3, cuda> state;
        {
          auto first = selective_scan::forward(inputs([](const auto& tensor) { return but_last(tensor); }), options);
          state = std::move(first.final_state);
        }
        cuda_runtime::synchronize<>();
        arena<cuda>().release();
        auto end = inputs([](const auto& tensor) { return last(tensor); });
        end.initial_state = state;
        const auto all = selective_scan::forward(in, options);
        const auto tail_run = selective_scan::forward(end, options);
        CHECK(norm_error(last(all.out), tail_run.out.view()) < 3e-3);
        if (!both) return;
        const auto dout = repeated(length, channels, 2);
        const auto d = selective_scan::backward(in, all.saved, {.dout = dout.view()});
        const auto dtail = selective_scan::backward(end, tail_run.saved, {.dout = last(dout)});
        CHECK(norm_error(last(d.du), std::as_const(dtail.du).view()) < 3e-3);
        CHECK(norm_error(last(d.dB), std::as_const(dtail.dB).view()) < 3e-3);
      });
    }
  }
}
