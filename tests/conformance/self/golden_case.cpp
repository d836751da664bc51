// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// The judge is judged: a golden case must be failed for each way in which a result can be wrong or overlooked.
#include <doctest/doctest.h>

#include <functional>

#include "conformance/case.hpp"
#include "support/temporary_folder.hpp"

using namespace diffmamba;
using conformance::Case;

namespace {

/// out.y = [1, -2, 4] is expected of in.x, with the option `factor`; rtol 1e-3, atol 1e-2, so that 1 may be off by
/// 0.01 * 4 + 0.001 * 1.
std::string verdict(const std::function<void(Case&)>& adapter, const std::string& attrs = R"({"factor": 2})") {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "double_it__small.safetensors";
  Tensor<double, 1> x(Extents<1>(3)), y(Extents<1>(3)), masked(Extents<1>(2));
  y(0) = 1, y(1) = -2, y(2) = 4;
  masked(0) = -INFINITY;
  masked(1) = 3;
  save_safetensors(path, {{"in.x", x}, {"out.y", y}, {"out.masked", masked}},
                   {{"op", "double_it"},
                    {"attrs", attrs},
                    {"rtol_f64", "1e-3"},
                    {"atol_f64", "1e-2"},
                    {"rtol_f32", "1"},
                    {"atol_f32", "1"}});
  Case golden(path, "double_it__small");
  golden.tolerance_of("float64");
  adapter(golden);
  std::string mistakes;
  for (const auto& result : golden.finish())
    if (!result.passed())
      mistakes += result.name + (result.mistake.empty() ? " is off; " : " " + result.mistake + "; ");
  return mistakes;
}

Tensor<double, 1> tensor(std::initializer_list<double> values) {
  Tensor<double, 1> result(Extents<1>(static_cast<Index>(values.size())));
  std::copy(values.begin(), values.end(), result.data());
  return result;
}

void right(Case& golden) {
  golden.integer("factor", 1);
  golden.tensor<double, 1>("in.x");
  golden.check("out.y", tensor({1, -2, 4}));
  golden.check("out.masked", tensor({-INFINITY, 3}));
}

}  // namespace

TEST_CASE("golden case: what is right passes, up to the tolerance") {
  CHECK(verdict(right) == "");
  CHECK(verdict([](Case& golden) {
          right(golden);
          golden.check("out.y", tensor({1.0409, -2.0419, 4.0439}));
        }) == "");
}

TEST_CASE("golden case: a wrong value fails") {
  for (const auto& wrong : {tensor({1.0411, -2, 4}), tensor({1, -2.0421, 4}), tensor({1, -2, 4.0441}),
                            tensor({NAN, -2, 4}), tensor({1, -2, INFINITY})})
    CHECK(verdict([&](Case& golden) {
            right(golden);
            golden.check("out.y", wrong);
          }) == "out.y is off; ");
  CHECK(verdict([](Case& golden) {
          right(golden);
          golden.check("out.masked", tensor({-1e30, 3}));
        }).starts_with("out.masked element 0 is"));
}

TEST_CASE("golden case: a wrong shape fails") {
  CHECK(verdict([](Case& golden) {
          right(golden);
          golden.check("out.y", tensor({1, -2}));
        }) == "out.y has the shape (3), computed was (2); ");
  CHECK(verdict([](Case& golden) {
          right(golden);
          golden.check("out.z", tensor({1}));
        }) == "out.z was computed but is not in the file; ");
}

TEST_CASE("golden case: what nobody looked at fails") {
  CHECK(verdict([](Case& golden) {
          golden.integer("factor", 1);
          golden.tensor<double, 1>("in.x");
          golden.check("out.y", tensor({1, -2, 4}));
        }) == "out.masked is expected but was not computed; ");
  CHECK(verdict([](Case& golden) {
          golden.integer("factor", 1);
          golden.check("out.y", tensor({1, -2, 4}));
          golden.check("out.masked", tensor({-INFINITY, 3}));
        }) == "in.x is given, but this operator takes no such tensor; ");
  CHECK(verdict(right, R"({"factor": 2, "twist": true})") == "attribute twist true is not known to this operator; ");
  CHECK(verdict([](Case&) {}).find("nothing was compared") != std::string::npos);
}

TEST_CASE("golden case: attributes of the wrong kind are refused") {
  CHECK_THROWS_WITH_AS(verdict(right, R"({"factor": "two"})"), "attribute factor is \"two\", not an integer", Error);
  CHECK_THROWS_WITH_AS(verdict([](Case& golden) { golden.expect("factor", Index{3}); }),
                       "attribute factor is 2, but the tensors say 3", Error);
}
