// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/nn/block.hpp"

#include "diffmamba/nn/mamba2.hpp"
#include "nn/mixer_check.hpp"

namespace dm = diffmamba;
using namespace diffmamba::test;
using dm::Index;
using Double = dm::Block<dm::Mamba2<double>>;

namespace {
const dm::Mamba2Options small{
    .d_model = 6, .d_state = 3, .d_conv = 3, .headdim = 4, .chunk_size = 4, .dt_min = 0.1, .dt_max = 1.0};

Double make(const dm::BlockOptions& options) {
  Double block(6, small, options);
  initialize(block, dm::Philox{5});
  stir(block);
  return block;
}
}  // namespace

TEST_CASE("gradients of hidden states, residual stream and every parameter") {
  const dm::Threads threads(1);
  for (const auto& options :
       {dm::BlockOptions{}, dm::BlockOptions{.norm = dm::NormKind::layer_norm}, dm::BlockOptions{.dropout = 0.4}}) {
    for (const bool first : {false, true}) {
      auto block = make(options);
      auto hidden = random_tensor<double>(dm::Extents{2, 5, 6}, 1),
           residual = random_tensor<double>(hidden.extents(), 2);
      const auto dhidden = random_tensor<double>(hidden.extents(), 3),
                 dresidual = random_tensor<double>(hidden.extents(), 4);
      const auto loss = [&] {
        Double::Saved s;
        const auto out = block.forward(hidden, first ? dm::View<const double, 3>{} : std::as_const(residual).view(), s,
                                       dm::Philox{9});
        return dot(out, dhidden) + dot(s.residual(), dresidual);
      };
      Double::Saved saved;
      block.forward(hidden, first ? dm::View<const double, 3>{} : std::as_const(residual).view(), saved, dm::Philox{9});
      auto d = dresidual;
      block.backward(dhidden, d, saved);
      check_gradient("hidden", hidden, d, loss);
      if (!first) check_gradient("residual", residual, d, loss);
      block.visit([&](std::string_view name, auto& parameter) {
        INFO(name);
        auto value = parameter.to_tensor();
        check_gradient(
            "parameter", value, parameter.gradient_to_tensor(),
            [&] {
              parameter.copy_from(value);
              return loss();
            },
            1e-6, 1e-3, 12);
        parameter.copy_from(value);
      });
    }
  }
}

TEST_CASE("training, inference, prefill and steps agree; the residual stream passes through") {
  const auto block = make({.norm = dm::NormKind::layer_norm});
  const auto hidden = random_tensor<double>(dm::Extents{2, 7, 6}, 1),
             residual = random_tensor<double>(hidden.extents(), 2);
  Double::Saved saved;
  const auto want = block.forward(hidden, residual, saved);
  auto sum = residual;
  for (Index i = 0; i < sum.size(); ++i) sum.data()[i] += hidden.data()[i];
  CHECK(relative_error(saved.residual(), sum) < 1e-15);
  auto stream = residual;
  CHECK(relative_error(block.infer(hidden, stream), want) < 1e-12);
  CHECK(relative_error(stream, sum) < 1e-15);
  auto state = block.make_state(2);
  stream = residual;
  dm::Tensor<double, 3> got(hidden.extents());
  for (Index t = 0; t < 7; ++t)
    copy(block.prefill(hidden.slice<1>(t, t + 1), stream.slice<1>(t, t + 1), state), got.slice<1>(t, t + 1));
  CHECK(relative_error(got, want) < 1e-12);
  CHECK(relative_error(stream, sum) < 1e-15);
}

TEST_CASE("dropout drops in training only") {
  const auto block = make({.dropout = 0.5}), plain = make({});
  const auto hidden = random_tensor<double>(dm::Extents{4, 50, 6}, 1);
  Double::Saved saved;
  const auto dropped = block.forward(hidden, {}, saved, dm::Philox{1});
  const auto whole = plain.forward(hidden, {}, saved);
  Index zeros = 0;
  for (Index i = 0; i < dropped.size(); ++i) {
    if (dropped.data()[i] == 0)
      ++zeros;
    else
      CHECK(dropped.data()[i] == doctest::Approx(2 * whole.data()[i]));
  }
  CHECK(zeros > 500);
  CHECK(zeros < 700);
  auto stream = dm::Tensor<double, 3>(hidden.extents());
  CHECK(relative_error(block.infer(hidden, stream, true), whole) < 1e-12);
  CHECK(error_of([] { Double refused(6, small, {.dropout = 1.0}); }) ==
        "block: dropout is 1, expected 0 or more and less than 1");
}

TEST_CASE("recompute keeps less and changes no bit") {
  const auto hidden = random_tensor<double>(dm::Extents{2, 9, 6}, 1),
             dhidden = random_tensor<double>(dm::Extents{2, 9, 6}, 2);
  std::vector<double> first;
  std::size_t first_bytes = 0;
  for (const auto recompute : {dm::Recompute::nothing, dm::Recompute::convolution, dm::Recompute::mixer}) {
    auto block = make({.dropout = 0.3, .recompute = recompute});
    Double::Saved saved;
    const auto before = dm::arena<dm::cpu>().bytes_in_use();
    std::vector<double> all;
    const auto keep = [&](const auto& tensor) { all.insert(all.end(), tensor.begin(), tensor.end()); };
    keep(block.forward(hidden, {}, saved, dm::Philox{9}));
    const auto bytes = dm::arena<dm::cpu>().bytes_in_use() - before;
    auto d = dhidden;
    block.backward(dhidden, d, saved);
    keep(d);
    block.visit([&](std::string_view, auto& parameter) { keep(parameter.gradient_to_tensor()); });
    if (recompute != dm::Recompute::nothing) {
      CHECK(all == first);
      CHECK(bytes < (recompute == dm::Recompute::mixer ? first_bytes / 2 : first_bytes - 2 * 9 * 18 * sizeof(double)));
    } else {
      first = all;
      first_bytes = bytes;
    }
  }
}

TEST_CASE("names") {
  std::vector<std::string> names;
  make({.norm = dm::NormKind::layer_norm}).visit([&](std::string_view name, auto&) { names.emplace_back(name); });
  REQUIRE(names.size() == 10);
  CHECK(names[0] == "norm.weight");
  CHECK(names[1] == "norm.bias");
  CHECK(names[2] == "mixer.in_proj.weight");
  CHECK(names[9] == "mixer.out_proj.weight");
}
