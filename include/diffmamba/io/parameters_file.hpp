// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>    // std::same_as
#include <functional>  // std::function
#include <set>         // std::set
#include <string>      // std::string

#include "diffmamba/io/safetensors.hpp"
#include "diffmamba/nn/parameter.hpp"

namespace diffmamba {

namespace detail {
/// A parameter whose values lie densely in host memory, as a file has them.
template <class P>
concept DenseOnHost = requires(const P& parameter) {
  { parameter.value() } -> std::same_as<View<const typename P::value_type, P::rank>>;
};
}  // namespace detail

/// The parameters of a module or model under their official names, as they go into a file.
template <class ModuleType>
std::vector<NamedTensor> named_parameters(const ModuleType& of) {
  std::vector<NamedTensor> tensors;
  of.visit([&](std::string_view name, auto& parameter) {
    using P = std::remove_cvref_t<decltype(parameter)>;
    using Values = decltype(parameter.to_tensor());
    // Something that outlives the visit; elements that are not dense in host memory are gathered when they are written.
    if constexpr (detail::DenseOnHost<P>) {
      tensors.emplace_back(std::string(name), parameter.value());
    } else {
      tensors.emplace_back(std::string(name), dtype_of<typename P::value_type>, parameter.extents(),
                           [part = part_of(parameter)]() -> std::shared_ptr<const void> {
                             auto values = std::make_shared<Values>(part.to_tensor());
                             return {values, values->data()};
                           });
    }
  });
  return tensors;
}

/// The name that a file gives to a parameter; the same by default.
using ParameterNames = std::function<std::string(std::string_view)>;

/// Reads every parameter of a module from a file. A tensor that is missing, is not asked for, or has another shape is
/// an Error that names file and tensor, before anything is changed.
template <class ModuleType>
void load_parameters(SafetensorsFile& file, ModuleType& of, const ParameterNames& file_name = {}) {
  const auto in_file = [&](std::string_view name) { return file_name ? file_name(name) : std::string(name); };
  std::set<std::string> wanted;
  of.visit([&](std::string_view name, auto& parameter) {
    const std::string key = in_file(name);
    const auto& stored = file.info(key);
    std::vector<Index> expected;
    constexpr int rank = std::remove_cvref_t<decltype(parameter)>::rank;
    for (int axis = 0; axis < rank; ++axis) expected.push_back(parameter.extents()[axis]);
    require(stored.shape == expected, file.path().string(), ": tensor ", key, " has the shape ",
            detail::print_shape(stored.shape), ", the model expects ", detail::print_shape(expected));
    wanted.insert(key);
  });
  for (const auto& [name, info] : file.tensors())
    require(wanted.contains(name), file.path().string(), ": the model has no parameter for the tensor ", name);
  of.visit([&](std::string_view name, auto& parameter) {
    using P = std::remove_cvref_t<decltype(parameter)>;
    using T = typename P::value_type;
    parameter.copy_from(file.tensor<T, P::rank>(in_file(name)));
  });
}

}  // namespace diffmamba
