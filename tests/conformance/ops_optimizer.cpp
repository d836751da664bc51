// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/train/adamw.hpp"
#include "diffmamba/train/clip.hpp"

namespace diffmamba::conformance {
namespace {

template <class T, class D>
void adamw(Case& golden) {
  require(!golden.flag("amsgrad", false), "attribute amsgrad: not offered by this optimizer");
  const auto betas = golden.numbers("betas", {0.9, 0.999});
  const AdamWOptions options{.lr = golden.number("lr", 1e-3),
                             .beta1 = betas[0],
                             .beta2 = betas[1],
                             .eps = golden.number("eps", 1e-8),
                             .weight_decay = golden.number("weight_decay", 0.01)};
  const Index steps = golden.shape("in.grads").at(0);
  golden.expect("steps", steps);
  Index size = 1;
  for (Index extent : golden.shape("in.param")) size *= extent;
  auto parameter = golden.tensor<T, 1, D>("in.param", Extents<1>(size));
  const auto gradients = golden.tensor<T, 2, D>("in.grads", {steps, size});

  AdamW<T, D> optimizer(size, options);
  Tensor<T, 2> history({steps, size});
  for (Index step = 0; step < steps; ++step) {
    optimizer.step(parameter.view(), gradients.template select<0>(step));
    copy(parameter, history.template select<0>(step));
  }
  golden.check_elements("out.params", history);
  golden.check_elements("out.exp_avg", optimizer.exp_avg());
  golden.check_elements("out.exp_avg_sq", optimizer.exp_avg_sq());
}

template <class T>
void clip(Case& golden) {
  const Index count = static_cast<Index>(golden.names("in.grad").size());
  golden.expect("n", count);
  std::vector<Tensor<T, 1>> gradients;
  std::vector<View<T, 1>> views;
  for (Index i = 0; i < count; ++i) {
    const std::string name = "in.grad" + std::to_string(i);
    Index size = 1;
    for (Index extent : golden.shape(name)) size *= extent;
    gradients.push_back(golden.tensor<T, 1>(name, Extents<1>(size)));
  }
  for (auto& gradient : gradients) views.push_back(gradient.view());
  const double norm = clip_global_norm(std::span<const View<T, 1>>(views), golden.number("max_norm", 1));
  golden.check("out.total_norm", norm);
  for (Index i = 0; i < count; ++i)
    golden.check_elements("out.grad" + std::to_string(i), gradients[static_cast<std::size_t>(i)]);
}

const Register adamw_registered(
    "adamw_step", []<class T, class D>(Case& golden) { adamw<T, D>(golden); }, NoBfloat16{});
const Register clip_registered("clip_grad_norm", clip<double>, clip<float>);

}  // namespace
}  // namespace diffmamba::conformance
