// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cstdlib>
#include <limits>

#include "diffmamba/train/csv_log.hpp"
#include "diffmamba/train/interrupt.hpp"
#include "diffmamba/train/loss_picture.hpp"
#include "diffmamba/train/progress.hpp"
#include "diffmamba/train/tensorboard.hpp"
#include "support/temporary_folder.hpp"

using namespace diffmamba;

TEST_CASE("csv log: rows are whole, a resumed run drops what came after its checkpoint") {
  test::TemporaryFolder folder;
  const auto path = folder / "log.csv";
  {
    CsvLog log(path, {"step", "loss", "validation_loss"});
    for (Index step = 1; step <= 5; ++step)
      log.write(step, {1.0 / static_cast<double>(step), std::numeric_limits<double>::quiet_NaN()});
    CHECK_THROWS_AS(log.write(6, {1.0}), Error);
  }
  std::ofstream(path, std::ios::app) << "6,0.1";  // killed in the middle
  CsvLog(path, {"step", "loss", "validation_loss"}, 3).write(4, {0.5, 0.25});
  CHECK(read_file(path) == "step,loss,validation_loss\n1,1,\n2,0.5,\n3,0.333333333,\n4,0.5,0.25\n");
  CHECK_THROWS_AS(CsvLog(path, {"step", "other"}, 3), Error);
  CsvLog(path, {"step", "other"});
  CHECK(read_file(path) == "step,other\n");
}

TEST_CASE("tensorboard: the file is what the format asks for") {
  CHECK(crc32c("123456789") == 0xe3069283u);            // the check value of CRC-32C
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);  // RFC 3720, B.4
  test::TemporaryFolder folder;
  TensorBoardLog log(folder / "tb");
  log.scalar("loss/train", 300, 1.5);
  log.scalar("loss/train", 301, -2.0);
  CHECK(TensorBoardLog(folder / "tb").path() != log.path());
  const std::string bytes = read_file(log.path());
  std::vector<std::string> events;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t length = 0;
    std::uint32_t length_crc = 0, data_crc = 0;
    REQUIRE(at + 12 <= bytes.size());
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&length_crc, bytes.data() + at + 8, 4);
    REQUIRE(at + 16 + length <= bytes.size());
    events.push_back(bytes.substr(at + 12, length));
    std::memcpy(&data_crc, bytes.data() + at + 12 + length, 4);
    const auto unmask = [](std::uint32_t masked) {
      const std::uint32_t rotated = masked - 0xa282ead8u;
      return (rotated >> 17) | (rotated << 15);
    };
    CHECK(unmask(length_crc) == crc32c(bytes.substr(at, 8)));
    CHECK(unmask(data_crc) == crc32c(events.back()));
    at += 16 + length;
  }
  REQUIRE(events.size() == 3);
  CHECK(events[0].substr(9) == std::string("\x1a\x0d") + "brain.Event:2");
  CHECK(events[0][0] == 0x09);
  // field 2, step 300 as a varint; field 5: a summary of 19 bytes with one value: tag and float 1.5
  CHECK(events[1].substr(9) == std::string("\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0aloss/train\x15\x00\x00\xc0\x3f", 24));
}

TEST_CASE("progress: a file gets whole lines with rate and time") {
  test::TemporaryFolder folder;
  const auto path = folder / "out";
  std::FILE* out = std::fopen(path.c_str(), "w");
  {
    ProgressBar bar(100, 0, {.seconds_between_lines = 0, .out = out});
    bar.show(1, 50, "loss 2.5");
    bar.say("saved");
    bar.show(100, 5000, "loss 1.5");
  }
  std::fclose(out);
  const std::string text = read_file(path);
  INFO(text);
  CHECK(text.starts_with("1/100 loss 2.5 | "));
  CHECK(text.find(" left\nsaved\n100/100 loss 1.5 | ") != std::string::npos);
  CHECK(text.ends_with(" in all\n"));
  CHECK(text.find('\r') == std::string::npos);
  CHECK(clock_time(59.7) == "1:00");
  CHECK(clock_time(3725) == "1:02:05");
  CHECK(short_number(999.4) == "999");
  CHECK(short_number(5243) == "5.24k");
  CHECK(short_number(52430) == "52.4k");
  CHECK(short_number(1250000) == "1.25M");
}

TEST_CASE("interrupt: the first signal is a request") {
  Interrupt interrupt;
  CHECK_FALSE(interrupt.requested());
  std::raise(SIGINT);
  CHECK(interrupt.requested());
}

TEST_CASE("loss picture: SVG and PNG where gnuplot is, one sentence where it is not") {
  test::TemporaryFolder folder;
  const auto csv = folder / "it's.csv";
  {
    CsvLog log(csv, {"step", "loss", "validation_loss"});
    for (Index step = 1; step <= 50; ++step)
      log.write(step,
                {5.0 / static_cast<double>(step), step % 10 == 0 ? 1.0 : std::numeric_limits<double>::quiet_NaN()});
  }
  const std::string message = draw_loss(folder / "loss", {{"a_b", csv}, {"c", csv}}, "it's a run", "bits per byte");
  INFO(message);
  if (message.empty()) {
    CHECK(read_file(folder / "loss.svg").find("a_b, validation") != std::string::npos);
    CHECK(read_file(folder / "loss.png").substr(1, 3) == "PNG");
  } else {
    CHECK(message.find("gnuplot is not installed") == 0);
  }
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", "/nowhere", 1);
  CHECK(draw_loss(folder / "none", {{"a", csv}}, "t", "u").find("gnuplot is not installed") == 0);
  ::setenv("PATH", path.c_str(), 1);
}
