// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "conformance/runner.hpp"

namespace {

namespace fs = std::filesystem;
namespace dm = diffmamba;
using namespace diffmamba::conformance;

constexpr const char* usage =
    R"(conformance --device cpu|cuda --dtype float64|float32|bfloat16 [--filter PATTERN] [--without PATTERN] DIR...

Runs every golden case below the directories (the format: tests/goldens/FORMAT.md). A case is a .safetensors file, or a folder
that has an expected.safetensors. PATTERN selects cases by name, such as ops/rms_norm__plain: with * and ? it must match the
whole name, without them it is part of it; --without leaves out what its pattern selects.

In bfloat16 the judge is not the file but a float64 run of the same rounded inputs on the CPU: a result may be off, in norm,
by 1.25 times what the official kernel is off there, or by 3 times what the same operator on the CPU in bfloat16 is off, which
rounds at its documented points. Where a result has few numbers, one run of it says little about how far rounding can take
them: the largest error counts of the case itself and of seven cases whose inputs differ from it by up to 2^-8, each against its
own float64 run. Exits with 0 if no case failed and at least one was run.
)";

struct Arguments {
  std::string device = "cpu", dtype, filter, without;
  std::vector<fs::path> directories;
};

Arguments parse(int argc, char** argv) {
  Arguments result;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&] {
      dm::require(i + 1 < argc, "conformance: ", argument, " needs a value");
      return std::string(argv[++i]);
    };
    if (argument == "--device")
      result.device = value();
    else if (argument == "--dtype")
      result.dtype = value();
    else if (argument == "--filter")
      result.filter = value();
    else if (argument == "--without")
      result.without = value();
    else if (argument == "--help" || argument == "-h") {
      std::cout << usage;
      std::exit(0);
    } else {
      dm::require(!argument.starts_with("-"), "conformance: unknown option ", argument);
      result.directories.emplace_back(argument);
    }
  }
  dm::require(result.device == "cpu" || result.device == "cuda", "conformance: --device must be cpu or cuda, not ",
              result.device);
#ifdef DIFFMAMBA_CONFORMANCE_CUDA
  if (result.device == "cuda") std::cout << dm::cuda_runtime::device_name() << '\n';
#else
  dm::require(result.device == "cpu", "conformance: this program was built without CUDA (DIFFMAMBA_ENABLE_CUDA)");
#endif
  dm::require(result.dtype == "float64" || result.dtype == "float32" || result.dtype == "bfloat16",
              "conformance: --dtype must be float64, float32 or bfloat16", result.dtype.empty() ? "" : ", not ",
              result.dtype);
  dm::require(!result.directories.empty(), "conformance: name at least one directory of golden cases");
  return result;
}

/// Shell patterns: * is any text, ? one character.
bool matches(const char* pattern, const char* name) {
  if (*pattern == '\0') return *name == '\0';
  if (*pattern == '*') return matches(pattern + 1, name) || (*name != '\0' && matches(pattern, name + 1));
  return *name != '\0' && (*pattern == '?' || *pattern == *name) && matches(pattern + 1, name + 1);
}
bool selected(const std::string& filter, const std::string& name) {
  if (filter.find_first_of("*?") == std::string::npos) return name.find(filter) != std::string::npos;
  return matches(filter.c_str(), name.c_str());
}

struct Found {
  fs::path file;
  std::string name;
};

void collect(const fs::path& path, const std::string& name, std::vector<Found>& found) {
  if (fs::is_regular_file(path)) {
    if (path.extension() == ".safetensors") found.push_back({path, name.substr(0, name.rfind(".safetensors"))});
    return;
  }
  if (fs::exists(path / "expected.safetensors")) {
    found.push_back({path / "expected.safetensors", name});
    return;
  }
  std::vector<fs::path> entries(fs::directory_iterator(path), {});
  std::sort(entries.begin(), entries.end());
  for (const fs::path& entry : entries)
    collect(entry, name.empty() ? entry.filename().string() : name + "/" + entry.filename().string(), found);
}

enum class Outcome { passed, failed, skipped };

/// ||got - want|| / ||want||; what is not finite must be equal.
double norm_error(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(want[i])) {
      if (got[i] != want[i]) return HUGE_VAL;
      continue;
    }
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  if (std::isnan(error)) return HUGE_VAL;
  return std::sqrt(error / (norm > 0 ? norm : 1.0));
}

