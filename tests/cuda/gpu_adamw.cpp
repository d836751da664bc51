// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// AdamW and the global norm on the GPU against the CPU's.
#include <doctest/doctest.h>

#include "diffmamba/device/graph.hpp"
#include "diffmamba/train/adamw.hpp"
#include "diffmamba/train/clip.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using diffmamba::test::random_tensor;
using diffmamba::test::relative_error;

namespace {

/// What AdamW asks of a model, in miniature: two segments, one without decay.
template <class T>
struct Model {
  using R = accumulate_t<T>;
  using value_type = T;
  using device_type = cuda;
  enum class Decay { yes, no };
  struct Segment {
    Index offset, size;
    Decay decay;
  };
  struct Flat {
    Tensor<R, 1, cuda> value, gradient;
    Tensor<T, 1, cuda> shadow;
    std::vector<Segment> segments;
    View<R, 1, cuda> values() { return value; }
    View<R, 1, cuda> gradients() { return gradient; }
    View<T, 1, cuda> shadows() { return shadow ? shadow.view() : View<T, 1, cuda>{}; }
  };
  Flat flat_;
  Flat& flat() { return flat_; }

  explicit Model(Index size) {
    flat_.value = to<cuda>(random_tensor<R, 1>(Extents<1>(size), 1));
    flat_.gradient = to<cuda>(random_tensor<R, 1>(Extents<1>(size), 2));
    if (sizeof(T) < sizeof(R)) flat_.shadow = Tensor<T, 1, cuda>(Extents<1>(size));
    flat_.segments = {{0, size / 3, Decay::yes}, {size / 3, size - size / 3, Decay::no}};
  }
};

template <class T>
void put(const T& value, Tensor<T, 1, cuda>& there) {
  if (!there) there = Tensor<T, 1, cuda>::uninitialized({1});
  copy_elements(cuda{}, &value, there.data(), 1);
}
template <class T>
T get(const Tensor<T, 1, cuda>& there) {
  T value;
  copy_elements(cuda{}, there.data(), &value, 1);
  return value;
}

template <class T>
View<const T, 1, cuda> read(const Tensor<T, 1, cuda>& tensor) {
  return tensor.view();
}

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("adamw on the GPU is that of the CPU, any size, groups, unaligned", T, float, double) {
    const double limit = std::is_same_v<T, float> ? 1e-6 : 1e-14;
    const AdamWOptions options{.lr = 0.02, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.3};
    for (const Index size : {0, 1, 17, 8192, 8195, 100003}) {
      CAPTURE(size);
      for (const Index shift : {0, 1}) {
        std::vector<ParameterGroup> groups;
        if (size > 17)
          groups = {{.begin = 0, .end = 7, .lr_scale = 0.5},
                    {.begin = 9, .end = size / 2, .decay_scale = 0},
                    {.begin = size / 2, .end = size - 3}};
        const auto start = random_tensor<T, 1>(Extents<1>(size + shift), 1);
        auto here = to_tensor<double>(start.view());
        auto there = to<cuda>(start);
        AdamW<double> cpu_optimizer(size, options, groups);
        AdamW<T, cuda> gpu_optimizer(size, options, groups);
        for (unsigned t = 1; t <= 4; ++t) {
          const auto g = random_tensor<T, 1>(Extents<1>(size + shift), t + 1);
          const auto wide = to_tensor<double>(g.view());
          const auto gradient = to<cuda>(g);
          cpu_optimizer.step(here.template slice<0>(shift, size + shift), wide.template slice<0>(shift, size + shift),
                             0.01, 0.5);
          gpu_optimizer.step(there.template slice<0>(shift, size + shift),
                             gradient.template slice<0>(shift, size + shift), 0.01, 0.5);
        }
        CHECK(relative_error(to<cpu>(there), here) < limit);
        CHECK(relative_error(to<cpu>(gpu_optimizer.exp_avg()), to_tensor(cpu_optimizer.exp_avg())) < limit);
        CHECK(relative_error(to<cpu>(gpu_optimizer.exp_avg_sq()), to_tensor(cpu_optimizer.exp_avg_sq())) < limit);
      }
    }
  }

  TEST_CASE_TEMPLATE("the global norm, always the same bits", T, float, double) {
    for (const Index size : {0, 1, 8191, 8192, 300007}) {
      CAPTURE(size);
      const auto x = random_tensor<T, 1>(Extents<1>(size), 3);
      const auto there = to<cuda>(x);
      Workspace<cuda> workspace(device_update_workspace_bytes<T>(size, 1));
      Tensor<double, 1, cuda> norm({2});
      device_norm(read(there), norm.slice<0>(0, 1), workspace);
      device_norm(read(there), norm.slice<0>(1, 2), workspace);
      const auto got = to<cpu>(norm);
      CHECK(got(0) == doctest::Approx(global_norm(View<const T, 1>(x.view()))).epsilon(1e-13));
      CHECK(got(0) == got(1));
    }
  }

  TEST_CASE("a recorded update follows the device's numbers, clips, and writes the shadows") {
    const Index size = 20000;
    Model<bfloat16> model(size);
    AdamW optimizer(model, {.lr = 0.1, .weight_decay = 0.2});
    static_assert(std::is_same_v<decltype(optimizer), AdamW<float, cuda>>);
    auto want = to<cpu>(model.flat_.value);
    const auto gradient = to<cpu>(model.flat_.gradient);
    AdamW<float> reference(size, optimizer.options(), optimizer.groups());

    Tensor<StepScalars, 1, cuda> scalars;
    Tensor<StepOutcome, 1, cuda> outcome;
    put(StepOutcome{}, outcome);
    Tensor<float, 1, cuda> losses({2}, 3.0f);
    const auto say = [&](double lr, double clip) { put(optimizer.scalars(lr, 0.5, clip), scalars); };
    const auto update = [&] {
      optimizer.launch(model, View<const StepScalars, 1, cuda>(scalars.view()), outcome.view(), read(losses));
    };
    say(0.1, 1.0);
    cuda_runtime::synchronize<>();
    {
      const cuda_runtime::OwnedStream<> stream;
      const cuda_runtime::StreamScope on(stream);
      const cuda_runtime::Graph<> graph(update);  // one step
      optimizer.set_steps(1);
      say(0.05, std::numeric_limits<double>::infinity());
      graph.replay();
      cuda_runtime::synchronize<>();
    }
    const double norm = 0.5 * global_norm(View<const float, 1>(gradient.view()));
    reference.step(want.view(), gradient.view(), 0.1, 0.5 * clip_factor(norm, 1.0));
    reference.step(want.view(), gradient.view(), 0.05, 0.5);
    CHECK(relative_error(to<cpu>(model.flat_.value), want) < 1e-6);
    CHECK(relative_error(to<cpu>(model.flat_.shadow), to_tensor<bfloat16>(to<cpu>(model.flat_.value).view())) == 0);
    CHECK(get(outcome).loss == 3.0);
    CHECK(get(outcome).gradient_norm == doctest::Approx(norm).epsilon(1e-12));
    CHECK(get(outcome).bad == 0);

    // What is not finite changes nothing, nor does what comes after it.
    const auto before = to<cpu>(model.flat_.value);
    losses.fill(std::numeric_limits<float>::quiet_NaN());
    update();
    losses.fill(1.0f);
    update();
    CHECK(get(outcome).bad == 1);
    CHECK(relative_error(to<cpu>(model.flat_.value), before) == 0);
    put(StepOutcome{}, outcome);
    update();
    CHECK(get(outcome).bad == 0);
    CHECK(relative_error(to<cpu>(model.flat_.value), before) > 0);
  }
}
