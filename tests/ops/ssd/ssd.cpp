// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "diffmamba/ops/ssd/ssd_backward.hpp"
#include "diffmamba/tensor/copy.hpp"
#include "ops/ssd/ssd_data.hpp"

using namespace diffmamba;
using namespace diffmamba::test;

namespace {

template <class T>
double check_forward(const Shape& shape, const With& with, const ssd::Options& options) {
  const Data<T> data(shape, with);
  const auto [out, final_state, saved] = ssd::forward(data.inputs(), options);
  const Reference want = recurrence(data.inputs(), options);
  return std::max(relative_error(out, want.out), relative_error(final_state, want.final_state));
}

/// Every gradient against central differences of L = sum(dout out) + sum(dfinal_state final_state).
void check_gradients(const Shape& shape, const With& with, const ssd::Options& options) {
  Data<double> data(shape, with);
  const auto loss = [&] {
    const auto [out, final_state, saved] = ssd::forward(data.inputs(), options);
    return dot(data.dout, out) + dot(data.dfinal_state, final_state);
  };
  const auto result = ssd::forward(data.inputs(), options);
  const auto d = ssd::backward(data.inputs(), result.saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});
  const auto check = [&](const char* name, auto& input, const auto& gradient) {
    check_gradient(name, input, gradient, loss, 1e-7, 1e-3, 20);
  };
  check("x", data.x, d.dx);
  check("dt", data.dt, d.ddt);
  check("A", data.A, d.dA);
  check("B", data.B, d.dB);
  check("C", data.C, d.dC);
  if (with.D) check("D", data.D, d.dD);
  if (with.D_per_channel) check("D_per_channel", data.D_per_channel, d.dD_per_channel);
  if (with.z) check("z", data.z, d.dz);
  if (with.dt_bias) check("dt_bias", data.dt_bias, d.ddt_bias);
  if (with.initial_state) check("initial_state", data.initial_state, d.dinitial_state);
}

template <class T, class Visit>
void visit(const ssd::Gradients<T>& a, const ssd::Gradients<T>& b, Visit&& visit) {
  visit("dx", a.dx, b.dx);
  visit("ddt", a.ddt, b.ddt);
  visit("dA", a.dA, b.dA);
  visit("dB", a.dB, b.dB);
  visit("dC", a.dC, b.dC);
  visit("dD", a.dD, b.dD);
  visit("dD_per_channel", a.dD_per_channel, b.dD_per_channel);
  visit("dz", a.dz, b.dz);
  visit("ddt_bias", a.ddt_bias, b.ddt_bias);
  visit("dinitial_state", a.dinitial_state, b.dinitial_state);
}

template <class T>
void check_same_bits(const ssd::Gradients<T>& a, const ssd::Gradients<T>& b) {
  visit(a, b, [](const char* name, const auto& mine, const auto& other) {
    INFO(name);
    CHECK(same_bits(mine, other));
  });
}

}  // namespace

TEST_CASE("ssd: forward is the recurrence, at any size") {
  const ssd::Options plain{}, softplus{.chunk_size = 16, .dt_softplus = true},
      ones{.chunk_size = 1, .dt_softplus = true};
  const ssd::Options limited{.chunk_size = 64, .dt_softplus = true, .dt_min = 0.3, .dt_max = 0.9};
  // batch, length, nheads, headdim, ngroups, d_state
  for (const Shape& s : {Shape{1, 1, 1, 1, 1, 1}, Shape{2, 1, 2, 3, 2, 5}, Shape{1, 17, 3, 4, 1, 2},
                         Shape{2, 37, 4, 5, 2, 3}, Shape{1, 64, 2, 16, 1, 16}, Shape{1, 65, 6, 24, 3, 40},
                         Shape{1, 131, 2, 33, 1, 17}, Shape{2, 200, 12, 8, 1, 8}, Shape{9, 5, 2, 7, 1, 9}})
    for (const With& with : {With{}, everything, everything_per_channel})
      for (const ssd::Options& options : {plain, softplus, ones, limited}) {
        INFO("x (", s.batch, ", ", s.length, ", ", s.nheads, ", ", s.headdim, "), ngroups ", s.ngroups, ", d_state ",
             s.d_state, ", chunk ", options.chunk_size);
        CHECK(check_forward<double>(s, with, options) < 1e-13);
        CHECK(check_forward<float>(s, with, options) < 3e-6);
      }
}

