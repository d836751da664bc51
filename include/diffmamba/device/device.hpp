// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>  // std::is_same_v

namespace diffmamba {

/// The processor and its memory. A tag: operators are overloads found by it. How many threads work is OpenMP's own
/// setting of the calling thread (OMP_NUM_THREADS, omp_set_num_threads, or diffmamba::Threads for a scope); results
/// never depend on it.
struct cpu {};

/// An NVIDIA GPU.
struct cuda {};

template <class T>
concept Device = std::is_same_v<T, cpu> || std::is_same_v<T, cuda>;

}  // namespace diffmamba
