// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>      // std::size_t
#include <string>       // std::string
#include <type_traits>  // std::type_identity
#include <variant>      // std::variant

#include "diffmamba/nn/block.hpp"
#include "diffmamba/nn/diff_mamba2e.hpp"
#include "diffmamba/nn/diff_s6.hpp"
#include "diffmamba/nn/diff_s6_mamba2.hpp"
#include "diffmamba/nn/differential.hpp"
#include "diffmamba/nn/mamba.hpp"
#include "diffmamba/nn/mamba2.hpp"

namespace diffmamba {

/// The mixers that a model's configuration may name. A layer is one of several types of block, and what it saves and
/// carries along stands at the same place of two more variants.
template <Mixer... Mixers>
struct MixerList {
  using Blocks = std::variant<Block<Mixers>...>;
  using Saved = std::variant<std::monostate, typename Block<Mixers>::Saved...>;
  using States = std::variant<typename Block<Mixers>::State...>;

  /// The Saved of the block type at `place`, kept from step to step.
  template <std::size_t place>
  static auto& saved(Saved& any) {
    if (any.index() != place + 1) any.template emplace<place + 1>();
    return std::get<place + 1>(any);
  }
  /// "mamba2, diff_mamba2"
  static std::string names() {
    std::string list;
    ((list += (list.empty() ? "" : ", ") + std::string(Mixers::name())), ...);
    return list;
  }
};

/// The library's own: mamba, mamba2, diff_mamba, diff_mamba2, diff_s6, diff_s6_mamba2, diff_mamba2e.
template <class T, Device DeviceType = cpu>
struct BuiltinMixers {
  using type = MixerList<Mamba<T, DeviceType>, Mamba2<T, DeviceType>, Differential<Mamba<T, DeviceType>>,
                         Differential<Mamba2<T, DeviceType>>, DiffS6<T, DeviceType>, DiffS6Mamba2<T, DeviceType>,
                         DiffMamba2E<T, DeviceType>>;
};

}  // namespace diffmamba