TEST_CASE("ssd: the gradient of every input is that of central differences") {
  const ssd::Options softplus{.chunk_size = 16, .dt_softplus = true}, plain{};
  const ssd::Options limited{.chunk_size = 8, .dt_softplus = true, .dt_min = 0.3, .dt_max = 0.9};
  check_gradients({1, 1, 1, 1, 1, 1}, everything, softplus);
  check_gradients({2, 19, 4, 3, 2, 5}, everything, softplus);
  check_gradients({1, 23, 4, 5, 1, 3}, everything_per_channel, limited);
  check_gradients({2, 37, 2, 4, 1, 6}, With{}, softplus);
  check_gradients({1, 70, 3, 17, 1, 18}, With{.initial_state = true}, {.chunk_size = 64, .dt_softplus = true});
  check_gradients({1, 11, 2, 4, 2, 4}, With{.D = true}, {.chunk_size = 1, .dt_softplus = true});
  check_gradients({1, 33, 2, 16, 1, 16}, With{.D_per_channel = true, .z = true}, plain);
}

TEST_CASE("ssd: the clamp of dt lets no gradient through outside its limits") {
  Data<double> data({1, 8, 1, 3, 1, 4}, With{.dt_bias = true});
  for (Index t = 0; t < 8; ++t) data.dt(0, t, 0) = t < 4 ? -6.0 : 6.0;  // all outside, on both sides
  data.dt_bias.fill(0.0);
  const ssd::Options options{.dt_softplus = true, .dt_min = 0.1, .dt_max = 1.0};
  const auto d = ssd::backward(data.inputs(), ssd::forward(data.inputs(), options).saved, {.dout = data.dout});
  for (double value : d.ddt) CHECK(value == 0.0);
  CHECK(d.ddt_bias(0) == 0.0);
  CHECK(d.dA(0) != 0.0);
}

TEST_CASE_TEMPLATE("ssd: float and bfloat16 agree with double", T, float, bfloat16) {
  const Shape shape{2, 150, 4, 24, 2, 20};
  const ssd::Options options{.dt_softplus = true};
  const Data<T> data(shape, everything);
  Data<double> exact(shape, everything);
  const auto round = [](const auto& from, auto& to) { copy(from, to); };  // the numbers that T has
  round(data.x, exact.x), round(data.dt, exact.dt), round(data.A, exact.A), round(data.B, exact.B);
  round(data.C, exact.C), round(data.D, exact.D), round(data.z, exact.z), round(data.dt_bias, exact.dt_bias);
  round(data.initial_state, exact.initial_state), round(data.dout, exact.dout);
  round(data.dfinal_state, exact.dfinal_state);
  const auto a = ssd::forward(data.inputs(), options);
  const auto b = ssd::forward(exact.inputs(), options);
  const double rounding = std::is_same_v<T, float> ? 0.0 : 4e-3;  // of results that are stored as T
  CHECK(relative_error(a.out, b.out) < 2e-6 + rounding);
  CHECK(relative_error(a.final_state, b.final_state) < 2e-6);
  const auto da = ssd::backward(data.inputs(), a.saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});
  const auto db = ssd::backward(exact.inputs(), b.saved, {.dout = exact.dout, .dfinal_state = exact.dfinal_state});
  CHECK(relative_error(da.dx, db.dx) < 3e-6 + rounding);
  CHECK(relative_error(da.ddt, db.ddt) < 3e-6 + rounding);
  CHECK(relative_error(da.dB, db.dB) < 3e-6 + rounding);
  CHECK(relative_error(da.dC, db.dC) < 3e-6 + rounding);
  CHECK(relative_error(da.dz, db.dz) < 3e-6 + rounding);
  CHECK(relative_error(da.dA, db.dA) < 3e-6);
  CHECK(relative_error(da.dD, db.dD) < 3e-6);
  CHECK(relative_error(da.ddt_bias, db.ddt_bias) < 3e-6);
  CHECK(relative_error(da.dinitial_state, db.dinitial_state) < 3e-6);
}

