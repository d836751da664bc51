// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "conformance/runner.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_backward.hpp"
#include "diffmamba/ops/cross_entropy/cross_entropy_forward.hpp"

namespace diffmamba::conformance {
namespace {

cross_entropy::Reduction reduction(const std::string& name) {
  if (name == "mean") return cross_entropy::Reduction::mean;
  if (name == "sum") return cross_entropy::Reduction::sum;
  if (name == "none") return cross_entropy::Reduction::none;
  fail("attribute reduction is \"", name, "\", expected mean, sum or none");
}

template <class T, class D>
void loss(Case& golden) {
  const auto& shape = golden.shape("in.logits");
  const Index vocab_size = shape.back();
  Index rows = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
  const auto logits = golden.tensor<T, 2, D>("in.logits", {rows, vocab_size});
  auto host_labels = golden.tensor<Index, 1>("in.labels", Extents<1>(rows));
  const cross_entropy::Options options{.ignore_index = golden.integer("ignore_index", -100),
                                       .label_smoothing = golden.number("label_smoothing", 0),
                                       .reduction = reduction(golden.text("reduction", "mean"))};

  // shift: the logits of a position against the label of the next one. The last position of a sequence has none, which
  // the operator sees as an ignored label and a golden loss per row does not list.
  const bool shift = golden.flag("shift", false), per_row = options.reduction == cross_entropy::Reduction::none;
  const Index length = shift ? shape[shape.size() - 2] : rows;
  if (shift) {
    require(shape.size() >= 2, "in.logits have no sequence axis to shift along");
    host_labels = cross_entropy::shifted(host_labels.reshape(Extents{length > 0 ? rows / length : 0, length}),
                                         options.ignore_index);
  }
  const Index listed = shift ? length - 1 : length;

  const auto labels = on<D>(std::move(host_labels));
  const cross_entropy::Inputs<T, Index, D> in{.logits = logits, .labels = labels};
  const auto [value, saved] = cross_entropy::forward(in, options);
  if (per_row)
    golden.check_elements("out.loss", value.reshape(Extents{rows / length, length}).template slice<1>(0, listed));
  else
    golden.check_elements("out.loss", value);

  if (!golden.has("gout.loss")) return;
  using A = accumulate_t<T>;
  Tensor<A, 1, D> dloss(value.extents());
  if (per_row)
    copy(golden.tensor<A, 2, D>("gout.loss", {rows / length, listed}),
         dloss.reshape(Extents{rows / length, length}).template slice<1>(0, listed));
  else
    dloss = golden.tensor<A, 1, D>("gout.loss", Extents<1>(1));
  const auto dlogits = cross_entropy::backward(in, saved, dloss);
  golden.gradient_elements("in.logits", dlogits);
}

const Register registered("cross_entropy", []<class T, class D>(Case& golden) { loss<T, D>(golden); });

}  // namespace
}  // namespace diffmamba::conformance
