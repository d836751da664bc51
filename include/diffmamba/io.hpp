// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Files: safetensors, configurations, model folders, layouts of others, texts. Needs nlohmann-json (diffmamba::io).

#include "diffmamba/data/batches.hpp"
#include "diffmamba/data/corpus.hpp"
#include "diffmamba/data/text_tokenizer.hpp"
#include "diffmamba/data/utf8.hpp"
#include "diffmamba/io/atomic_file.hpp"
#include "diffmamba/io/hub_layouts.hpp"
#include "diffmamba/io/json.hpp"
#include "diffmamba/io/model_config_json.hpp"
#include "diffmamba/io/model_folder.hpp"
#include "diffmamba/io/parameters_file.hpp"
#include "diffmamba/io/safetensors.hpp"
