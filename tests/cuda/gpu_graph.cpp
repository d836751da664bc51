// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Graphs of launches, events and pinned memory.
#include "diffmamba/device/graph.hpp"

#include <doctest/doctest.h>

#include <memory>

#include "diffmamba/device/event.hpp"
#include "diffmamba/device/pinned.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using cuda_runtime::StreamScope;

TEST_CASE("without a GPU events and pinned memory say so in one sentence") {
  if (cuda_runtime::device_count() > 0) return;
  CHECK_THROWS_WITH_AS(cuda_runtime::Event<>(), doctest::Contains("cuda: no GPU can be used"), Error);
  CHECK_THROWS_WITH_AS(cuda_runtime::PinnedBuffer<float>(3), doctest::Contains("cuda: no GPU can be used"), Error);
}

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE("a graph does again what was recorded, with what its inputs hold then") {
    const cuda_runtime::OwnedStream<> stream;
    Tensor<float, 1, cuda> x({1000}, 1.0f), y({1000}), half({1000});
    cuda_runtime::synchronize<>();  // the tensors were filled on the default stream
    const StreamScope on(stream);
    Tensor<bfloat16, 1, cuda> rounded({1000});
    cuda_runtime::Graph<> graph([&] {
      const Tensor<float, 1, cuda> copied = x;  // temporary memory
      copy(copied.view(), rounded.view());
      copy(rounded.view(), y.view());
    });
    CHECK(graph.nodes() == 3);
    const std::size_t allocations = arena<cuda>().system_allocations();
    for (const float value : {1.0f, 2.5f, -3.0f}) {
      x.fill(value);
      graph.replay();
      const auto got = to<cpu>(y);
      CHECK(got(0) == value);
      CHECK(got(999) == value);
    }
    CHECK(arena<cuda>().system_allocations() == allocations);
  }

  TEST_CASE("the memory of a graph is not given back to the system as long as it lives") {
    const cuda_runtime::OwnedStream<> stream;
    const StreamScope on(stream);
    Tensor<double, 1, cuda> x({100}, 4.0), y({100});
    auto graph = std::make_unique<cuda_runtime::Graph<>>([&] {
      const Tensor<double, 1, cuda> copied = x;
      copy(copied.view(), y.view());
    });
    arena<cuda>().release();
    const std::size_t kept = arena<cuda>().bytes_reserved();
    x.fill(5.0);
    graph->replay();
    CHECK(to<cpu>(y)(99) == 5.0);
    graph.reset();
    arena<cuda>().release();
    CHECK(arena<cuda>().bytes_reserved() < kept);
  }

  TEST_CASE("what cannot be recorded is said, and the stream works afterwards") {
    CHECK_THROWS_WITH_AS(cuda_runtime::Graph<>([] {}), doctest::Contains("graph: the launches of the default stream"),
                         Error);
    const cuda_runtime::OwnedStream<> stream;
    const StreamScope on(stream);
    Tensor<float, 1, cuda> x({10}, 1.0f);
    CHECK_THROWS_WITH_AS(cuda_runtime::Graph<>([&] { (void)to<cpu>(x); }),
                         doctest::Contains("graph: something cannot be recorded"), Error);
    x.fill(2.0f);
    CHECK(to<cpu>(x)(9) == 2.0f);
    CHECK_THROWS_AS(cuda_runtime::Graph<>().replay(), Error);
  }

  TEST_CASE("pinned memory is copied in the order of a stream, events mark it, streams wait for each other") {
    const cuda_runtime::OwnedStream<> one, two;
    cuda_runtime::PinnedBuffer<float> out(1 << 20), back(1 << 20);
    for (Index i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i);
    Tensor<float, 1, cuda> x({out.size()}), y({out.size()});
    cuda_runtime::synchronize<>();
    cuda_runtime::Event<> begin(cuda_runtime::Timing::on), end(cuda_runtime::Timing::on);
    begin.wait();  // never recorded: nothing to wait for
    CHECK(begin.reached());
    begin.record(one);
    out.upload(x.data(), out.size(), one);
    end.record(one);
    cuda_runtime::order(one, two);
    {
      const StreamScope on(two);
      copy(x.view(), y.view());
    }
    back.download(y.data(), back.size(), two);
    cuda_runtime::synchronize<>(two);
    CHECK(end.reached());
    CHECK(begin.milliseconds_until(end) > 0);
    bool same = true;
    for (Index i = 0; i < out.size(); ++i) same = same && back[i] == out[i];
    CHECK(same);
  }
}