TEST_CASE("ssd: fast decay keeps the gradient of dt exact in float") {
  // e^{dt A} is about 1e-4: what a step leaves is small, and so is dA, but not its relative error.
  const Shape shape{1, 128, 2, 8, 1, 8};
  Data<float> data(shape, With{});
  Data<double> exact(shape, With{});
  for (Index i = 0; i < data.dt.size(); ++i)
    exact.dt.data()[i] = data.dt.data()[i] = 3.0f + 0.01f * static_cast<float>(i % 7);
  data.A.fill(-3.0f), exact.A.fill(-3.0);
  const auto d = ssd::backward(data.inputs(), ssd::forward(data.inputs()).saved, {.dout = data.dout});
  const auto e = ssd::backward(exact.inputs(), ssd::forward(exact.inputs()).saved, {.dout = exact.dout});
  CHECK(std::abs(e.dA(0)) < 1.0);
  CHECK(relative_error(d.dA, e.dA) < 1e-5);
}

TEST_CASE("ssd: the same bits on any number of threads") {
  for (const Shape& shape :
       {Shape{3, 150, 4, 24, 2, 20}, Shape{1, 130, 12, 16, 1, 16}}) {  // the second splits its group
    const Data<float> data(shape, everything);
    const auto run = [&](int threads) {
      const Threads scope(threads);
      auto result = ssd::forward(data.inputs(), {.dt_softplus = true});
      auto d = ssd::backward(data.inputs(), result.saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});
      return std::pair(std::move(result), std::move(d));
    };
    const auto [one, d_one] = run(1);
    for (int threads : {2, 5}) {
      const auto [many, d_many] = run(threads);
      CHECK(same_bits(one.out, many.out));
      CHECK(same_bits(one.final_state, many.final_state));
      check_same_bits(d_one, d_many);
    }
  }
}

TEST_CASE("ssd: pieces through the state are one run, forward and backward") {
  const Shape shape{2, 90, 4, 5, 2, 7};
  const ssd::Options options{.chunk_size = 16, .dt_softplus = true};
  const Data<double> data(shape, everything);
  const auto in = data.inputs();
  const auto whole = ssd::forward(in, options);
  const auto d = ssd::backward(in, whole.saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});

  const Index cut = 37;
  const auto piece = [&](Index begin, Index end, const Tensor<double, 4>& state) {
    ssd::Inputs<double> part = in;
    part.x = in.x.slice<1>(begin, end), part.dt = in.dt.slice<1>(begin, end), part.B = in.B.slice<1>(begin, end);
    part.C = in.C.slice<1>(begin, end), part.z = in.z.slice<1>(begin, end), part.initial_state = state;
    return part;
  };
  const auto first_in = piece(0, cut, data.initial_state);
  const auto first = ssd::forward(first_in, options);
  const auto second_in = piece(cut, shape.length, first.final_state);
  const auto second = ssd::forward(second_in, {.chunk_size = 64, .dt_softplus = true});
  CHECK(relative_error(first.out, to_tensor(whole.out.slice<1>(0, cut))) < 1e-13);
  CHECK(relative_error(second.out, to_tensor(whole.out.slice<1>(cut, shape.length))) < 1e-13);
  CHECK(relative_error(second.final_state, whole.final_state) < 1e-13);

  const auto d_second = ssd::backward(
      second_in, second.saved, {.dout = data.dout.slice<1>(cut, shape.length), .dfinal_state = data.dfinal_state});
  const auto d_first = ssd::backward(first_in, first.saved,
                                     {.dout = data.dout.slice<1>(0, cut), .dfinal_state = d_second.dinitial_state});
  CHECK(relative_error(d_first.dx, to_tensor(d.dx.slice<1>(0, cut))) < 1e-12);
  CHECK(relative_error(d_first.dB, to_tensor(d.dB.slice<1>(0, cut))) < 1e-12);
  CHECK(relative_error(d_second.ddt, to_tensor(d.ddt.slice<1>(cut, shape.length))) < 1e-12);
  CHECK(relative_error(d_first.dinitial_state, d.dinitial_state) < 1e-12);
  for (Index h = 0; h < shape.nheads; ++h)
    CHECK(d_first.dA(h) + d_second.dA(h) == doctest::Approx(d.dA(h)).epsilon(1e-12));
}

