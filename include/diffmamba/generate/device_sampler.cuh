// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/device/cuda.cuh"
#include "diffmamba/generate/device_sampler.hpp"

namespace diffmamba {

namespace detail {

inline constexpr int sampler_threads = 1024;

/// What the kernel needs of SamplerOptions.
struct SamplerNumbers {
  double temperature, top_p, min_p, repetition_penalty;
  Index top_k;
  std::uint64_t seed;
  int mass_bits;  // probability 1 (of the likeliest token) as an integer is 2^mass_bits
};

/// Bits that are ordered as the numbers are.
__device__ inline unsigned ordered_bits(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

/// A block's inclusive sum up to each thread, and the total in `total`.
__device__ inline unsigned long long inclusive_sum(unsigned long long value, unsigned long long& total) {
  __shared__ unsigned long long warps[sampler_threads / 32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned long long before = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += before;
  }
  __syncthreads();  // warps may still be read by an earlier call
  if (lane == 31) warps[warp] = value;
  __syncthreads();
  if (warp == 0) {
    unsigned long long sum = warps[lane];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const unsigned long long before = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += before;
    }
    warps[lane] = sum;
  }
  __syncthreads();
  total = warps[sampler_threads / 32 - 1];
  return value + (warp > 0 ? warps[warp - 1] : 0ull);
}

/// The largest and its first place, in all threads.
__device__ inline void block_argmax(float& value, int& place) {
  __shared__ float values[sampler_threads / 32];
  __shared__ int places[sampler_threads / 32];
  const auto take = [&](float other, int at) {
    if (other > value || (other == value && at < place)) {
      value = other;
      place = at;
    }
  };
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    take(__shfl_xor_sync(0xffffffffu, value, step), __shfl_xor_sync(0xffffffffu, place, step));
  if (threadIdx.x % 32 == 0) {
    values[threadIdx.x / 32] = value;
    places[threadIdx.x / 32] = place;
  }
  __syncthreads();
  value = values[threadIdx.x % 32];
  place = places[threadIdx.x % 32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    take(__shfl_xor_sync(0xffffffffu, value, step), __shfl_xor_sync(0xffffffffu, place, step));
}

/// A weight in [0, 1] as a multiple of 2^-bits, rounded down.
__device__ inline unsigned long long mass_of(float weight, int bits) {
  const unsigned word = __float_as_uint(weight);
  const unsigned long long mantissa = (word & 0x7fffffu) | 0x800000u;
  const int shift = static_cast<int>(word >> 23) - 150 + bits;
  if (word < 0x800000u || shift < -24) return 0;
  return shift >= 0 ? mantissa << shift : mantissa >> -shift;
}

inline constexpr int sampler_list = 4096, sampler_few = 256;

/// The shared memory of select_by_mass.
struct Selection {
  unsigned long long sums[2][4][sampler_threads / 32];  // in turns, so that one barrier a round is enough
  int counts[2][4][sampler_threads / 32];
  unsigned list[sampler_list];  // keys
  int listed;
  unsigned only;
  unsigned long long smaller;
  bool any;
};

/// select_by_mass for the first `size` keys of the list, up to sampler_few: every key looks at all others. `below`:
/// what counts already.
template <class Mass>
__device__ inline bool select_of_few(int size, unsigned long long budget, const Mass& mass, Selection& shared,
                                     unsigned& found, unsigned long long& below) {
  if (threadIdx.x == 0) shared.any = false;
  __syncthreads();
  if (const int i = static_cast<int>(threadIdx.x); i < size) {
    const unsigned own = shared.list[i];
    unsigned long long smaller = below, equal = 0;
    bool first = true;
    for (int j = 0; j < size; ++j) {
      const unsigned other = shared.list[j];
      const unsigned long long m = mass(other);
      smaller += other < own ? m : 0ull;
      equal += other == own ? m : 0ull;
      first = first && (other != own || j >= i);
    }
    if (first && smaller <= budget && smaller + equal > budget) {  // one thread
      shared.only = own;
      shared.smaller = smaller;
      shared.any = true;
    }
  }
  __syncthreads();
  found = shared.only;
  below = shared.smaller;
  return shared.any;
}

/// Finds, two bits at a time, the smallest key whose mass and that of all smaller keys together are more than `budget`.
/// `below`: the mass of all smaller keys. False if there is no such key. The mass follows from the key; keys of mass 0
/// do not count. As soon as no more than sampler_list keys are left they are copied into the list; with `from_list`
/// they lie there already. Integer sums: no order matters.
template <class Key, class Mass>
__device__ inline bool select_by_mass(int size, unsigned long long budget, const Key& key, const Mass& mass,
                                      Selection& shared, bool from_list, unsigned& found, unsigned long long& below) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  found = 0;
  below = 0;
  __syncthreads();
  for (int shift = 30; shift >= 0; shift -= 2) {
    if (from_list && size <= sampler_few) return select_of_few(size, budget, mass, shared, found, below);
    // The keys with each next digit: how many, and their mass.
    unsigned long long sum[4] = {};
    int count[4] = {};
    for (int i = static_cast<int>(threadIdx.x); i < size; i += sampler_threads) {
      const unsigned bits = from_list ? shared.list[i] : key(i);
      if (shift < 30 && ((bits ^ found) >> (shift + 2)) != 0) continue;
      const unsigned long long m = mass(bits);
      if (m == 0) continue;
      const unsigned digit = (bits >> shift) & 3u;
#pragma unroll
      for (unsigned d = 0; d < 4; ++d) {
        sum[d] += digit == d ? m : 0ull;
        count[d] += digit == d ? 1 : 0;
      }
    }
    const int turn = (shift / 2) % 2;
#pragma unroll
    for (int d = 0; d < 4; ++d) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum[d] += __shfl_xor_sync(0xffffffffu, sum[d], step);
      count[d] = __reduce_add_sync(0xffffffffu, count[d]);
      if (lane == 0) {
        shared.sums[turn][d][warp] = sum[d];
        shared.counts[turn][d][warp] = count[d];
      }
    }
    __syncthreads();
    unsigned digit = 4;
    int left = 0;
#pragma unroll
    for (unsigned d = 0; d < 4; ++d) {
      unsigned long long all = shared.sums[turn][d][lane];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) all += __shfl_xor_sync(0xffffffffu, all, step);
      const int keys = __reduce_add_sync(0xffffffffu, shared.counts[turn][d][lane]);
      if (digit < 4) continue;
      if (below + all > budget && keys > 0) {
        digit = d;
        left = keys;
      } else {
        below += all;
      }
    }
    if (digit == 4) return false;
    found |= digit << shift;
    if (left == 1) {
      for (int i = static_cast<int>(threadIdx.x); i < size; i += sampler_threads) {
        const unsigned bits = from_list ? shared.list[i] : key(i);
        if (((bits ^ found) >> shift) == 0 && mass(bits) != 0) shared.only = bits;
      }
      __syncthreads();
      found = shared.only;
      return true;
    }
    if (left > (from_list ? sampler_few : sampler_list) || (from_list && size <= sampler_few)) continue;
    // Those that are left become the list; what the list holds is in registers meanwhile.
    unsigned listed[sampler_list / sampler_threads];
#pragma unroll
    for (int t = 0; t < sampler_list / sampler_threads; ++t)
      if (const int i = static_cast<int>(threadIdx.x) + t * sampler_threads; from_list && i < size)
        listed[t] = shared.list[i];
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    const auto keep = [&](unsigned bits) {
      if (((bits ^ found) >> shift) == 0 && mass(bits) != 0) shared.list[atomicAdd(&shared.listed, 1)] = bits;
    };
    if (from_list) {
#pragma unroll
      for (int t = 0; t < sampler_list / sampler_threads; ++t)
        if (static_cast<int>(threadIdx.x) + t * sampler_threads < size) keep(listed[t]);
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < size; i += sampler_threads) keep(key(i));
    }
    __syncthreads();
    from_list = true;
    size = left;
  }
  return true;
}

