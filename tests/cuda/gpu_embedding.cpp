// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The embedding on a GPU against the CPU.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "diffmamba/ops/embedding/embedding_backward.hpp"
#include "diffmamba/ops/embedding/embedding_forward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "support/gradient_check.hpp"

using namespace diffmamba;
using test::relative_error;

namespace {

template <class T, int Rank>
bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0;
}

struct Case {
  Index batch, length, vocab_size, d_model;
};

}  // namespace

TEST_SUITE("on a GPU" * doctest::skip(cuda_runtime::device_count() == 0)) {
  TEST_CASE_TEMPLATE("rows forward, sums in the order of the text backward", T, double, float, bfloat16) {
    using S = accumulate_t<T>;
    const double within = std::is_same_v<T, double> ? 1e-14 : 2e-6;
    for (const Case& c :
         {Case{2, 0, 5, 8}, Case{1, 1, 1, 1}, Case{3, 7, 5, 33}, Case{2, 1000, 1, 64}, Case{4, 257, 3, 40},
          Case{5, 300, 256, 1024}, Case{2, 500, 50288, 96}, Case{1, 31, 2, 130}, Case{8, 32, 100000, 4}}) {
      CAPTURE(c.length);
      CAPTURE(c.vocab_size);
      CAPTURE(c.d_model);
      Tensor<std::int32_t, 2> tokens({c.batch, c.length});
      std::mt19937 generator(5);
      // Half of the text is one token, as spaces are.
      for (auto& token : tokens)
        token = generator() % 2 == 0 ? static_cast<std::int32_t>(c.vocab_size / 2)
                                     : static_cast<std::int32_t>(generator() % static_cast<unsigned>(c.vocab_size));
      const auto weight = test::random_tensor<T>(Extents{c.vocab_size, c.d_model}, 1);
      const auto dout = test::random_tensor<T>(Extents{c.batch, c.length, c.d_model}, 2);
      const embedding::Inputs<T> in{.tokens = tokens, .weight = weight};
      const auto want = embedding::forward(in);
      auto dwant = embedding::backward(in, dout);

      const auto gpu_tokens = to<cuda>(tokens);
      const auto gpu_weight = to<cuda>(weight),
                 gpu_dout = to<cuda>(dout.reshape(Extents{c.batch * c.length, c.d_model}));
      const auto dout_view = gpu_dout.reshape(dout.extents());
      const embedding::Inputs<T, std::int32_t, cuda> gpu{.tokens = gpu_tokens, .weight = gpu_weight};
      CHECK(same_bits(to<cpu>(embedding::forward(gpu)), want));
      auto dgot = embedding::backward(gpu, dout_view);
      CHECK(relative_error(to<cpu>(dgot), dwant) < within);
      CHECK(same_bits(to<cpu>(dgot), to<cpu>(embedding::backward(gpu, dout_view))));
      embedding::backward(gpu, dout_view, dgot.view(), GradientMode::add);
      for (S& value : dwant) value *= 2;
      CHECK(relative_error(to<cpu>(dgot), dwant) < within);
      // A gradient of the type of sums gives the same bits.
      const auto wide = to<cuda>(to_tensor<S>(dout.view()));
      Tensor<S, 2, cuda> from_wide({c.vocab_size, c.d_model}, S(NAN)), narrow({c.vocab_size, c.d_model});
      embedding::backward(gpu, wide.view(), from_wide.view());
      embedding::backward(gpu, dout_view, narrow.view());
      CHECK(same_bits(to<cpu>(from_wide), to<cpu>(narrow)));
    }
  }

  TEST_CASE("strided tokens, weights and gradients; wide tokens; tokens out of range") {
    const auto weight = test::random_tensor<float>(Extents{10, 24}, 1);
    const auto dout = test::random_tensor<float>(Extents{4, 6, 24}, 2);
    Tensor<std::int64_t, 2> tokens({6, 4});
    for (Index i = 0; i < tokens.size(); ++i) tokens.data()[i] = i * 7 % 10;
    const View<const std::int64_t, 2> turned = std::as_const(tokens).view().permute<1, 0>();
    const embedding::Inputs<float, std::int64_t> in{.tokens = turned, .weight = weight.slice<1>(3, 20)};
    const auto gpu_weight = to<cuda>(weight);
    const auto gpu_dout = to<cuda>(dout);
    auto gpu_tokens = to<cuda>(tokens);
    const auto inputs = [&] {
      return embedding::Inputs<float, std::int64_t, cuda>{.tokens = gpu_tokens.view().permute<1, 0>(),
                                                          .weight = gpu_weight.slice<1>(3, 20)};
    };
    CHECK(same_bits(to<cpu>(embedding::forward(inputs())), embedding::forward(in)));
    Tensor<float, 2> want({10, 30}, 1.0f);
    embedding::backward(in, dout.slice<2>(5, 22), want.slice<1>(2, 19));
    Tensor<float, 2, cuda> got({10, 30}, 1.0f);
    embedding::backward(inputs(), gpu_dout.slice<2>(5, 22), got.slice<1>(2, 19));
    CHECK(relative_error(to<cpu>(got), want) < 1e-6);

    tokens(1, 2) = 10;
    tokens(3, 0) = -1;
    gpu_tokens = to<cuda>(tokens);
    const auto out = to<cpu>(embedding::forward(inputs()));
    for (Index b = 0; b < 4; ++b)
      for (Index t = 0; t < 6; ++t) CHECK(std::isnan(out(b, t, 3)) == ((b == 2 && t == 1) || (b == 0 && t == 3)));
    const auto gradient = to<cpu>(embedding::backward(inputs(), gpu_dout.slice<2>(5, 22)));
    double sum = 0, expected = 0;
    for (float value : gradient) sum += static_cast<double>(value);
    for (Index b = 0; b < 4; ++b)
      for (Index t = 0; t < 6; ++t)
        if (!((b == 2 && t == 1) || (b == 0 && t == 3)))
          for (Index j = 5; j < 22; ++j) expected += static_cast<double>(dout(b, t, j));
    CHECK(sum == doctest::Approx(expected).epsilon(1e-4));
  }
}
