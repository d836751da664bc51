// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diffmamba/ops/ssd/ssd_forward.hpp"

// The backward pass, derived by hand.
//
// One head, one chunk of Q steps. Rows are steps: C and B are (Q, N), U and Y are (Q, P), the state S is (N, P). With
// a_t the log decay of step t, c_t = a_1 + ... + a_t, and the lower triangular matrices G = C B^T, L_ts = e^{c_t - c_s}
// and M = G * L (element by element), the forward pass is
//
//   Y  = e^c . (C S) + M U                        e^c . X scales row t of X by e^{c_t}
//   S' = e^{c_Q} S + B^T (e^{c_Q - c} . U)
//
// Given dY and dS' (which comes from the chunk after this one), every product gives two,
//
//   dS = e^{c_Q} dS' + C^T (e^c . dY)                           goes to the chunk before
//   dU = e^{c_Q - c} . (B dS') + M^T dY
//   dM = dY U^T, below and on the diagonal, so dG = dM * L      summed over the heads of the group
//   dC = (e^c . dY) S^T + dG B                                  summed over the heads of the group
//   dB = (e^{c_Q - c} . U) dS'^T + dG^T C                       summed over the heads of the group
//
// five products a head (two triangular) and two more a group (triangular). The first terms of dU, dC and dB and the
// whole of dS vanish with dS' or S, so the first and the last chunk of a sequence cost less.
//
// The decays. a_k stands in every exponent that spans step k:
//
//   in L_ts            for s < k <= t      which brings   E_ts = dM_ts M_ts
//   in e^{c_t}         for t >= k                         o_t  = C_t . ((e^c . dY) S^T)_t
//   in e^{c_Q - c_s}   for s <  k                         i_s  = B_s . ((e^{c_Q - c} . U) dS'^T)_s
//   in e^{c_Q}         for all k                          w    = e^{c_Q} <S, dS'>
//
//   da_k = sum_{t >= k} sum_{s < k} E_ts  +  sum_{t >= k} o_t  +  sum_{s < k} i_s  +  w
//
// The rectangle sums of E are taken as they stand: with t falling, H_s = sum_{t >= k} E_ts is one addition a row, and
// the rest is its sum over s < k. Row sums minus column sums of E, summed up (as is often done), are the same on paper,
// but there the diagonal and every pair on one side of k are added and taken away again: where states decay fast, da is
// what is left of a cancellation. Here it never is.
//
// The steps around it. With u_t = dt_t x_t, a_t = dt_t A, y_t = Y_t + D x_t, out_t = y_t silu(z_t):
//
//   dy_t  = dout_t silu(z_t),  dz_t = dout_t y_t silu'(z_t)     y is computed again, only if there is a z
//   dx_t  = dt_t du_t + D dy_t,   dD = sum_t x_t dy_t
//   ddt_t = (x_t . du_t + A da_t) d discretize / d dt,   dA = sum_t dt_t da_t,   ddt_bias = sum_t ddt_t
//
// Sums over heads, batch and chunks have an order that follows from the shapes.
namespace diffmamba::ssd {
namespace detail {

/// Where backward_tile writes; absent ones are not written. dlog_decay is for `ssd::minimal`.
template <class T>
struct Targets {
  using Real = accumulate_t<T>;
  View<T, 4> dx, dB, dC, dz = {};
  View<T, 3> ddt = {};
  View<Real, 3> dlog_decay = {};
  View<Real, 4> dinitial_state = {};
};

/// Sums of one sequence, added up over the batch at the end, and dB and dC of one part of a group where it was split.
template <class A>
struct Partials {
  A *dA, *ddt_bias;  // (batch, nheads)
  A* dD;             // (batch, nheads, padded headdim)
  A *dB, *dC;        // (splits, batch, length, ngroups, d_state), or nothing if splits is 1

  template <class Carve>
  Partials(Carve&& carve, const Plan<A>& p)
      : dA(carve(p.batch * p.nheads)),
        ddt_bias(carve(p.batch * p.nheads)),
        dD(carve(p.batch * p.nheads * p.row_headdim)),
        dB(carve(p.splits > 1 ? split_size(p) * p.splits : 0)),
        dC(carve(p.splits > 1 ? split_size(p) * p.splits : 0)) {}

