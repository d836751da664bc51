// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/device/parallel.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <vector>

#include "diffmamba/core/error.hpp"

using namespace diffmamba;

TEST_CASE("every tile is done once") {
  for (const int threads : {1, 2, 5}) {
    const Threads scope(threads);
    for (const Index tiles : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(tiles));
      parallel_for(tiles, [&](Index tile, int worker) {
        ++done[static_cast<std::size_t>(tile)];
        if (worker < 0 || worker >= threads) fail("worker ", worker);
      });
      for (auto& count : done) CHECK(count == 1);
    }
  }
}

TEST_CASE("an exception of a tile arrives, once, and the loop can be used again") {
  for (const int threads : {1, 2}) {
    const Threads scope(threads);
    CHECK_THROWS_WITH_AS(parallel_for(100,
                                      [](Index tile) {
                                        if (tile >= 40) fail("tile is wrong");
                                      }),
                         "tile is wrong", Error);
    std::atomic<int> count{0};
    parallel_for(10, [&](Index) { ++count; });
    CHECK(count == 10);
  }
}

TEST_CASE("inside a loop there is one thread, and a scope restores the number") {
  const int before = max_threads();
  {
    const Threads two(2);
    CHECK(max_threads() <= 2);
    std::atomic<int> wrong{0};
    parallel_for(8, [&](Index) {
      if (max_threads() != 1) ++wrong;
      Index inner = 0;
      parallel_for(5, [&](Index tile) { inner += tile; });  // serial: no race
      if (inner != 10) ++wrong;
    });
#if defined(_OPENMP)
    CHECK(wrong == 0);
#endif
    {
      const Threads none(0);
      CHECK(max_threads() == 1);
    }
  }
  CHECK(max_threads() == before);
  CHECK(tiles_of(0, 4) == 0);
  CHECK(tiles_of(9, 4) == 3);
}