TEST_CASE("ssd: slices of larger tensors, in and out") {
  const Shape s{2, 40, 4, 6, 2, 5};
  const ssd::Options options{.chunk_size = 16, .dt_softplus = true};
  const Data<float> data(s, everything);
  const auto in = data.inputs();
  const auto want = ssd::forward(in, options);
  const auto d = ssd::backward(in, want.saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});

  // As a mixer has them: z, x, B, C, dt side by side in one row, and gradients go to one row again.
  const Index inner = s.nheads * s.headdim, states = s.ngroups * s.d_state;
  const Extents<3> row{s.batch, s.length, 3 + 2 * inner + 2 * states + s.nheads};
  auto projected = random_tensor<float>(row, 30);
  auto dprojected = random_tensor<float>(row, 31);
  struct Row {
    View<float, 4> z, x, B, C;
    View<float, 3> dt;
  };
  const auto cut = [&](Tensor<float, 3>& from) {
    Index at = 3;
    const auto next = [&](Index size) { return at += size, from.slice<2>(at - size, at); };
    Row r;
    r.z = next(inner).reshape(Extents{s.batch, s.length, s.nheads, s.headdim});
    r.x = next(inner).reshape(Extents{s.batch, s.length, s.nheads, s.headdim});
    r.B = next(states).reshape(Extents{s.batch, s.length, s.ngroups, s.d_state});
    r.C = next(states).reshape(Extents{s.batch, s.length, s.ngroups, s.d_state});
    r.dt = next(s.nheads);
    return r;
  };
  const Row r = cut(projected), dr = cut(dprojected);
  copy(in.z, r.z), copy(in.x, r.x), copy(in.B, r.B), copy(in.C, r.C), copy(in.dt, r.dt);
  ssd::Inputs<float> strided = in;
  strided.z = r.z, strided.x = View<const float, 4>(r.x), strided.B = View<const float, 4>(r.B);
  strided.C = View<const float, 4>(r.C), strided.dt = View<const float, 3>(r.dt);
  Tensor<float, 4> wide({s.batch, s.length, s.nheads, s.headdim + 2}, -7.0f);
  ssd::Saved<float> saved;
  Workspace<cpu> workspace(std::max(ssd::workspace_bytes(strided, options), std::size_t{1 << 20}));
  ssd::forward(strided, options, {.out = wide.slice<3>(1, s.headdim + 1)}, &saved, workspace);
  CHECK(same_bits(to_tensor(wide.slice<3>(1, s.headdim + 1)), want.out));
  CHECK(wide(1, 7, 2, 0) == -7.0f);
  CHECK(wide(1, 7, 2, s.headdim + 1) == -7.0f);

  Workspace<cpu> backward_workspace(ssd::workspace_bytes(strided, saved));
  const float untouched = dprojected(1, 3, 2);
  ssd::backward(strided, saved, {.dout = data.dout, .dfinal_state = data.dfinal_state},
                {.dx = dr.x, .ddt = dr.dt, .dB = dr.B, .dC = dr.C, .dz = dr.z}, backward_workspace);
  CHECK(same_bits(to_tensor(dr.x), d.dx));
  CHECK(same_bits(to_tensor(dr.dt), d.ddt));
  CHECK(same_bits(to_tensor(dr.B), d.dB));
  CHECK(same_bits(to_tensor(dr.C), d.dC));
  CHECK(same_bits(to_tensor(dr.z), d.dz));
  CHECK(dprojected(1, 3, 2) == untouched);
}

