// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// Write an operator of your own, derive its backward pass by hand, and let central differences judge it.
//
// The operator scales each channel and caps it softly, out = cap * tanh(weight * x / cap), as some language models do
// with their logits. With t = tanh(weight * x / cap) and L = sum(dout * out) the chain rule gives
//
//   dx[row, c]  = dout[row, c] * (1 - t^2) * weight[c]
//   dweight[c]  = sum over rows of dout[row, c] * (1 - t^2) * x[row, c]

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "diffmamba/device/parallel.hpp"  // parallel_for
#include "diffmamba/tensor/random.hpp"    // Philox, fill_normal
#include "diffmamba/tensor/tensor.hpp"    // Tensor, View

namespace dm = diffmamba;
using dm::Index;

namespace soft_cap {

template <class T>
struct Inputs {
  dm::RequiredView<const T, 2> x;       // (rows, channels)
  dm::RequiredView<const T, 1> weight;  // (channels)
  double cap = 30.0;
};

template <class T>
struct Gradients {
  dm::Tensor<T, 2> dx;
  dm::Tensor<T, 1> dweight;
};

template <class T>
void check(const Inputs<T>& in) {  // stays on in release builds
  dm::require(in.cap > 0, "soft_cap: cap is ", in.cap, ", expected above 0");
  dm::require_shape("soft_cap", "weight", in.weight, dm::Extents<1>{in.x.extent(1)});
}

template <class T>
dm::Tensor<T, 2> forward(const Inputs<T>& in) {
  check(in);
  dm::Tensor<T, 2> out(in.x.extents());
  const T cap = static_cast<T>(in.cap);
  dm::parallel_for(out.extent(0), [&](Index row) {  // one tile per row: the same bits on any number of threads
    for (Index c = 0; c < out.extent(1); ++c) out(row, c) = cap * std::tanh(in.weight(c) * in.x(row, c) / cap);
  });
  return out;
}

template <class T>
Gradients<T> backward(const Inputs<T>& in, const dm::View<const T, 2>& dout) {
  check(in);
  Gradients<T> d{dm::Tensor<T, 2>(in.x.extents()), dm::Tensor<T, 1>(in.weight.extents())};
  const T cap = static_cast<T>(in.cap);
  dm::parallel_for(in.weight.extent(0), [&](Index c) {  // a sum belongs to one tile, so its order is fixed
    for (Index row = 0; row < in.x.extent(0); ++row) {
      const T t = std::tanh(in.weight(c) * in.x(row, c) / cap);
      d.dx(row, c) = dout(row, c) * (1 - t * t) * in.weight(c);
      d.dweight(c) += dout(row, c) * (1 - t * t) * in.x(row, c);
    }
  });
  return d;
}

}  // namespace soft_cap

// Compares a gradient with fourth-order central differences of `loss`, element by element; returns the worst difference
// relative to the gradient's largest element.
template <int Rank, class Loss>
double worst_error(dm::Tensor<double, Rank>& input, const dm::Tensor<double, Rank>& gradient, Loss&& loss) {
  constexpr double h = 1e-3;
  double worst = 0, scale = 0;
  for (Index i = 0; i < input.size(); ++i) {
    double& x = input.data()[i];
    const double kept = x;
    const auto at = [&](double step) {
      x = kept + step;
      return loss();
    };
    const double numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    x = kept;
    worst = std::fmax(worst, std::abs(gradient.data()[i] - numeric));
    scale = std::fmax(scale, std::abs(gradient.data()[i]));
  }
  return worst / scale;
}

int main() {
  // In double: differences of float losses have too few digits left to judge anything.
  dm::Tensor<double, 2> x({5, 7}), dout({5, 7});
  dm::Tensor<double, 1> weight({7});
  dm::fill_normal(x, dm::Philox{1});
  dm::fill_normal(dout, dm::Philox{2});
  dm::fill_normal(weight, dm::Philox{3});
  const soft_cap::Inputs<double> in{.x = x, .weight = weight, .cap = 1.5};

  const auto loss = [&] {  // L = sum(dout * out), whose gradients backward promises
    const auto out = soft_cap::forward(in);
    double sum = 0;
    for (Index i = 0; i < out.size(); ++i) sum += dout.data()[i] * out.data()[i];
    return sum;
  };
  const auto d = soft_cap::backward<double>(in, dout);
  const double dx_error = worst_error(x, d.dx, loss), dweight_error = worst_error(weight, d.dweight, loss);
  std::printf("dx:      worst relative error %.1e\ndweight: worst relative error %.1e\n", dx_error, dweight_error);

  // And would a mistake be found? Forget the inner derivative of one channel:
  auto wrong = soft_cap::backward<double>(in, dout);
  wrong.dweight(3) *= 1.001;
  const double wrong_error = worst_error(weight, wrong.dweight, loss);
  std::printf("dweight with 0.1 %% added to one element: %.1e\n", wrong_error);
  return dx_error < 1e-6 && dweight_error < 1e-6 && wrong_error > 1e-6 ? EXIT_SUCCESS : EXIT_FAILURE;
}
