// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
//
// Tensors, views and lazy arithmetic in two minutes. Everything printed below is checked as it is computed.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "diffmamba/expr/expr.hpp"
#include "diffmamba/tensor/random.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace dm = diffmamba;
using dm::Index;

namespace {
int mistakes = 0;
void show(const char* what, double value, double expected) {
  const bool right = std::abs(value - expected) <= 1e-5 * (1 + std::abs(expected));
  std::printf("%-52s %10.5f%s\n", what, value, right ? "" : "   <- wrong");
  mistakes += right ? 0 : 1;
}
}  // namespace

int main() {
  // A tensor owns dense row-major memory. Sizes are 64-bit, the element type and the number of axes are in its type.
  dm::Tensor<float, 2> x({64, 256}), y({64, 256});  // (token, channel), zeros
  dm::Tensor<float, 1> w({256}, 1.5f);
  dm::fill_normal(x, dm::Philox{42});  // the same numbers on any machine, by any number of threads
  show("x(3, 5)", static_cast<double>(x(3, 5)), static_cast<double>(x.data()[3 * 256 + 5]));

  // Arithmetic only describes what is to be done; the assignment does it, in one pass and without a temporary. Shapes
  // broadcast as in NumPy: w scales every row.
  y = dm::silu(x) * w + 0.5f;
  const double a = static_cast<double>(x(3, 5));
  show("silu(x) * w + 0.5 at (3, 5)", static_cast<double>(y(3, 5)), a / (1 + std::exp(-a)) * 1.5 + 0.5);

  // Reductions go anywhere in an expression, over all elements or some axes.
  const dm::Tensor<float, 1> rms = dm::sqrt(dm::mean(x * x, dm::axis<1>));  // (token)
  y = x / dm::sqrt(dm::mean(x * x, dm::axis<-1>, dm::keepdims) + 1e-5f);    // RMSNorm, one pass
  show("x(3, 5) / rms(3)", static_cast<double>(y(3, 5)), a / static_cast<double>(rms(3)));
  const float largest = dm::max(dm::abs(y - dm::mean(y)));
  show("mean square of y", static_cast<double>(float(dm::mean(y * y))), 1.0);
  std::printf("%-52s %10.5f\n", "largest distance from the mean", static_cast<double>(largest));

  // A view looks at memory and owns nothing: slices, single rows, transposes, another shape. None copies an element.
  const auto left = x.slice<1>(0, 128);                  // (64, 128), strided
  const auto row = x.select<0>(3);                       // (256)
  const auto turned = x.view().permute<1, 0>();          // (256, 64)
  const auto heads = x.reshape(dm::Extents{64, 4, 64});  // (token, head, channel of the head)
  show("the same element through a slice", static_cast<double>(left(3, 5)), a);
  show("... through a row", static_cast<double>(row(5)), a);
  show("... through a transpose", static_cast<double>(turned(5, 3)), a);
  show("... through heads", static_cast<double>(heads(3, 0, 5)), a);

  // Views are operands, and dm::assign writes through them: the second half of y becomes the double of x's first half.
  dm::assign(y.slice<1>(128, 256), 2.0f * left);
  show("y(3, 128 + 5) = 2 x(3, 5)", static_cast<double>(y(3, 133)), 2 * a);

  // Your memory, no copy: a pointer is enough.
  std::vector<float> mine(6, 2.0f);
  const dm::View<float, 2> view(mine.data(), {2, 3});
  dm::assign(view, view * view + 1.0f);
  show("a vector of the standard library", static_cast<double>(mine[5]), 5.0);

  // A formula of your own, for numbers and for SIMD registers of them.
  const dm::Tensor<float, 2> capped = dm::map([](auto v) { return dm::tanh(v) * decltype(v)(30); }, x);
  show("30 tanh(x) at (3, 5)", static_cast<double>(capped(3, 5)), 30 * std::tanh(a));

  // bfloat16 is stored in 16 bits and computed in float; it is rounded once, when a value is stored.
  dm::Tensor<dm::bfloat16, 2> half_as_wide({64, 256});
  half_as_wide = x * 1.0f;
  show("x(3, 5) in bfloat16", static_cast<double>(static_cast<float>(half_as_wide(3, 5))),
       static_cast<double>(static_cast<float>(dm::bfloat16(x(3, 5)))));

  // Mistakes are one sentence at the place where they are made.
  try {
    y = x + dm::Tensor<float, 1>({255});
    ++mistakes;
  } catch (const dm::Error& error) {
    std::printf("\nx + a tensor of 255 elements: \"%s\"\n", error.what());
  }
  return mistakes == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
