// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>    // std::log, std::sqrt, std::sin, std::cos
#include <cstdint>  // std::uint32_t, std::uint64_t

#include "diffmamba/core/config.hpp"
#include "diffmamba/device/parallel.hpp"
#include "diffmamba/tensor/tensor.hpp"

namespace diffmamba {

/// 128 random bits.
struct RandomWords {
  std::uint32_t word[4];
  DIFFMAMBA_HOST_DEVICE constexpr std::uint32_t operator[](int i) const { return word[i]; }
};

/// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): block number
/// `index` of a stream, without any state. The key is the seed; the counter is (index, stream), so a seed has 2^64
/// streams of 2^64 blocks, and any block can be had at once by any thread or device.
DIFFMAMBA_HOST_DEVICE constexpr RandomWords philox(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  std::uint32_t c0 = static_cast<std::uint32_t>(index), c1 = static_cast<std::uint32_t>(index >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(stream), c3 = static_cast<std::uint32_t>(stream >> 32);
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0, p1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(p1);
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;  // golden ratio
    k1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return {{c0, c1, c2, c3}};
}

/// 24 random bits as a number in [0, 1): the same in float and double.
DIFFMAMBA_HOST_DEVICE constexpr float to_uniform(std::uint32_t word) {
  return static_cast<float>(word >> 8) * 5.9604644775390625e-8f;  // 2^-24
}

/// A random generator that is a value: a seed and a stream, and nothing that changes. The same Philox gives the same
/// numbers to whoever asks; different things that must be independent (two weights, two steps) take different streams
/// or children.
struct Philox {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;

  /// Block number `index`.
  DIFFMAMBA_HOST_DEVICE constexpr RandomWords operator()(std::uint64_t index) const {
    return philox(seed, stream, index);
  }
  /// Generator number `n` of those that hang below this one, with a seed and stream of its own:
  /// model.child(layer).child(2).
  DIFFMAMBA_HOST_DEVICE constexpr Philox child(std::uint64_t n) const {
    const RandomWords w = philox(~seed, stream, n);
    return {std::uint64_t{w[1]} << 32 | w[0], std::uint64_t{w[3]} << 32 | w[2]};
  }
};

/// A generator that may hang below the number of a step which only the device knows, so that a captured graph draws
/// anew each time it is launched: with `step`, random.child(*step).child(branch); without, `random`. A Philox converts
/// to it.
struct StepRandom {
  Philox random = {};
  const std::uint64_t* step = nullptr;  // in the memory of the device that draws
  std::uint64_t branch = 0;

  StepRandom() = default;
  StepRandom(Philox generator) : random(generator) {}
  StepRandom(Philox generator, const std::uint64_t* number) : random(generator), step(number) {}

  /// Generator number `n` of the step's.
  StepRandom child(std::uint64_t n) const {
    StepRandom result = step != nullptr ? StepRandom(random, step) : StepRandom(random.child(n));
    result.branch = n;
    return result;
  }
  /// The generator itself, where `step` can be read.
  DIFFMAMBA_HOST_DEVICE Philox get() const { return step != nullptr ? random.child(*step).child(branch) : random; }
};

namespace detail {

/// Writes element i of x, counted in row-major order, as draw(block i / 4)[i % 4].
template <class T, int Rank, class Draw>
void fill_by_blocks(const View<T, Rank, cpu>& x, Draw&& draw) {
  static_assert(!std::is_const_v<T>, "fill: the target cannot be written");
  const Index size = x.size();
  if (size == 0) return;
  const Index length = Rank == 0 ? 1 : x.extent(Rank > 0 ? Rank - 1 : 0);
  const Index step = Rank == 0 ? 1 : x.stride(Rank > 0 ? Rank - 1 : 0);
  constexpr Index tile = 4096;  // a multiple of a block, so that no block is drawn by two tiles
  parallel_for(tiles_of(size, tile), [&](Index t) {
    const Index last = (t + 1) * tile < size ? (t + 1) * tile : size;
    double numbers[4] = {};
    for (Index i = t * tile; i < last;) {  // one row, or what of it lies in this tile
      Index rest = i / length, offset = 0;
      for (int axis = Rank - 2; axis >= 0; --axis) {
        offset += rest % x.extent(axis) * x.stride(axis);
        rest /= x.extent(axis);
      }
      T* row = x.data() + offset;
      for (Index column = i % length; column < length && i < last; ++column, ++i) {
        if (i % 4 == 0 || i == t * tile) draw(static_cast<std::uint64_t>(i / 4), numbers);
        if constexpr (std::is_same_v<T, double>)
          row[column * step] = numbers[i % 4];
        else
          row[column * step] = T(static_cast<float>(numbers[i % 4]));
      }
    }
  });
}

}  // namespace detail

/// Normal numbers by Box and Muller, computed in double and rounded once: the same numbers in every element type, for
/// any strides and any number of threads. x: a tensor or view of any rank.
template <class X>
void fill_normal(X&& x, Philox random, double mean = 0.0, double std = 1.0) {
  detail::fill_by_blocks(as_view(x), [=](std::uint64_t block, double* numbers) {
    const RandomWords words = random(block);
    for (int i = 0; i < 4; i += 2) {
      const double u = (static_cast<double>(words[i]) + 1.0) * 0x1p-32;  // (0, 1]
      const double angle = static_cast<double>(words[i + 1]) * (0x1p-32 * 6.283185307179586476925);
      const double radius = std * std::sqrt(-2.0 * std::log(u));
      numbers[i] = mean + radius * std::cos(angle);
      numbers[i + 1] = mean + radius * std::sin(angle);
    }
  });
}

/// Numbers spread evenly over [low, high), 24 bits each (rounding to T may reach high).
template <class X>
void fill_uniform(X&& x, Philox random, double low = 0.0, double high = 1.0) {
  require(low <= high, "fill_uniform: low ", low, " is above high ", high);
  detail::fill_by_blocks(as_view(x), [=](std::uint64_t block, double* numbers) {
    const RandomWords words = random(block);
    for (int i = 0; i < 4; ++i) numbers[i] = low + (high - low) * static_cast<double>(to_uniform(words[i]));
  });
}

}  // namespace diffmamba
