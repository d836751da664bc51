// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>   // open
#include <unistd.h>  // fsync

#include <algorithm>   // std::sort
#include <cstdio>      // std::snprintf
#include <filesystem>  // std::filesystem
#include <limits>      // std::numeric_limits
#include <optional>    // std::optional
#include <string>      // std::string
#include <vector>      // std::vector

#include "diffmamba/io/model_folder.hpp"
#include "diffmamba/train/adamw.hpp"

/// Checkpoints of a training run: folders RUN/step-00000500 with the model (config.json, model.safetensors, which load
/// like any model), optimizer.safetensors with AdamW's averages, and training.json with the rest. A checkpoint is
/// written as step-00000500.partial and renamed when all of it is on the disk, and only then do older ones go: whatever
/// happens, the last complete one is there.
namespace diffmamba {

/// Where a run stands, besides parameters and optimizer.
struct TrainingProgress {
  Index step = 0;                                                    // updates done
  Index data_position = 0;                                           // of Batches
  double seconds = 0;                                                // of training
  double best_validation = std::numeric_limits<double>::infinity();  // loss, and its step
  Index best_step = 0;
};

namespace detail {

inline std::string checkpoint_name(Index step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
  return name;
}

inline std::optional<Index> step_of_checkpoint(const std::string& name) {
  if (!name.starts_with("step-") || name.size() < 13 || name.find_first_not_of("0123456789", 5) != std::string::npos)
    return std::nullopt;
  return static_cast<Index>(std::stoll(name.substr(5)));
}

inline std::vector<Index> checkpoint_steps(const std::filesystem::path& run) {
  std::vector<Index> steps;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(run, error))
    if (const auto step = step_of_checkpoint(entry.path().filename().string())) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

inline void sync_folder(const std::filesystem::path& folder) {
  if (const int descriptor = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC); descriptor >= 0) {
    ::fsync(descriptor);
    ::close(descriptor);
  }
}

}  // namespace detail

/// The newest complete checkpoint of a run.
inline std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& run) {
  const auto steps = detail::checkpoint_steps(run);
  if (steps.empty()) return std::nullopt;
  return run / detail::checkpoint_name(steps.back());
}

/// Saves a checkpoint and removes all but the newest `keep`. If anything fails (a full disk) what there was stays, and
/// the Error names the file.
template <class Model>
void save_checkpoint(const std::filesystem::path& run, const Model& model, const OptimizerOf<Model>& optimizer,
                     const TextTokenizer& tokenizer, const TrainingProgress& progress, Index keep = 1) {
  namespace fs = std::filesystem;
  create_folder(run);
  const auto folder = run / detail::checkpoint_name(progress.step);
  std::error_code error;
  if (!fs::exists(folder, error)) {
    auto partial = folder;
    partial += ".partial";
    fs::remove_all(partial, error);
    try {
      save_model(partial, model, tokenizer);
      save_safetensors(partial / "optimizer.safetensors",
                       {{"exp_avg", optimizer.exp_avg()}, {"exp_avg_sq", optimizer.exp_avg_sq()}});
      write_json(partial / "training.json", {{"step", progress.step},
                                             {"data_position", progress.data_position},
                                             {"seconds", progress.seconds},
                                             {"best_validation", detail::number_to_json(progress.best_validation)},
                                             {"best_step", progress.best_step}});
      detail::sync_folder(partial);
      fs::rename(partial, folder, error);
      require(!error, folder.string(), ": the checkpoint cannot be put in its place: ", error.message());
    } catch (...) {
      fs::remove_all(partial, error);
      throw;
    }
    detail::sync_folder(run);
  }
  const auto steps = detail::checkpoint_steps(run);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < steps.size(); ++i) {
    const auto old = run / detail::checkpoint_name(steps[i]);
    auto leaving = old;
    leaving += ".partial";  // so that half a folder is never taken for a checkpoint
    fs::remove_all(leaving, error);
    fs::rename(old, leaving, error);
    fs::remove_all(leaving, error);
  }
}

/// Restores what save_checkpoint saved, into a model of the same configuration.
template <class Model>
TrainingProgress load_checkpoint(const std::filesystem::path& folder, Model& model, OptimizerOf<Model>& optimizer) {
  using R = accumulate_t<typename Model::value_type>;
  const auto description = describe_model(folder);
  require(to_json(description.config) == to_json(model.config()), (folder / "config.json").string(),
          ": the checkpoint is of another model: ", to_json(description.config).dump(), ", expected ",
          to_json(model.config()).dump());
  const auto path = folder / "training.json";
  const Json json = read_json(path);
  detail::JsonReader reader(json, path.string());
  TrainingProgress progress;
  progress.step = reader.whole("step");
  progress.data_position = reader.whole("data_position");
  progress.seconds = reader.number("seconds");
  progress.best_validation = reader.number("best_validation");
  progress.best_step = reader.whole("best_step");
  reader.finish();
  require(progress.step >= 0 && progress.data_position >= 0, path.string(), ": a negative step or position");
  SafetensorsFile weights(folder / "model.safetensors"), averages(folder / "optimizer.safetensors");
  Tensor<R, 1> exp_avg(optimizer.exp_avg().extents()), exp_avg_sq(exp_avg.extents());
  averages.read("exp_avg", exp_avg.view());
  averages.read("exp_avg_sq", exp_avg_sq.view());
  load_parameters(weights, model);  // from here on nothing can fail halfway but the disk
  copy(exp_avg.view(), optimizer.exp_avg());
  copy(exp_avg_sq.view(), optimizer.exp_avg_sq());
  optimizer.set_steps(progress.step);
  return progress;
}

}  // namespace diffmamba
