// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/train/adamw.hpp"
#include "diffmamba/train/clip.hpp"
#include "diffmamba/train/device_update.hpp"

namespace diffmamba::conformance {
namespace {

/// Parameters in one array with copies in bfloat16, as a model in mixed precision has them.
struct FlatParameters {
  struct Arrays {
    View<float, 1, cuda> parameters;
    View<const float, 1, cuda> gradient;
    View<bfloat16, 1, cuda> rounded;
    std::vector<ParameterGroup> segments = {};
    auto values() const { return parameters; }
    auto gradients() const { return gradient; }
    auto shadows() const { return rounded; }
  } arrays;
  Arrays& flat() { return arrays; }
};

// Parameters, gradients and averages have the type of sums, whatever activations have.
template <class T, class D>
void adamw(Case& golden) {
  using R = accumulate_t<T>;
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
  auto parameter = golden.tensor<R, 1, D>("in.param", Extents<1>(size));
  const auto gradients = golden.tensor<R, 2, D>("in.grads", {steps, size});

  AdamW<R, D> optimizer(size, options);
  Tensor<R, 2> history({steps, size});
  for (Index step = 0; step < steps; ++step) {
    const View<const R, 1, D> gradient = gradients.template select<0>(step);
    if constexpr (std::is_same_v<D, cuda> && std::is_same_v<T, bfloat16>) {
      Tensor<bfloat16, 1, cuda> shadow(parameter.extents());
      FlatParameters model{{parameter.view(), gradient, shadow.view()}};
      optimizer.step(model, options.lr);
      const auto value = to<cpu>(parameter);
      const auto rounded = to<cpu>(shadow);
      for (Index i = 0; i < size; ++i)
        if (rounded(i) != bfloat16(value(i)))
          return golden.mistake("out.params", "the copy in bfloat16 is not the rounded parameter");
    } else {
      optimizer.step(parameter.view(), gradient);
    }
    copy(parameter, history.template select<0>(step));
  }
  golden.check_elements("out.params", history);
  golden.check_elements("out.exp_avg", optimizer.exp_avg());
  golden.check_elements("out.exp_avg_sq", optimizer.exp_avg_sq());
}

/// The gradients in place; returns their norm.
template <class T>
double clip_all(std::vector<Tensor<T, 1>>& gradients, double max_norm, cpu) {
  std::vector<View<T, 1>> views;
  for (auto& gradient : gradients) views.push_back(gradient.view());
  return clip_global_norm(std::span<const View<T, 1>>(views), max_norm);
}
/// On a GPU the norm is measured over the one array in which all gradients lie, and the factor is applied by whoever
/// reads them next, the optimizer; here on the host.
template <class T>
double clip_all(std::vector<Tensor<T, 1>>& gradients, double max_norm, cuda) {
  Index size = 0;
  for (const auto& gradient : gradients) size += gradient.size();
  Tensor<T, 1, cuda> flat(Extents<1>{size});
  size = 0;
  for (const auto& gradient : gradients) {
    copy(gradient, flat.template slice<0>(size, size + gradient.size()));
    size += gradient.size();
  }
  Tensor<double, 1, cuda> result(Extents<1>{1});
  Workspace<cuda> workspace(device_update_workspace_bytes<T>(size, 1));
  device_norm(View<const T, 1, cuda>(flat.view()), result.view(), workspace);
  const double norm = to<cpu>(result)(0), factor = clip_factor(norm, max_norm);
  for (auto& gradient : gradients)
    for (T& value : gradient) value = static_cast<T>(static_cast<double>(value) * factor);
  return norm;
}

template <class T, class D>
void clip(Case& golden) {
  using R = accumulate_t<T>;
  const Index count = static_cast<Index>(golden.names("in.grad").size());
  golden.expect("n", count);
  std::vector<Tensor<R, 1>> gradients;
  for (Index i = 0; i < count; ++i) {
    const std::string name = "in.grad" + std::to_string(i);
    Index size = 1;
    for (Index extent : golden.shape(name)) size *= extent;
    gradients.push_back(golden.tensor<R, 1>(name, Extents<1>(size)));
  }
  golden.check("out.total_norm", clip_all(gradients, golden.number("max_norm", 1), D{}));
  for (Index i = 0; i < count; ++i)
    golden.check_elements("out.grad" + std::to_string(i), gradients[static_cast<std::size_t>(i)]);
}

const Register adamw_registered("adamw_step", []<class T, class D>(Case& golden) { adamw<T, D>(golden); });
const Register clip_registered("clip_grad_norm", []<class T, class D>(Case& golden) { clip<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
