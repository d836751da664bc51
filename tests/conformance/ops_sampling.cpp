// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/generate/sampler.hpp"

namespace diffmamba::conformance {
namespace {

template <class T>
void filter(Case& golden) {
  const std::string kind = golden.text("kind", "");
  const double value = golden.number("value", 0);
  const auto& shape = golden.shape("in.logits");
  const Index vocab_size = shape.back();
  Index rows = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
  auto logits = golden.tensor<T, 2>("in.logits", {rows, vocab_size});
  Tensor<Index, 2> previous;
  if (kind == "repetition_penalty") previous = golden.tensor<Index, 2>("in.prev_tokens");

  for (Index row = 0; row < rows; ++row) {
    const auto one = logits.template select<0>(row);
    if (kind == "top_k") {
      require(value == std::floor(value), "attribute value is ", value, ", expected an integer");
      logits_filter::top_k(one, static_cast<Index>(value));
    } else if (kind == "top_p") {
      logits_filter::top_p(one, value);
    } else if (kind == "repetition_penalty") {
      logits_filter::repetition_penalty(
          one, std::span<const Index>(previous.view().pointer(row), static_cast<std::size_t>(previous.extent(1))),
          value);
    } else {
      fail("attribute kind is \"", kind, "\", expected top_k, top_p or repetition_penalty");
    }
  }
  golden.check_elements("out.logits", logits);
}

const Register registered("logits_filter", filter<double>, filter<float>);

}  // namespace
}  // namespace diffmamba::conformance