/// Moves the values that are at least `least` to the front, in their order, if they are not more than the threads;
/// `tokens` then says where they were. Returns how many values there are now.
__device__ inline int gather(float* values, int size, float least, Selection& shared, const int*& tokens) {
  __shared__ int places[sampler_threads];
  const int run = (size + sampler_threads - 1) / sampler_threads, thread = static_cast<int>(threadIdx.x);
  const int begin = ::min(thread * run, size), end = ::min(begin + run, size);
  unsigned long long count = 0, total = 0;
  for (int v = begin; v < end; ++v) count += values[v] >= least ? 1 : 0;
  int at = static_cast<int>(inclusive_sum(count, total) - count);
  if (total > sampler_threads) return size;
  if (count > 0)
    for (int v = begin; v < end; ++v)
      if (values[v] >= least) {
        shared.list[at] = __float_as_uint(values[v]);
        places[at++] = v;
      }
  __syncthreads();
  if (thread < static_cast<int>(total)) values[thread] = __uint_as_float(shared.list[thread]);
  __syncthreads();
  tokens = places;
  return static_cast<int>(total);
}

/// The key of the k-th largest of `values`, where the larger have the smaller keys. `own` is the largest value that the
/// calling thread has seen of them; together the threads have seen all.
__device__ inline unsigned kth_largest(const float* values, int size, Index k, float own, Selection& shared) {
  __shared__ unsigned maxima[sampler_threads];
  const auto key = [&](int v) { return ~ordered_bits(values[v]); };
  const auto one = [](unsigned) { return 1ull; };
  const auto before = static_cast<unsigned long long>(k) - 1;
  unsigned found = 0;
  unsigned long long below = 0;
  bool listed = false;
  int count = size;
  if (size > sampler_list && k <= sampler_threads) {
    // The k-th largest of the threads' maxima is not more than that of all: few are as large.
    maxima[threadIdx.x] = ~ordered_bits(own);
    unsigned bound = 0;
    select_by_mass(
        sampler_threads, before, [&](int i) { return maxima[i]; }, one, shared, false, bound, below);
    __syncthreads();
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    for (int v = static_cast<int>(threadIdx.x); v < size; v += sampler_threads) {
      const unsigned bits = key(v);
      if (bits > bound) continue;
      const int at = atomicAdd(&shared.listed, 1);
      if (at < sampler_list) shared.list[at] = bits;
    }
    __syncthreads();
    listed = shared.listed <= sampler_list;
    if (listed) count = shared.listed;
  }
  select_by_mass(count, before, key, one, shared, listed, found, below);
  return found;
}