TEST_CASE("ssd: results may lie where inputs were") {
  const Data<float> data({2, 70, 4, 6, 2, 5}, everything);
  const ssd::Options options{.dt_softplus = true};
  const auto want = ssd::forward(data.inputs(), options);
  const auto d = ssd::backward(data.inputs(), want.saved, {.dout = data.dout});
  Data<float> reused = data;
  Workspace<cpu> workspace(ssd::workspace_bytes(data.inputs(), options));
  ssd::forward(reused.inputs(), options, {.out = reused.x}, nullptr, workspace);
  CHECK(same_bits(reused.x, want.out));
  reused = data;
  Workspace<cpu> backward_workspace(ssd::workspace_bytes(data.inputs(), want.saved));
  ssd::backward(reused.inputs(), want.saved, {.dout = reused.dout},
                {.dx = reused.dout, .ddt = reused.dt, .dz = reused.z}, backward_workspace);
  CHECK(same_bits(reused.dout, d.dx));
  CHECK(same_bits(reused.dt, d.ddt));
  CHECK(same_bits(reused.z, d.dz));
}

TEST_CASE("ssd: no step at all") {
  const Data<double> data({2, 0, 4, 3, 2, 5}, everything);
  const auto [out, final_state, saved] = ssd::forward(data.inputs());
  CHECK(out.size() == 0);
  CHECK(same_bits(final_state, data.initial_state));
  const auto d = ssd::backward(data.inputs(), saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});
  CHECK(same_bits(d.dinitial_state, data.dfinal_state));
  for (double value : d.dA) CHECK(value == 0.0);

  const Data<double> nobody({0, 3, 4, 3, 2, 5}, everything);
  const auto empty = ssd::forward(nobody.inputs());
  CHECK(empty.out.size() == 0);
  for (double value : ssd::backward(nobody.inputs(), empty.saved, {.dout = nobody.dout}).ddt_bias) CHECK(value == 0.0);
}

TEST_CASE("ssd: gradients are added where that is asked for, and absent outputs count as zero") {
  const Data<double> data({2, 21, 2, 3, 1, 4}, everything);
  const auto saved = ssd::forward(data.inputs()).saved;
  const auto d = ssd::backward(data.inputs(), saved, {.dout = data.dout, .dfinal_state = data.dfinal_state});
  const auto of_out = ssd::backward(data.inputs(), saved, {.dout = data.dout});
  const auto of_state = ssd::backward(data.inputs(), saved, {.dfinal_state = data.dfinal_state});
  visit(of_out, of_state, [&](const char*, auto& a, const auto& b) {
    for (Index i = 0; i < a.size(); ++i) const_cast<double*>(a.data())[i] += b.data()[i];
  });
  visit(d, of_out, [](const char* name, const auto& whole, const auto& sum) {
    INFO(name);
    CHECK(relative_error(sum, whole) < 1e-12);
  });

  Tensor<double, 1> dA({2}, 10.0), ddt_bias({2}, 20.0), dD({2}, 30.0);
  Tensor<double, 4> dC(data.C.extents(), 40.0);
  Workspace<cpu> workspace(ssd::workspace_bytes(data.inputs(), saved));
  const std::size_t before = arena<cpu>().bytes_in_use();
  arena<cpu>().reset_peak();
  ssd::backward(data.inputs(), saved, {.dout = data.dout, .dfinal_state = data.dfinal_state},
                {.dA = dA, .dC = dC, .dD = dD, .ddt_bias = ddt_bias}, workspace, GradientMode::add);
  CHECK(arena<cpu>().peak_bytes() == before);  // nothing was allocated
  CHECK(dA(1) == doctest::Approx(10.0 + d.dA(1)));
  CHECK(ddt_bias(0) == doctest::Approx(20.0 + d.ddt_bias(0)));
  CHECK(dD(1) == doctest::Approx(30.0 + d.dD(1)));
  CHECK(same_bits(dC, d.dC));  // not a parameter: assigned
}

