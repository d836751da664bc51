// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/generate/device_sampler.hpp"
#include "diffmamba/generate/sampler.hpp"

namespace diffmamba::conformance {
namespace {

// The filters are one function each on the host; on a GPU they are steps of the kernel that samples, which shows what
// it draws from.
template <class R>
Tensor<R, 2> filtered(const std::string& kind, double value, Tensor<R, 2> logits, const Tensor<Index, 2>& previous) {
  for (Index row = 0; row < logits.extent(0); ++row) {
    const View<R, 1> one = logits.template select<0>(row);
    if (kind == "top_k")
      logits_filter::top_k(one, static_cast<Index>(value));
    else if (kind == "top_p")
      logits_filter::top_p(one, value);
    else
      logits_filter::repetition_penalty(
          one, std::span<const Index>(previous.view().pointer(row), static_cast<std::size_t>(previous.extent(1))),
          value);
  }
  return logits;
}
template <class R>
Tensor<R, 2, cuda> filtered(const std::string& kind, double value, const Tensor<R, 2, cuda>& logits,
                            const Tensor<Index, 2>& previous) {
  const Index rows = logits.extent(0), vocab_size = logits.extent(1);
  SamplerOptions options;
  if (kind == "top_k") options.top_k = static_cast<Index>(value);
  if (kind == "top_p") options.top_p = value;
  if (kind == "repetition_penalty") options.repetition_penalty = value;
  auto result = Tensor<R, 2, cuda>::uninitialized(logits.extents());
  Tensor<std::int32_t, 1, cuda> tokens(Extents<1>{rows});
  const std::vector<std::uint64_t> zeros(static_cast<std::size_t>(rows), 0);
  auto position = Tensor<std::uint64_t, 1, cuda>::uninitialized(Extents<1>{rows});
  copy_elements(cuda{}, zeros.data(), position.data(), rows);
  SampleArrays<R> arrays{.logits = logits, .tokens = tokens, .position = position, .filtered = result.view()};
  Tensor<std::int32_t, 2, cuda> history;
  auto remembered = Tensor<std::uint64_t, 1, cuda>::uninitialized(Extents<1>{rows});
  if (previous) {
    Tensor<std::int32_t, 2> narrow(previous.extents());
    std::transform(previous.begin(), previous.end(), narrow.begin(),
                   [](Index token) { return static_cast<std::int32_t>(token); });
    history = to<cuda>(narrow);
    const std::vector<std::uint64_t> all(static_cast<std::size_t>(rows),
                                         static_cast<std::uint64_t>(previous.extent(1)));
    copy_elements(cuda{}, all.data(), remembered.data(), rows);
    arrays.history = history.view();
    arrays.remembered = remembered.view();
  }
  Workspace<cuda> workspace(device_sample_workspace_bytes<R>(rows, vocab_size));
  device_sample(arrays, options, workspace);
  return result;
}

template <class T, class D>
void filter(Case& golden) {
  using R = accumulate_t<T>;  // logits are sums
  const std::string kind = golden.text("kind", "");
  const double value = golden.number("value", 0);
  require(kind == "top_k" || kind == "top_p" || kind == "repetition_penalty", "attribute kind is \"", kind,
          "\", expected top_k, top_p or repetition_penalty");
  require(kind != "top_k" || value == std::floor(value), "attribute value is ", value, ", expected an integer");
  const auto& shape = golden.shape("in.logits");
  const Index vocab_size = shape.back();
  Index rows = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
  const auto logits = golden.tensor<R, 2, D>("in.logits", {rows, vocab_size});
  Tensor<Index, 2> previous;
  if (kind == "repetition_penalty") previous = golden.tensor<Index, 2>("in.prev_tokens");
  golden.check_elements("out.logits", filtered(kind, value, logits, previous));
}

const Register registered("logits_filter", []<class T, class D>(Case& golden) { filter<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