  static Index split_size(const Plan<A>& p) { return p.batch * p.length * p.ngroups * p.d_state; }
  static std::size_t bytes(const Plan<A>& plan) {
    Carver<A> count(nullptr);
    Partials(count, plan);
    return count.bytes();
  }
};

template <class A>
struct BackwardScratch {
  ForwardScratch<A> forward;  // B, C, scores, mixing, x, u, y, decays; `states` holds dS'
  A *dB, *dC, *products;      // (chunk, d_state)
  A *dscores, *dmixing;       // (chunk, chunk)
  A *dy, *du, *scaled;        // (chunk, headdim)
  A* u_transposed;            // (headdim, chunk)
  A *state, *transposed;      // (d_state, headdim): S; (headdim, d_state): that, or dS'
  A* column;                  // (chunk): H
  A *dlog_decay, *ddt;        // (chunk)
  A* passed;                  // (chunk): o, then i

  template <class Carve>
  BackwardScratch(Carve&& carve, const Plan<A>& p)
      : forward(carve, p),
        dB(carve(p.chunk * p.row_state)),
        dC(carve(p.chunk * p.row_state)),
        products(carve(p.chunk * p.row_state)),
        dscores(carve(p.chunk * p.row_chunk)),
        dmixing(carve(p.chunk * p.row_chunk)),
        dy(carve(p.chunk * p.row_headdim)),
        du(carve(p.chunk * p.row_headdim)),
        scaled(carve(p.chunk * p.row_headdim)),
        u_transposed(carve(p.headdim * p.row_chunk)),
        state(carve(p.d_state * p.row_headdim)),
        transposed(carve(p.headdim * p.row_state)),
        column(carve(p.row_chunk)),
        dlog_decay(carve(p.row_chunk)),
        ddt(carve(p.row_chunk)),
        passed(carve(p.row_chunk)) {}

