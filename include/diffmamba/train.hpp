// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Training, evaluation and generation of language models, with the files that they take. Needs nlohmann-json
// (diffmamba::io).

#include "diffmamba/eval/perplexity.hpp"
#include "diffmamba/generate/generator.hpp"
#include "diffmamba/generate/sampler.hpp"
#include "diffmamba/io.hpp"
#include "diffmamba/model/language_model.hpp"
#include "diffmamba/train/adamw.hpp"
#include "diffmamba/train/checkpoint.hpp"
#include "diffmamba/train/clip.hpp"
#include "diffmamba/train/csv_log.hpp"
#include "diffmamba/train/interrupt.hpp"
#include "diffmamba/train/loss_picture.hpp"
#include "diffmamba/train/progress.hpp"
#include "diffmamba/train/schedule.hpp"
#include "diffmamba/train/tensorboard.hpp"
#include "diffmamba/train/trainer.hpp"
#include "diffmamba/train/training_step.hpp"
