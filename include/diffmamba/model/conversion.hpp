// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>        // std::array
#include <map>          // std::map
#include <string>       // std::string
#include <string_view>  // std::string_view
#include <vector>       // std::vector

#include "diffmamba/model/model_config.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// Which layers of a Mamba-2 model become differential: all, the last quarter (layers / 4; the paper's last 12 of 48),
/// or 0, 2, 4, ...
enum class Conversion { all, quarter, alternate };
template <>
struct EnumNames<Conversion> {
  static constexpr std::array<std::string_view, 3> values{"all", "quarter", "alternate"};
};

constexpr bool converts(Conversion conversion, Index layer, Index layers) {
  return conversion == Conversion::all || (conversion == Conversion::quarter && layer >= layers - layers / 4) ||
         (conversion == Conversion::alternate && layer % 2 == 0);
}

/// The layers of the converted model: "mamba2" becomes "diff_mamba2" with expand 1 and as many heads as before, each
/// half as wide. Throws Error for another mixer there and for a width that cannot be halved. `model_wide` are the
/// options that hold for every layer.
inline Layers differential_layers(const Layers& layers, Index d_model, Conversion conversion,
                                  const MixerOptions& model_wide = {}) {
  Layers result = layers;
  for (Index i = 0; i < static_cast<Index>(layers.size()); ++i) {
    if (!converts(conversion, i, static_cast<Index>(layers.size()))) continue;
    auto& layer = result[static_cast<std::size_t>(i)];
    require(layer.mixer == "mamba2", "conversion: layer ", i, " is ", layer.mixer, ", expected mamba2");
    const auto number = [&](const char* name, double otherwise) {
      OptionValue value = otherwise;
      if (model_wide.contains(name)) value = model_wide.at(name);
      if (layer.options.contains(name)) value = layer.options.at(name);
      return std::holds_alternative<double>(value) ? std::get<double>(value) : otherwise;
    };
    const double expand = number("expand", 2), headdim = number("headdim", 64);
    require(expand == 2, "conversion: layer ", i, " has expand ", expand, ", expected 2");
    require(number("d_ssm", 0) == 0, "conversion: layer ", i, " has a d_ssm of its own, which cannot be halved");
    const auto heads = static_cast<Index>(expand * static_cast<double>(d_model) / headdim);
    require(heads >= 1 && d_model % heads == 0, "conversion: layer ", i, " has ", heads,
            " heads, which do not divide d_model ", d_model);
    layer.mixer = "diff_mamba2";
    layer.options.set("expand", 1.0);
    layer.options.set("headdim", static_cast<double>(d_model / heads));
  }
  return result;
}

namespace detail {

/// A tensor of any rank, flat.
template <class T>
struct FlatTensor {
  std::vector<Index> shape;
  std::vector<T> values;
};

template <class T, int Rank>
FlatTensor<T> flatten(const Tensor<T, Rank>& tensor) {
  FlatTensor<T> flat;
  for (int axis = 0; axis < Rank; ++axis) flat.shape.push_back(tensor.extent(axis));
  flat.values.assign(tensor.begin(), tensor.end());
  return flat;
}

/// Fills a smaller tensor from a larger one: along the one axis that shrinks the first entries, or the last. Throws
/// Error where that is not how the shapes differ.
template <class T, int Rank>
Tensor<T, Rank> first_or_last(const FlatTensor<T>& from, const Extents<Rank>& extents, bool last,
                              std::string_view name) {
  const auto cannot = [&] { fail("conversion: ", name, " cannot be filled from what it was: the shapes do not fit"); };
  if (from.shape.size() != static_cast<std::size_t>(Rank)) cannot();
  int axis = -1;
  for (int a = 0; a < Rank; ++a) {
    if (from.shape[static_cast<std::size_t>(a)] == extents[a]) continue;
    if (axis >= 0 || from.shape[static_cast<std::size_t>(a)] < extents[a]) cannot();
    axis = a;
  }
  auto result = Tensor<T, Rank>::uninitialized(extents);
  if (axis < 0) {
    std::copy(from.values.begin(), from.values.end(), result.begin());
    return result;
  }
  Index inner = 1, outer = 1;
  for (int a = 0; a < axis; ++a) outer *= extents[a];
  for (int a = axis + 1; a < Rank; ++a) inner *= extents[a];
  const Index old_run = from.shape[static_cast<std::size_t>(axis)] * inner, run = extents[axis] * inner;
  for (Index o = 0; o < outer; ++o)
    std::copy_n(from.values.data() + o * old_run + (last ? old_run - run : 0), run, result.data() + o * run);
  return result;
}

}  // namespace detail

/// Makes a Diff-Mamba-2 model of a Mamba-2 model, as its authors do (NadavSc/Diff-Mamba, from_pretrained_block): in
/// every converted layer the first path takes the FIRST rows of each tensor that is now smaller, the second path the
/// LAST ones (columns of out_proj), whole tensors where nothing shrinks (A_log, D, dt_bias). Rows are taken by
/// position, not by meaning: the old order is [z | x | B | C | dt] with z and x twice as wide, so that the second
/// path's z is the second half of the old x. norm is copied, subln starts at 1, lambda as the mixer initialises it,
/// from `random`. Everything else stays. The result is a model to be trained further; it does not compute what the old
/// one did.
template <class Model>
Model to_differential(const Model& model, Conversion conversion, Philox random = {}) {
  using T = accumulate_t<typename Model::value_type>;
  ModelConfig config = model.config();
  config.layers = differential_layers(config.layers, config.d_model, conversion, config.mixer);
  Model result(config);
  result.initialize(random);
  std::map<std::string, detail::FlatTensor<T>, std::less<>> old;
  model.visit(
      [&](std::string_view name, auto& parameter) { old[std::string(name)] = detail::flatten(parameter.to_tensor()); });
  result.visit([&](std::string_view name, auto& parameter) {
    constexpr int rank = std::remove_cvref_t<decltype(parameter)>::rank;
    std::string old_name(name);
    const auto path = old_name.find(".mixer.m1.") != std::string::npos   ? 1
                      : old_name.find(".mixer.m2.") != std::string::npos ? 2
                                                                         : 0;
    if (path > 0) old_name.replace(old_name.find(".mixer.m"), 10, ".mixer.");
    const auto found = old.find(old_name);
    if (found == old.end()) return;  // lambda and subln are new
    parameter.copy_from(detail::first_or_last<T, rank>(found->second, parameter.extents(), path == 2, name));
  });
  return result;
}

}  // namespace diffmamba