TEST_CASE("ssd: forward into given memory allocates nothing") {
  const Data<float> data({2, 70, 4, 8, 2, 8}, everything);
  auto first = ssd::forward(data.inputs());
  Workspace<cpu> workspace(ssd::workspace_bytes(data.inputs(), ssd::Options{}));
  const std::size_t before = arena<cpu>().bytes_in_use();
  arena<cpu>().reset_peak();
  ssd::forward(data.inputs(), {}, {.out = first.out, .final_state = first.final_state}, &first.saved, workspace);
  CHECK(arena<cpu>().peak_bytes() == before);
}

TEST_CASE("ssd: one sentence for every mistake") {
  const Data<float> data({2, 6, 4, 3, 2, 5}, everything);
  const auto throws = [](const std::string& message, auto&& call) {
    CHECK_THROWS_WITH_AS(call(), message.c_str(), Error);
  };
  const auto with = [&](auto&& change) {
    auto in = data.inputs();
    change(in);
    return in;
  };
  const Tensor<float, 4> other({2, 6, 2, 4}), three({2, 6, 3, 5});
  const Tensor<float, 3> dt({2, 5, 4});
  const Tensor<float, 1> five({5});
  throws("ssd: B has d_state 5 but C has 4 (B: (2, 6, 2, 5), C: (2, 6, 2, 4))",
         [&] { ssd::forward(with([&](auto& in) { in.C = other; })); });
  throws("ssd: B has 2 groups but C has 3 (B: (2, 6, 2, 5), C: (2, 6, 3, 5))",
         [&] { ssd::forward(with([&](auto& in) { in.C = three; })); });
  throws("ssd: 4 heads cannot be divided into 3 groups (x: (2, 6, 4, 3), B: (2, 6, 3, 5))",
         [&] { ssd::forward(with([&](auto& in) { in.B = three, in.C = three; })); });
  throws("ssd: dt has the shape (2, 5, 4), expected (2, 6, 4)",
         [&] { ssd::forward(with([&](auto& in) { in.dt = dt; })); });
  throws("ssd: A has the shape (5), expected (4)", [&] { ssd::forward(with([&](auto& in) { in.A = five; })); });
  throws("ssd: dt_bias has the shape (5), expected (4)",
         [&] { ssd::forward(with([&](auto& in) { in.dt_bias = five; })); });
  const Tensor<float, 2> channels({4, 3});
  throws("ssd: D and D_per_channel are both given; give one",
         [&] { ssd::forward(with([&](auto& in) { in.D_per_channel = channels; })); });
  throws("ssd: initial_state has the shape (2, 6, 2, 4), expected (2, 4, 3, 5)",
         [&] { ssd::forward(with([&](auto& in) { in.initial_state = other; })); });
  const Tensor<float, 4> turned({2, 6, 3, 4});
  throws("ssd: x, (2, 6, 4, 3), must be dense along its last axis; its stride there is 4",
         [&] { ssd::forward(with([&](auto& in) { in.x = turned.view().permute<0, 1, 3, 2>(); })); });
  throws("ssd: chunk_size is 0, expected 1 or more", [&] { ssd::forward(data.inputs(), {.chunk_size = 0}); });
  throws("ssd: dt_min 2 is above dt_max 1", [&] { ssd::forward(data.inputs(), {.dt_min = 2, .dt_max = 1}); });

  const auto saved = ssd::forward(data.inputs()).saved;
  throws("ssd: dout has the shape (2, 6, 2, 4), expected (2, 6, 4, 3)",
         [&] { ssd::backward(data.inputs(), saved, {.dout = other}); });
  throws(
      "ssd: saved does not come from a forward over inputs of this shape (its states: (0, 0, 0, 0, 0), expected "
      "(2, 1, 4, 5, 3))",
      [&] { ssd::backward(data.inputs(), ssd::Saved<float>{}, {.dout = data.dout}); });
  Workspace<cpu> small(64);
  Tensor<float, 4> out(data.x.extents());
  CHECK_THROWS_AS(ssd::forward(data.inputs(), {}, {.out = out}, nullptr, small), Error);
  Workspace<cpu> enough(ssd::workspace_bytes(data.inputs(), saved));
  throws("ssd: dz is asked for without z",
         [&] { ssd::backward(with([](auto& in) { in.z = {}; }), saved, {.dout = data.dout}, {.dz = out}, enough); });
}
