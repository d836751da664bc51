// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>    // std::clamp, std::max, std::sort
#include <cstdio>       // std::printf
#include <cstring>      // std::strcmp
#include <functional>   // std::function
#include <string>       // std::string
#include <string_view>  // std::string_view
#include <vector>       // std::vector

#include "diffmamba/device/event.hpp"
#include "diffmamba/device/graph.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "diffmamba/tensor/random.hpp"

/// Times of launches on a GPU: recorded into a graph, so that only the GPU's work counts, replayed many times, the
/// median taken. Work that is bound by memory is recorded several times over different buffers, more of them together
/// than the second-level cache holds; else the cache would be measured.
///
///   bench::gpu::Report report(argc, argv, "rms_norm");
///   const int sets = bench::gpu::sets_for(bytes);                        // how often to have the buffers
///   std::vector<Tensor<bfloat16, 2, cuda>> x; for (...) x.push_back(bench::gpu::random_tensor<bfloat16>(Extents{rows,
///   d})); report.line("16384 x 1024", bench::gpu::time(sets, [&](int set) { rms_norm::forward(...x[set]...); }),
///   {.bytes = bytes});
namespace diffmamba::bench::gpu {

/// Milliseconds of one execution.
struct Time {
  double median = 0, fastest = 0, slowest = 0;
};

/// Number of buffer sets of `bytes` each that are together larger than any cache.
inline int sets_for(double bytes) {
  constexpr double beyond_cache = 256e6;
  return bytes >= beyond_cache ? 2 : std::clamp(static_cast<int>(beyond_cache / std::max(bytes, 1.0)) + 1, 2, 64);
}

/// Normal random numbers, drawn on the host and copied.
template <class T, int Rank>
Tensor<T, Rank, cuda> random_tensor(const Extents<Rank>& extents, std::uint64_t seed = 1, double std = 1.0) {
  auto host = Tensor<T, Rank>::uninitialized(extents);
  fill_normal(host, Philox{seed}, 0.0, std);
  return to<cuda>(host);
}

/// launch(set) for set = 0 ... sets - 1, recorded one after another and replayed until `seconds` have passed, at least
/// `replays` times. The times are of one launch(set).
inline Time time(int sets, const std::function<void(int)>& launch, int replays = 20, double seconds = 0.05) {
  cuda_runtime::synchronize<>();  // the buffers were made on the default stream
  const cuda_runtime::OwnedStream<> stream;
  const cuda_runtime::StreamScope on(stream);
  std::vector<double> times;
  {
    const cuda_runtime::Graph<> graph([&] {
      for (int set = 0; set < sets; ++set) launch(set);
    });
    cuda_runtime::Event<> begin(cuda_runtime::Timing::on), end(cuda_runtime::Timing::on);
    for (int i = 0; i < 3; ++i) graph.replay();
    double total = 0;
    while (static_cast<int>(times.size()) < replays || (total < 1e3 * seconds && times.size() < 1000)) {
      begin.record();
      graph.replay();
      end.record();
      end.wait();
      const double once = begin.milliseconds_until(end);
      total += once;
      times.push_back(once / sets);
    }
  }
  arena<cuda>().release();
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

/// What one execution must move and compute at least, and what a peer takes for it.
struct Work {
  double bytes = 0;  // read and written once
  double flop = 0;
  double peer_milliseconds = 0;  // measured elsewhere, on such a device
};

/// One line per case: a table, or with --json one object per line. `--filter WORD` keeps cases whose name has the word.
class Report {
 public:
  Report(int argc, char** argv, const char* title) : title_(title) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], "--json") == 0) json_ = true;
      if (std::strcmp(argv[i], "--filter") == 0 && i + 1 < argc) filter_ = argv[i + 1];
    }
    if (!json_)
      std::printf("%s on %s\n%-44s %10s %8s %9s %9s %9s\n", title, cuda_runtime::device_name().c_str(), "case", "ms",
                  "+-%", "GB/s", "TFLOP/s", "x peer");
  }

  bool wants(std::string_view name) const { return filter_.empty() || name.find(filter_) != std::string_view::npos; }

  void line(const std::string& name, const Time& time, const Work& work = {}) const {
    const double spread = 50 * (time.slowest - time.fastest) / time.median;
    const double rate = work.bytes / time.median * 1e-6, flops = work.flop / time.median * 1e-9;
    const double peer = work.peer_milliseconds / time.median;
    if (json_)
      std::printf(
          "{\"bench\": \"%s\", \"case\": \"%s\", \"ms\": %.5f, \"fastest_ms\": %.5f, \"gb_per_s\": %.1f, "
          "\"tflop_per_s\": %.2f, \"peer_over_ours\": %.3f}\n",
          title_.c_str(), name.c_str(), time.median, time.fastest, rate, flops, peer);
    else
      std::printf("%-44s %10.4f %8.1f %9s %9s %9s\n", name.c_str(), time.median, spread, cell(rate, 0).c_str(),
                  cell(flops, 1).c_str(), cell(peer, 2).c_str());
    std::fflush(stdout);
  }
  /// Makes and times a case unless it is filtered out: make() returns the Time.
  template <class Make>
  void run(const std::string& name, const Work& work, Make&& make) const {
    if (wants(name)) line(name, make(), work);
  }

 private:
  static std::string cell(double value, int digits) {
    if (value == 0) return "";
    char text[32];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
  }

  std::string title_, filter_;
  bool json_ = false;
};

}  // namespace diffmamba::bench::gpu