/// bfloat16: the adapter on the device, against float64 on the CPU from the same rounded inputs.
std::vector<Comparison> compare_rounded(const Found& found, const Operator& adapters, const std::string& device) {
  Case golden(found.file, found.name);
  golden.keep();
  adapters.at(device + " bfloat16")(golden);

  // The case itself and its variations: how far the CPU's roundings take each result.
  std::map<std::string, Kept> exact;
  std::map<std::string, double> emulated;
  for (unsigned variation = 0; variation < 8; ++variation) {
    Case want(found.file, found.name), got(found.file, found.name);
    want.keep(golden.read_rounded(), variation);
    adapters.at("cpu float64")(want);
    got.keep({}, variation);
    adapters.at("cpu bfloat16")(got);
    for (const auto& [name, one] : want.kept()) {
      if (variation == 0) exact.emplace(name, one);
      const auto emulation = got.kept().find(name);
      if (emulation == got.kept().end() || emulation->second.shape != one.shape) continue;
      emulated[name] = std::max(emulated[name], norm_error(emulation->second.values, one.values));
    }
  }

  std::vector<Comparison> result;
  for (const Comparison& one : golden.finish())  // what nobody looked at
    if (!one.passed()) result.push_back(one);
  for (const auto& [name, want] : exact) {
    Comparison one{.name = name};
    const auto got = golden.kept().find(name);
    if (got == golden.kept().end() || got->second.shape != want.shape) {
      one.mistake = "was not computed in bfloat16";
    } else {
      one.error = norm_error(got->second.values, want.values);
      one.allowed = std::max(1.25 * official_error(golden.op(), name, got->second.rounded), 3 * emulated[name]);
      one.fraction = one.error / one.allowed;
    }
    result.push_back(one);
  }
  return result;
}

Outcome run(const Found& found, const std::string& device, const std::string& dtype) {
  const auto say = [&](const char* verdict) -> std::ostream& { return std::cout << verdict << "  " << found.name; };
  try {
    Case golden(found.file, found.name);
    if (const auto reason = reason_to_skip(golden, dtype)) {
      say("skip") << ": " << *reason << std::endl;
      return Outcome::skipped;
    }
    const auto adapter = operators().find(golden.op());
    dm::require(adapter != operators().end(), "the operator \"", golden.op(), "\" is not known");
    const auto here = adapter->second.find(device + " " + dtype);
    if (here == adapter->second.end()) {
      say("skip") << ": " << golden.op() << " does not run on " << device << " in " << dtype << " in this version"
                  << std::endl;
      return Outcome::skipped;
    }
    std::vector<Comparison> results;
    if (dtype == "bfloat16") {
      results = compare_rounded(found, adapter->second, device);
    } else {
      golden.tolerance_of(dtype);
      here->second(golden);
      results = golden.finish();
    }

    Comparison worst;
    bool passed = true;
    for (const Comparison& result : results) {
      if (!result.passed()) {
        if (passed) say("FAIL") << '\n';
        passed = false;
        std::cout << "        " << result.name << ": ";
        if (!result.mistake.empty())
          std::cout << result.mistake << '\n';
        else
          std::cout << "error " << result.error << ", tolerance " << result.allowed << '\n';
      }
      if (worst.name.empty() || result.fraction > worst.fraction) worst = result;
    }
    if (passed)
      say("pass") << ": worst error " << worst.error << ", tolerance " << worst.allowed << " (" << worst.name << ")\n";
    std::cout << std::flush;
    return passed ? Outcome::passed : Outcome::failed;
  } catch (const std::exception& error) {
    say("FAIL") << ": " << error.what() << std::endl;
    return Outcome::failed;
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse(argc, argv);
    std::vector<Found> all;
    for (const fs::path& directory : arguments.directories) {
      dm::require(fs::exists(directory), "conformance: there is no ", directory.string());
      const bool many = fs::is_directory(directory) && !fs::exists(directory / "expected.safetensors");
      collect(directory, many ? "" : fs::weakly_canonical(directory).filename().string(), all);
    }
    std::cout.precision(2);
    std::size_t passed = 0, failed = 0, skipped = 0;
    for (const Found& found : all) {
      if (!selected(arguments.filter, found.name)) continue;
      if (!arguments.without.empty() && selected(arguments.without, found.name)) continue;
      switch (run(found, arguments.device, arguments.dtype)) {
        case Outcome::passed:
          ++passed;
          break;
        case Outcome::failed:
          ++failed;
          break;
        case Outcome::skipped:
          ++skipped;
          break;
      }
    }
    if (passed + failed + skipped == 0) std::cout << "conformance: no case was found\n";
    std::cout << passed << " passed, " << failed << " failed, " << skipped << " skipped" << std::endl;
    return failed > 0 || passed == 0 ? 1 : 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
}