/// e^x for x <= 0, within a float's rounding.
__device__ inline float weight_of(double x) {
  const double power = x * 1.4426950408889634;
  if (power < -140) return 0.0f;
  const double whole = rint(power);
  return ldexpf(exp2f(static_cast<float>(power - whole)), static_cast<int>(whole));
}

}  // namespace detail

// CUDA kernels

/// A block a row. `scratch` holds the rows where shared memory does not.
template <class R>
__global__ void __launch_bounds__(detail::sampler_threads, 1)
    sample_kernel(View<const R, 2, cuda> logits, std::int32_t* tokens, std::uint64_t* position,
                  View<std::int32_t, 2, cuda> history, std::uint64_t* remembered, View<std::int32_t, 2, cuda> log,
                  View<R, 2, cuda> filtered, detail::SamplerNumbers options, float* scratch, bool in_shared) {
  constexpr int threads = detail::sampler_threads;
  extern __shared__ float shared_row[];
  __shared__ int drawn;
  __shared__ detail::Selection selection;
  const Index row = blockIdx.x;
  const int size = static_cast<int>(logits.extent(1)), thread = static_cast<int>(threadIdx.x);
  const int* kept = nullptr;  // the tokens that `values` is about, where they are few; else all
  const auto token_of = [&](int v) { return kept != nullptr ? kept[v] : v; };
  const R* from = logits.data() + row * logits.stride(0);
  const Index step = logits.stride(1);
  float* values = in_shared ? shared_row : scratch + row * size;
  const R divisor = options.temperature > 0 ? static_cast<R>(options.temperature) : R(1);
  const auto drop = [&](int v) {
    values[v] = 0.0f;
    if (filtered) filtered(row, token_of(v)) = -static_cast<R>(INFINITY);
  };

  bool bad = false;
  for (int v = thread; v < size; v += threads) {
    const float value = static_cast<float>(from[v * step]);
    bad |= isnan(value);
    values[v] = value;
    if (filtered) filtered(row, v) = from[v * step] / divisor;
  }
  bad = __syncthreads_or(bad) != 0;
  if (history && options.repetition_penalty != 1) {
    const Index window = history.extent(1);
    const auto seen = static_cast<Index>(remembered[row]);
    const Index count = seen < window ? seen : window;
    for (Index i = thread; i < count; i += threads) {
      const std::int32_t token = history(row, i);
      if (token < 0 || token >= size) continue;
      // From the logit itself, so that a token that occurs twice is changed once.
      const double logit = static_cast<double>(from[token * step]);
      const double changed = logit < 0 ? logit * options.repetition_penalty : logit / options.repetition_penalty;
      values[token] = static_cast<float>(changed);
      if (filtered) filtered(row, token) = static_cast<R>(changed) / divisor;
    }
    __syncthreads();
  }
  float largest = -INFINITY;
  int likeliest = size;
  for (int v = thread; v < size; v += threads)
    if (values[v] > largest) {
      largest = values[v];
      likeliest = v;
    }
  const float own = largest;
  detail::block_argmax(largest, likeliest);
  if (thread == 0) drawn = likeliest;
  if (bad || likeliest == size) {
    if (thread == 0) drawn = bad ? sample_not_a_number : sample_nothing_likely;
  } else if (options.temperature > 0) {
    // What is less than the k-th largest goes: of the keys turned around, the k-th smallest.
    float least = -INFINITY;
    if (options.top_k > 0 && options.top_k < size) {
      const unsigned bits = ~detail::kth_largest(values, size, options.top_k, own, selection);
      least = __uint_as_float((bits >> 31) != 0 ? bits ^ 0x80000000u : ~bits);
    }
    __syncthreads();
    int left = size;
    if (least > -INFINITY) {
      for (int v = thread; v < size; v += threads)
        if (values[v] < least) drop(v), values[v] = -INFINITY;
      __syncthreads();
      left = detail::gather(values, size, least, selection, kept);
    }
    // Weights relative to the likeliest take the place of the logits.
    for (int v = thread; v < left; v += threads) {
      const float value = values[v];
      values[v] =
          value < least
              ? 0.0f
              : detail::weight_of((static_cast<double>(value) - static_cast<double>(largest)) / options.temperature);
    }
    __syncthreads();
    const auto mass = [&](int v) { return detail::mass_of(values[v], options.mass_bits); };
    // From here on every thread has a run of neighbouring tokens.
    const int run = (left + threads - 1) / threads;
    const int begin = ::min(thread * run, left), end = ::min(begin + run, left);
    unsigned long long sum = 0, total = 0;
    if (options.top_p < 1) {
      for (int v = begin; v < end; ++v) sum += mass(v);
      detail::inclusive_sum(sum, total);
      // Dropped are the least likely, as long as they are together not more than this; of equal ones the first.
      const auto budget = static_cast<unsigned long long>((1 - options.top_p) * static_cast<double>(total));
      unsigned key = 0;
      unsigned long long below = 0, equals = 0;
      const auto bits = [&](int v) { return __float_as_uint(values[v]); };
      unsigned long long dropped = ~0ull;  // so many of those with the weight of `key`
      if (detail::select_by_mass(
              left, budget, bits,
              [&](unsigned word) { return detail::mass_of(__uint_as_float(word), options.mass_bits); }, selection,
              false, key, below))
        dropped = (budget - below) / detail::mass_of(__uint_as_float(key), options.mass_bits);
      else
        key = __float_as_uint(1.0f);
      unsigned long long count = 0;
      for (int v = begin; v < end; ++v) count += bits(v) == key ? 1 : 0;
      unsigned long long rank = detail::inclusive_sum(count, equals) - count;
      dropped = dropped < equals ? dropped : equals - 1;
      for (int v = begin; v < end; ++v) {
        if (bits(v) < key || (bits(v) == key && rank < dropped)) {
          rank += bits(v) == key ? 1 : 0;
          drop(v);
        } else if (bits(v) == key) {
          ++rank;
        }
      }
    }
    sum = 0;
    for (int v = begin; v < end; ++v) {
      if (static_cast<double>(values[v]) < options.min_p) drop(v);
      sum += mass(v);
    }
    const unsigned long long up_to = detail::inclusive_sum(sum, total);
    const RandomWords words = Philox{options.seed, static_cast<std::uint64_t>(row)}(position[row]);
    const double uniform =
        (static_cast<double>(words[0] >> 5) * 67108864.0 + static_cast<double>(words[1] >> 6)) * 0x1p-53;
    unsigned long long rest = static_cast<unsigned long long>(uniform * static_cast<double>(total));
    rest = rest < total ? rest : total - 1;
    if (rest < up_to && rest >= up_to - sum) {  // one thread
      rest -= up_to - sum;
      int v = begin;
      for (unsigned long long m; (m = mass(v)) <= rest; ++v) rest -= m;
      drawn = token_of(v);
    }
  }
  __syncthreads();
  if (thread == 0) {
    tokens[row] = drawn;
    const std::uint64_t draw = position[row];
    if (log) log(static_cast<Index>(draw % static_cast<std::uint64_t>(log.extent(0))), row) = drawn;
    position[row] = draw + 1;
    if (history && history.extent(1) > 0) {
      const std::uint64_t seen = remembered[row];
      history(row, static_cast<Index>(seen % static_cast<std::uint64_t>(history.extent(1)))) = drawn;
      remembered[row] = seen + 1;
    }
  }
}