  static std::size_t bytes(const Plan<A>& plan) {
    Carver<A> count(nullptr);
    BackwardScratch(count, plan);
    return count.bytes();
  }
};

/// From scores G and dM: M = G * L, dG (+)= dM * L, and the first sum of da.
template <class A>
void chunk_mixing_backward(const Plan<A>& plan, Index steps, bool first_head, BackwardScratch<A>& s) {
  const Index q = plan.row_chunk;
  const Decays<A>& decays = s.forward.decays;
  fill_zero(s.column, q);
  for (Index t = steps - 1; t >= 0; --t) {
    Lanes<A> before = Lanes<A>::all(A(0));
    Index j = 0;
    for (; j <= t; j += packet_size<A>) {
      const Index at = t * q + j;
      const Lanes<A> decay = decay_packet(decays, t, j), score = Lanes<A>::load(s.forward.scores + at);
      const Lanes<A> dscore = decay * Lanes<A>::load(s.dmixing + at);
      (decay * score).store(s.forward.mixing + at);
      (first_head ? dscore : Lanes<A>::load(s.dscores + at) + dscore).store(s.dscores + at);
      const Lanes<A> column = multiply_add(dscore, score, Lanes<A>::load(s.column + j));
      column.store(s.column + j);
      const Index earlier = t - j;  // lanes s < t
      before = earlier >= packet_size<A> ? before + column : multiply_add(column, first_lanes<A>(earlier), before);
    }
    s.dlog_decay[t] = before.sum();
    fill_zero(s.forward.mixing + t * q + j, padded<A>(t + 1) - j);
    fill_zero(s.dscores + t * q + j, padded<A>(t + 1) - j);
  }
}

/// dy = dout silu(z), and dz where it is asked for; y is that of the forward pass without D x. dy holds dout.
template <class T, class A>
void chunk_gate_backward(const Problem<T>& in, const Plan<A>& plan, Index b, Index begin, Index steps, Index h,
                         const ForwardScratch<A>& f, A* dy, const View<T, 4>& dz) {
  const Index row = plan.row_headdim;
  const Lanes<A> one = Lanes<A>::all(A(1));
  const A *x = f.x, *y = f.y;
  for (Index t = 0; t < steps; ++t, x += row, y += row, dy += row) {
    load_rows(in.z.pointer(b, begin + t, h), 0, 1, plan.headdim, f.z, row);
    for (Index j = 0; j < row; j += packet_size<A>) {
      const Lanes<A> z = Lanes<A>::load(f.z + j), s = sigmoid(z);
      const Lanes<A> dout = Lanes<A>::load(dy + j);
      const Lanes<A> before_gate = multiply_add(Lanes<A>::load(f.D + j), Lanes<A>::load(x + j), Lanes<A>::load(y + j));
      const Lanes<A> slope = s * multiply_add(z, one - s, one);
      (dout * (z * s)).store(dy + j);
      (dout * (before_gate * slope)).store(f.z + j);
    }
    if (dz) store_rows(f.z, row, 1, plan.headdim, dz.pointer(b, begin + t, h), 0);
  }
}

/// dx = dt du + D dy into the caller's rows if there are any, dD += x dy, and x . du of every step.
template <class T, class A>
void chunk_input_backward(const Plan<A>& plan, Index steps, const A* dt, const A* x, const A* D, const A* dy, A* du,
                          A* dD, A* x_du, T* dx, Index dx_stride) {
  const Index row = plan.row_headdim;
  for (Index t = 0; t < steps; ++t, x += row, dy += row, du += row) {
    const Lanes<A> step = Lanes<A>::all(dt[t]);
    Lanes<A> sum = Lanes<A>::all(A(0));
    for (Index j = 0; j < row; j += packet_size<A>) {
      const Lanes<A> x_t = Lanes<A>::load(x + j), dy_t = Lanes<A>::load(dy + j);
      const Lanes<A> du_t = Lanes<A>::load(du + j);
      sum = multiply_add(x_t, du_t, sum);
      multiply_add(x_t, dy_t, Lanes<A>::load(dD + j)).store(dD + j);
      multiply_add(step, du_t, Lanes<A>::load(D + j) * dy_t).store(du + j);
    }
    x_du[t] = sum.sum();
    if (dx != nullptr) store_rows(du, row, 1, plan.headdim, dx + t * dx_stride, 0);
  }
}

/// sum_t row_t += products_t, and what each row adds to the decays: by_t = row_of_t . products_t.
template <class A>
void add_rows(const A* products, const A* by, Index steps, Index stride, A* to, A* passed) {
  for (Index t = 0; t < steps; ++t) {
    Lanes<A> sum = Lanes<A>::all(A(0));
    for (Index j = t * stride; j < (t + 1) * stride; j += packet_size<A>) {
      const Lanes<A> value = Lanes<A>::load(products + j);
      sum = multiply_add(value, Lanes<A>::load(by + j), sum);
      (Lanes<A>::load(to + j) + value).store(to + j);
    }
    passed[t] = sum.sum();
  }
}

/// All chunks of one tile, the last one first.
template <class T, class A>
void backward_tile(const Problem<T>& in, const Plan<A>& plan, Index index, BackwardScratch<A>& s,
                   const View<const A, 5>& saved, const View<const T, 4>& dout, const View<const A, 4>& dfinal_state,
                   const Targets<T>& targets, Partials<A>& partials) {
  const auto tile = plan.tile(index);
  const Index b = tile.batch, q = plan.row_chunk, p = plan.row_headdim, n = plan.row_state;
  ForwardScratch<A>& f = s.forward;
  Decays<A>& decays = f.decays;
  const auto dstate_of = [&](Index h) { return f.states + (h - tile.first_head) * plan.d_state * p; };
  const auto sum_of = [&](Index h) { return b * plan.nheads + h; };
  for (Index h = tile.first_head; h < tile.last_head; ++h) {
    if (dfinal_state)
      load_state(dfinal_state, b, h, dstate_of(h), p);
    else
      fill_zero(dstate_of(h), plan.d_state * p);
    partials.dA[sum_of(h)] = partials.ddt_bias[sum_of(h)] = A(0);
    fill_zero(partials.dD + sum_of(h) * p, p);
  }

  for (Index c = plan.chunks - 1; c >= 0; --c) {
    const Index begin = c * plan.chunk, steps = std::min(plan.chunk, plan.length - begin);
    const bool has_state = c > 0 || in.initial_state, has_dstate = c + 1 < plan.chunks || dfinal_state;
    const bool dstate_is_used = c > 0 || targets.dinitial_state;
    load_rows(in.B.pointer(b, begin, tile.group), in.B.stride(1), steps, plan.d_state, f.B, n);
    load_rows(in.C.pointer(b, begin, tile.group), in.C.stride(1), steps, plan.d_state, f.C, n);
    transpose(f.B, n, steps, plan.d_state, f.B_transposed, q);
    product<false>(Part::lower_result, steps, q, plan.d_state, f.C, n, f.B_transposed, q, f.scores, q);
    fill_zero(s.dB, steps * n);
    fill_zero(s.dC, steps * n);

    for (Index h = tile.first_head; h < tile.last_head; ++h) {
      A* dstate = dstate_of(h);
      if (has_state) load_rows(saved.pointer(b, c, h), plan.headdim, plan.d_state, plan.headdim, s.state, p);
      decays.prepare(in, b, begin, steps, h, q);
      load_D(in, h, plan.headdim, p, f.D);
      load_rows(in.x.pointer(b, begin, h), in.x.stride(1), steps, plan.headdim, f.x, p);
      const A* u = f.x;
      if (!in.log_decay) u = f.u, scale_rows(f.x, decays.dt, steps, p, f.u);
      if (dout)
        load_rows(dout.pointer(b, begin, h), dout.stride(1), steps, plan.headdim, s.dy, p);
      else
        fill_zero(s.dy, steps * p);
      if (in.z) {
        chunk_output(plan, steps, decays, f.C, f.scores, has_state ? s.state : nullptr, p, u, f.mixing, f.y);
        chunk_gate_backward(in, plan, b, begin, steps, h, f, s.dy, targets.dz);
      }

      // Within the chunk.
      transpose(u, p, steps, plan.headdim, s.u_transposed, q);
      product<false>(Part::lower_result, steps, q, plan.headdim, s.dy, p, s.u_transposed, q, s.dmixing, q);
      chunk_mixing_backward(plan, steps, h == tile.first_head, s);
      if (has_dstate)
        product<false>(Part::all, steps, p, plan.d_state, f.B, n, dstate, p, s.du, p, {.scale = decays.to_end});
      product<true>(Part::upper_factor, steps, p, steps, f.mixing, q, s.dy, p, s.du, p,
                    {.keep = has_dstate ? A(1) : A(0)});

      // Through the state after it.
      A whole = A(0);
      if (has_dstate) {
        if (has_state) whole = decays.through * dot(s.state, dstate, plan.d_state * p);
        scale_rows(u, decays.to_end, steps, p, s.scaled);
        transpose(dstate, p, plan.d_state, plan.headdim, s.transposed, n);
        product<false>(Part::all, steps, n, plan.headdim, s.scaled, p, s.transposed, n, s.products, n);
        add_rows(s.products, f.B, steps, n, s.dB, s.passed);
        A sum = whole;
        for (Index t = 0; t < steps; ++t) s.dlog_decay[t] += sum, sum += s.passed[t];
      }

      // Through the state before it.
      if (has_state || dstate_is_used) scale_rows(s.dy, decays.from_start, steps, p, s.scaled);
      if (has_state) {
        transpose(s.state, p, plan.d_state, plan.headdim, s.transposed, n);
        product<false>(Part::all, steps, n, plan.headdim, s.scaled, p, s.transposed, n, s.products, n);
        add_rows(s.products, f.C, steps, n, s.dC, s.passed);
        A sum = A(0);
        for (Index t = steps - 1; t >= 0; --t) s.dlog_decay[t] += sum += s.passed[t];
      }
      if (dstate_is_used)
        product<true>(Part::all, plan.d_state, p, steps, f.C, n, s.scaled, p, dstate, p, {.keep = decays.through});

      // Out of the chunk.
      T* dx = targets.dx ? targets.dx.pointer(b, begin, h) : nullptr;
      if (in.log_decay) {
        if (targets.dlog_decay)
          for (Index t = 0; t < steps; ++t) targets.dlog_decay(b, begin + t, h) = s.dlog_decay[t];
        if (dx != nullptr) store_rows(s.du, p, steps, plan.headdim, dx, targets.dx.stride(1));
      } else {
        chunk_input_backward(plan, steps, decays.dt, f.x, f.D, s.dy, s.du, partials.dD + sum_of(h) * p, s.ddt, dx,
                             targets.dx.stride(1));
        const A a = in.A(h);
        A dA = A(0), ddt_bias = A(0);
        for (Index t = 0; t < steps; ++t) {
          const A ddt = (s.ddt[t] + a * s.dlog_decay[t]) * decays.slope[t];
          dA += decays.dt[t] * s.dlog_decay[t];
          ddt_bias += ddt;
          if (targets.ddt) targets.ddt(b, begin + t, h) = static_cast<T>(ddt);
        }
        partials.dA[sum_of(h)] += dA;
        partials.ddt_bias[sum_of(h)] += ddt_bias;
      }
    }

    product<false>(Part::lower_factor, steps, n, steps, s.dscores, q, f.B, n, s.dC, n, {.keep = A(1)});
    product<true>(Part::upper_factor, steps, n, steps, s.dscores, q, f.C, n, s.dB, n, {.keep = A(1)});
    const auto write = [&](const A* from, const View<T, 4>& to, A* parts) {
      if (!to) return;
      if (plan.splits == 1) {
        store_rows(from, n, steps, plan.d_state, to.pointer(b, begin, tile.group), to.stride(1));
      } else {
        const Index row = ((tile.split * plan.batch + b) * plan.length + begin) * plan.ngroups + tile.group;
        store_rows(from, n, steps, plan.d_state, parts + row * plan.d_state, plan.ngroups * plan.d_state);
      }
    };
    write(s.dB, targets.dB, partials.dB);
    write(s.dC, targets.dC, partials.dC);
  }
  if (targets.dinitial_state)
    for (Index h = tile.first_head; h < tile.last_head; ++h) store_state(dstate_of(h), p, targets.dinitial_state, b, h);
}

/// Adds up what the parts of a group gave.
template <class T, class A>
void join_splits(const Plan<A>& plan, const A* parts, const View<T, 4>& to) {
  if (!to || plan.splits == 1) return;
  parallel_for(plan.batch * plan.chunks, [&](Index tile) {
    const Index b = tile / plan.chunks, begin = tile % plan.chunks * plan.chunk;
    const Index end = std::min(begin + plan.chunk, plan.length);
    for (Index t = begin; t < end; ++t)
      for (Index g = 0; g < plan.ngroups; ++g) {
        T* row = to.pointer(b, t, g);
        const A* from = parts + ((b * plan.length + t) * plan.ngroups + g) * plan.d_state;
        for (Index i = 0; i < plan.d_state; ++i) {
          A sum = A(0);
          for (Index split = 0; split < plan.splits; ++split) sum += from[split * Partials<A>::split_size(plan) + i];
          row[i] = static_cast<T>(sum);
        }
      }
  });
}

template <class T, class A>
void backward(const Problem<T>& in, const Plan<A>& plan, const View<const A, 5>& saved, const View<const T, 4>& dout,
              const View<const A, 4>& dfinal_state, const Targets<T>& targets, Partials<A>& partials,
              Workspace<cpu>& workspace) {
  const std::size_t bytes = BackwardScratch<A>::bytes(plan);
  const Index workers = std::min<Index>(max_threads(), plan.tiles());
  std::byte* memory = workspace.template take<std::byte>(workers * static_cast<Index>(bytes));
  parallel_for(plan.tiles(), [&](Index tile, int worker) {
    Workspace<cpu> own(memory + static_cast<std::size_t>(worker) * bytes, bytes);
    Carver<A> carve(&own);
    BackwardScratch<A> scratch(carve, plan);
    backward_tile(in, plan, tile, scratch, saved, dout, dfinal_state, targets, partials);
  });
  join_splits(plan, partials.dB, targets.dB);
  join_splits(plan, partials.dC, targets.dC);
}

template <class A>
std::size_t backward_bytes(const Plan<A>& plan) {
  return Partials<A>::bytes(plan) + static_cast<std::size_t>(max_threads()) * BackwardScratch<A>::bytes(plan);
}

}  // namespace detail

/// Bytes of workspace that backward takes with the calling thread's present number of threads.
template <class T>
std::size_t workspace_bytes(const Inputs<T>& in, const Saved<T>& saved) {
  return detail::backward_bytes(detail::Plan<accumulate_t<T>>(sizes(in), saved.options));
}

/// Writes the gradients whose views are given, and never allocates. `mode` says whether dA, dD, dD_per_channel and
/// ddt_bias are assigned or added to; all others are assigned. `in` is what forward was given. Throws Error.
template <class T>
void backward(const Inputs<T>& in, const Saved<T>& saved, const std::type_identity_t<OutputGradients<T>>& upstream,
              const std::type_identity_t<GradientViews<T>>& gradients, Workspace<cpu>& workspace,
              GradientMode mode = GradientMode::assign) {
  using A = accumulate_t<T>;
  check(in, saved, upstream, gradients);
  const detail::Plan<A> plan(sizes(in), saved.options);
  const auto mark = workspace.mark();
  detail::Carver<A> carve(&workspace);
  detail::Partials<A> partials(carve, plan);
  detail::backward(detail::problem(in, saved.options), plan, View<const A, 5>(saved.states.view()), upstream.dout,
                   upstream.dfinal_state,
                   {.dx = gradients.dx,
                    .dB = gradients.dB,
                    .dC = gradients.dC,
                    .dz = gradients.dz,
                    .ddt = gradients.ddt,
                    .dlog_decay = {},
                    .dinitial_state = gradients.dinitial_state},
                   partials, workspace);

  // Sums over the batch, one head after another.
  const auto put = [mode](A& to, double sum) {
    to = static_cast<A>(mode == GradientMode::add ? static_cast<double>(to) + sum : sum);
  };
  for (Index h = 0; h < plan.nheads; ++h) {
    double dA = 0, ddt_bias = 0, dD = 0;
    for (Index b = 0; b < plan.batch; ++b) {
      dA += static_cast<double>(partials.dA[b * plan.nheads + h]);
      ddt_bias += static_cast<double>(partials.ddt_bias[b * plan.nheads + h]);
    }
    if (gradients.dA) put(gradients.dA(h), dA);
    if (gradients.ddt_bias) put(gradients.ddt_bias(h), ddt_bias);
    if (!gradients.dD && !gradients.dD_per_channel) continue;
    for (Index j = 0; j < plan.headdim; ++j) {
      double channel = 0;
      for (Index b = 0; b < plan.batch; ++b)
        channel += static_cast<double>(partials.dD[(b * plan.nheads + h) * plan.row_headdim + j]);
      if (gradients.dD_per_channel) put(gradients.dD_per_channel(h, j), channel);
      dD += channel;
    }
    if (gradients.dD) put(gradients.dD(h), dD);
  }
  workspace.reset(mark);
}

/// The same with memory from the arena of the device: all gradients that the inputs have.
template <class T, Device DeviceType>
Gradients<T, DeviceType> backward(const Inputs<T, DeviceType>& in, const Saved<T, DeviceType>& saved,
                                  const std::type_identity_t<OutputGradients<T, DeviceType>>& upstream) {
  using A = accumulate_t<T>;
  check(in, saved, upstream, GradientViews<T, DeviceType>{});
  const auto like = [](const auto& view, auto type) {
    using Element = decltype(type);
    constexpr int rank = std::remove_cvref_t<decltype(view)>::rank;
    return view ? Tensor<Element, rank, DeviceType>::uninitialized(view.extents())
                : Tensor<Element, rank, DeviceType>{};
  };
  Gradients<T, DeviceType> g;
  g.dx = like(in.x, T{});
  g.ddt = like(in.dt, T{});
  g.dA = like(in.A, A{});
  g.dB = like(in.B, T{});
  g.dC = like(in.C, T{});
  g.dD = like(in.D, A{});
  g.dD_per_channel = like(in.D_per_channel, A{});
  g.dz = like(in.z, T{});
  g.ddt_bias = like(in.dt_bias, A{});
  g.dinitial_state = like(in.initial_state, A{});
  Workspace<DeviceType> workspace(workspace_bytes(in, saved));
  backward(in, saved, upstream,
           {.dx = g.dx,
            .ddt = g.ddt,
            .dA = g.dA,
            .dB = g.dB,
            .dC = g.dC,
            .dD = g.dD,
            .dD_per_channel = g.dD_per_channel,
            .dz = g.dz,
            .ddt_bias = g.ddt_bias,
            .dinitial_state = g.dinitial_state},
           workspace);
  return g;
}

}  // namespace diffmamba::ssd
