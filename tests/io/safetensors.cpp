// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include "diffmamba/io/safetensors.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>

#include "support/temporary_folder.hpp"

using namespace diffmamba;

namespace {

std::string with_length(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string message_of(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  try {
    SafetensorsFile file(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool says(const std::string& message, const std::string& part) {
  INFO(message);
  const bool found = message.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace

TEST_CASE("safetensors: what is written is read, dense or strided, in any floating-point type") {
  test::TemporaryFolder folder;
  const auto path = folder / "a.safetensors";
  Tensor<float, 2> a({3, 5});
  for (Index i = 0; i < a.size(); ++i) a.data()[i] = 0.5f + static_cast<float>(i);
  Tensor<double, 1> b({2}, 0.1);
  Tensor<std::int64_t, 1> ids({3}, std::int64_t{7});
  Tensor<bfloat16, 1> c({3}, bfloat16(1.5f));
  Tensor<float, 0> scalar(Extents<0>{}, 4.0f);
  Tensor<float, 2> none({0, 4});
  save_safetensors(path,
                   {{"a", a},
                    {"a.columns", a.slice<1>(1, 3)},
                    {"a.transposed", a.view().permute<1, 0>()},
                    {"b", b},
                    {"ids", ids},
                    {"c", c},
                    {"scalar", scalar},
                    {"none", none},
                    {"made", Dtype::float32, Extents<1>{2},
                     [] {
                       return std::make_shared<std::array<float, 2>>(std::array{3.0f, 4.0f});
                     }}},
                   {{"step", "3"}});
  SafetensorsFile file(path);
  CHECK(file.metadata().at("step") == "3");
  CHECK(file.tensors().size() == 9);
  CHECK(file.values<float>("made") == std::vector{3.0f, 4.0f});
  const auto a2 = file.tensor<float, 2>("a");
  for (Index i = 0; i < a.size(); ++i) CHECK(a2.data()[i] == a.data()[i]);
  const auto columns = file.tensor<double, 2>("a.columns");
  CHECK(columns.extents() == Extents<2>{3, 2});
  CHECK(columns(2, 1) == static_cast<double>(a(2, 2)));
  CHECK(file.tensor<float, 2>("a.transposed")(4, 1) == a(1, 4));
  CHECK(file.values<double>("b")[1] == 0.1);
  CHECK(file.values<float>("b")[1] == 0.1f);
  CHECK(file.values<std::int32_t>("ids")[2] == 7);
  CHECK(file.values<float>("c")[2] == 1.5f);
  CHECK(file.tensor<float, 0>("scalar")() == 4.0f);
  CHECK(file.tensor<float, 2>("none").extents() == Extents<2>{0, 4});
  Tensor<float, 2> wide({5, 8}, -1.0f);  // into every second column's left half
  file.read("a", wide.slice<0>(0, 3).slice<1>(0, 5));
  CHECK(wide(2, 4) == a(2, 4));
  CHECK(wide(2, 5) == -1.0f);
  for (const auto& [name, info] : file.tensors()) CHECK(info.begin % size_of(info.dtype) == 0);
}

TEST_CASE("safetensors: a wrong request names file, tensor, and what there is") {
  test::TemporaryFolder folder;
  const auto path = folder / "b.safetensors";
  Tensor<float, 2> a({3, 5});
  Tensor<std::int64_t, 1> big({1}, std::int64_t{1} << 40);
  save_safetensors(path, {{"a", a}, {"big", big}});
  SafetensorsFile file(path);
  Tensor<float, 2> other({3, 4});
  CHECK_THROWS_WITH_AS(file.read("a", other.view()),
                       (path.string() + ": tensor a has the shape (3, 5), expected (3, 4)").c_str(), Error);
  CHECK_THROWS_WITH_AS(file.values<float>("x"), (path.string() + ": there is no tensor x").c_str(), Error);
  CHECK_THROWS_WITH_AS(file.values<std::int64_t>("a"),
                       (path.string() + ": tensor a is float32 and cannot be read as int64").c_str(), Error);
  CHECK_THROWS_WITH_AS(file.values<std::int32_t>("big"),
                       (path.string() + ": tensor big: the value 1099511627776 does not fit into int32").c_str(),
                       Error);
  CHECK_THROWS_WITH_AS(SafetensorsFile(folder / "none"), ((folder / "none").string() + ": no such file").c_str(),
                       Error);
  CHECK_THROWS_AS(SafetensorsFile(std::filesystem::path("/")), Error);
}

TEST_CASE("safetensors: damaged and hostile headers are refused") {
  test::TemporaryFolder folder;
  const auto path = folder / "c.safetensors";
  const std::string four = "abcd";
  const auto message = [&](const std::string& header, const std::string& data = "") {
    return message_of(path, with_length(header, data));
  };
  const std::string good = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  CHECK(message(good, four).empty());
  CHECK(message(good + "    ", four).empty());  // padding
  says(message_of(path, ""), "not a safetensors file");
  says(message_of(path, "1234567"), "not a safetensors file");
  says(message_of(path, std::string(8, '\xff')), "is longer than the file");
  says(message_of(path, with_length(good, four).substr(0, 40)), "is longer than the file");
  says(message(good, "abc"), "truncated or damaged");
  says(message(good, "abcde"), "1 bytes at the end belong to no tensor");
  says(message("[]"), "does not begin with '{'");
  says(message("{"), "not valid JSON");
  says(message(R"({"a":3})"), "the entry \"a\" is not an object");
  says(message(R"({"__metadata__":{"x":1}})"), "is not a string");
  says(message(R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})", four), "tensor a: the dtype \"F99\"");
  says(message(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", four), "tensor a: no dtype");
  says(message(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", four), "tensor a: no shape");
  says(message(R"({"a":{"dtype":"F32","shape":[1]}})", four), "tensor a: no pair of data_offsets");
  says(message(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", four), "a size is not a number");
  says(message(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", four), "a size is not a number");
  says(message(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", four), "overflow");
  says(message(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", four), "takes 8 bytes, the offsets give 4");
  says(message(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", four), "truncated or damaged");
  says(message(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}})", four),
       "a data offset is not");
  says(
      message(
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          four),
      "the key \"a\" stands twice");
  says(message(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", four), "stands twice");
  says(
      message(
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          four),
      "two tensors share the bytes");
  says(
      message(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
          four),
      "the bytes [1, 3) belong to no tensor");
  says(message(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}})", four), "unknown key \"more\"");
  says(message("{\"a\":" + std::string(100000, '[')), "nested more than");
}

TEST_CASE("safetensors: a write that fails leaves the old file, and a stale part of a killed process is no obstacle") {
  test::TemporaryFolder folder;
  const auto path = folder / "d.safetensors";
  Tensor<float, 1> small({4}, 1.0f), large({1 << 20}, 2.0f);
  save_safetensors(path, {{"a", small}});
  std::ofstream(folder / "d.safetensors.partial") << "left by a killed process";
  save_safetensors(path, {{"a", small}});
  CHECK_FALSE(std::filesystem::exists(folder / "d.safetensors.partial"));

  // As on a full disk: no file of this process may grow past 64 KiB.
  struct sigaction ignore {
  }, before{};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGXFSZ, &ignore, &before);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit tight{1 << 16, limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &tight);
  std::string message;
  try {
    save_safetensors(path, {{"a", large}});
  } catch (const Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &limit);
  sigaction(SIGXFSZ, &before, nullptr);
  says(message, path.string() + ": cannot be written: ");
  CHECK_FALSE(std::filesystem::exists(folder / "d.safetensors.partial"));
  CHECK(SafetensorsFile(path).values<float>("a") == std::vector<float>(4, 1.0f));

  CHECK_THROWS_AS(save_safetensors(folder / "none" / "e", {{"a", small}}), Error);
  CHECK_THROWS_AS(save_safetensors(path, {{"a", small}, {"a", small}}), Error);
}