// Launchers

template <class R>
void device_sample(const SampleArrays<R>& arrays, const SamplerOptions& options, Workspace<cuda>& workspace) {
  check(options);
  const Index batch = arrays.logits.extent(0), size = arrays.logits.extent(1);
  require(size > 0, "sampler: there are no logits");
  require(size < Index{1} << 30, "sampler: a vocabulary of ", size, " is too large");
  require_shape("sampler", "tokens", arrays.tokens, Extents<1>(batch));
  require_shape("sampler", "position", arrays.position, Extents<1>(batch));
  if (arrays.filtered) require_shape("sampler", "filtered", arrays.filtered, Extents{batch, size});
  require(bool(arrays.history) == bool(arrays.remembered), "sampler: history and remembered belong together");
  if (arrays.history) require_shape("sampler", "remembered", arrays.remembered, Extents<1>(batch));
  if (arrays.log)
    require(arrays.log.extent(0) > 0 && arrays.log.extent(1) == batch, "sampler: log ", arrays.log.extents(),
            ", expected (rows, ", batch, ")");
  if (batch == 0) return;
  int bits = 0;
  while ((Index{1} << bits) < size) ++bits;
  const detail::SamplerNumbers numbers{.temperature = options.temperature,
                                       .top_p = options.top_p,
                                       .min_p = options.min_p,
                                       .repetition_penalty = options.repetition_penalty,
                                       .top_k = options.top_k,
                                       .seed = options.seed,
                                       .mass_bits = 62 - bits < 46 ? 62 - bits : 46};
  const auto stream = cuda_runtime::current_stream();
  const cuda_runtime::DeviceScope scope(stream.device);
  int most = 0;
  cuda_runtime::check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device),
                      "cudaDeviceGetAttribute");
  constexpr Index fixed = 28672;  // more than the kernel's own shared memory
  const Index bytes = size * static_cast<Index>(sizeof(float));
  const bool in_shared = bytes + fixed <= most;
  const auto mark = workspace.mark();
  float* scratch = in_shared ? nullptr : workspace.take<float>(batch * size);
  const std::size_t shared = in_shared ? static_cast<std::size_t>(bytes) : 0;
  if (shared > 0)
    cuda_runtime::check(
        cudaFuncSetAttribute(sample_kernel<R>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "cudaFuncSetAttribute");
  require(batch < Index{1} << 31, "sampler: ", batch, " rows are too many");
  sample_kernel<R><<<static_cast<unsigned>(batch), detail::sampler_threads, shared, stream.handle>>>(
      arrays.logits, arrays.tokens.data(), arrays.position.data(), arrays.history, arrays.remembered.data(), arrays.log,
      arrays.filtered, numbers, scratch, in_shared);
  cuda_runtime::check_launch("sample_kernel");
  workspace.reset(mark);
}

}  // namespace diffmamba
