# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
"""The training step of bench/training_step.cpp in PyTorch on the CPU: a byte-level Diff-Mamba-2 language model, forward, backward,
clipping, AdamW. The state space duality is written with einsum in its chunked form (arXiv 2405.21060, section 6), the differential
mixer (arXiv 2507.06204) in two ways: `separate`, two calls as published, and `joined`, both paths in one projection, convolution and
scan. Every line is written for this comparison and checked against the sequential recurrence by --check.

Times each combination of form, chunk and eager or torch.compile on a few steps, then the best of them at length, and prints one line
of JSON. The result is void if torch's own GEMM runs below 80 % of the machine's (--sgemm, GFLOP/s): a slow BLAS proves nothing.
"""

import argparse
import ctypes
import gc
import itertools
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def ssd(x, dt, A, B, C, D, chunk):
    """x (b, l, g, r, p): heads as groups times heads per group; dt (b, l, g, r); A, D (g, r); B, C (b, l, g, n)."""
    b, l, g, r, p = x.shape
    c = l // chunk
    skip = x * D[..., None]
    x = (x * dt[..., None]).reshape(b, c, chunk, g, r, p)
    B, C = B.reshape(b, c, chunk, g, -1), C.reshape(b, c, chunk, g, -1)
    log_decay = (dt * A).reshape(b, c, chunk, g, r).permute(0, 1, 3, 4, 2)  # (b, c, g, r, chunk)
    sums = log_decay.cumsum(-1)

    # Inside a chunk: (C B^T masked by the decay from j to i) x.
    below = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    decay = (sums[..., :, None] - sums[..., None, :]).masked_fill(~below, -math.inf).exp()  # (b, c, g, r, i, j)
    scores = torch.einsum("bcign,bcjgn->bcgij", C, B)
    y = torch.einsum("bcgrij,bcjgrp->bcigrp", scores[:, :, :, None] * decay, x)

    # The state that each chunk leaves, then the recurrence over chunks.
    to_end = (sums[..., -1:] - sums).exp().permute(0, 1, 4, 2, 3)  # (b, c, j, g, r)
    left = torch.einsum("bcjgn,bcjgrp->bcgrpn", B, x * to_end[..., None])
    whole = sums[..., -1].exp()  # (b, c, g, r)
    state, before = torch.zeros_like(left[:, 0]), []
    for k in range(c):
        before.append(state)
        state = state * whole[:, k, ..., None, None] + left[:, k]
    before = torch.stack(before, dim=1)

    from_begin = sums.exp().permute(0, 1, 4, 2, 3)
    y = y + torch.einsum("bcign,bcgrpn->bcigrp", C, before) * from_begin[..., None]
    return y.reshape(b, l, g, r, p) + skip


def ssd_sequential(x, dt, A, B, C, D):
    """The recurrence itself, for --check."""
    b, l, g, r, p = x.shape
    state, out = x.new_zeros(b, g, r, p, B.shape[-1]), []
    for t in range(l):
        state = state * (dt[:, t] * A).exp()[..., None, None]
        state = state + torch.einsum("bgrp,bgn->bgrpn", x[:, t] * dt[:, t, ..., None], B[:, t])
        out.append(torch.einsum("bgrpn,bgn->bgrp", state, C[:, t]) + D[..., None] * x[:, t])
    return torch.stack(out, dim=1)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


class Mamba2Paths(nn.Module):
    """`paths` Mamba-2 mixers (expand 1, one group each) over the same input, computed as one with `paths` groups."""

    def __init__(self, paths, d_model, d_state, headdim, d_conv, chunk):
        super().__init__()
        self.paths, self.d, self.n, self.p, self.chunk = paths, d_model, d_state, headdim, chunk
        self.heads = d_model // headdim
        # Rows by role: z, x, B, C, dt, each for all paths.
        self.in_proj = nn.Linear(d_model, paths * (2 * d_model + 2 * d_state + self.heads), bias=False)
        channels = paths * (d_model + 2 * d_state)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1)
        dt = torch.exp(torch.empty(paths, self.heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(paths, self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(paths, self.heads))
        self.norm = nn.Parameter(torch.ones(paths, d_model))
        self.out_proj = nn.Parameter(torch.empty(paths, d_model, d_model).uniform_(-1, 1) / math.sqrt(d_model))

    def inner(self, u):
        b, l, _ = u.shape
        g, d, n, h = self.paths, self.d, self.n, self.heads
        z, xBC, dt = self.in_proj(u).split([g * d, g * (d + 2 * n), g * h], dim=-1)
        xBC = F.silu(self.conv1d(xBC.transpose(1, 2))[..., :l].transpose(1, 2))
        x, B, C = xBC.split([g * d, g * n, g * n], dim=-1)
        dt = F.softplus(dt.view(b, l, g, h) + self.dt_bias)
        y = ssd(x.reshape(b, l, g, h, self.p), dt, -self.A_log.exp(), B.reshape(b, l, g, n), C.reshape(b, l, g, n), self.D, self.chunk)
        y = y.reshape(b, l, g, d) * F.silu(z.reshape(b, l, g, d))
        return F.rms_norm(y, (d,), None, 1e-5) * self.norm

    def forward(self, u):
        """(b, l, d_model) of each path."""
        return [F.linear(y, w) for y, w in zip(self.inner(u).unbind(2), self.out_proj)]


class DiffMamba2(nn.Module):
    """(1 - lambda_init) * RMSNorm(m1(x) - lambda m2(x)), lambda = sigmoid(sum lambda_q1) + lambda_init."""

    def __init__(self, form, depth, **sizes):
        super().__init__()
        d_model = sizes["d_model"]
        self.form, self.lambda_init = form, 0.8 - 0.6 * math.exp(-0.3 * depth)
        if form == "joined":
            self.both = Mamba2Paths(2, **sizes)
        else:
            self.m1, self.m2 = Mamba2Paths(1, **sizes), Mamba2Paths(1, **sizes)
        self.lambda_q1 = nn.Parameter(torch.randn(d_model) / math.sqrt(d_model))
        self.subln = RMSNorm(d_model)

    def forward(self, x):
        lam = torch.sigmoid(self.lambda_q1.sum()) + self.lambda_init
        if self.form == "joined":
            # m1 - lambda m2 is one product over both paths with -lambda folded into the second weight.
            w1, w2 = self.both.out_proj.unbind(0)
            y = F.linear(self.both.inner(x).flatten(2), torch.cat([w1, -lam * w2], dim=1))
        else:
            y = self.m1(x)[0] - lam * self.m2(x)[0]
        return (1 - self.lambda_init) * self.subln(y)


class LanguageModel(nn.Module):
    def __init__(self, vocab, layers, form, **sizes):
        super().__init__()
        d_model = sizes["d_model"]
        self.embedding = nn.Embedding(vocab, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.norms = nn.ModuleList(RMSNorm(d_model) for _ in range(layers))
        self.mixers = nn.ModuleList(DiffMamba2(form, depth, **sizes) for depth in range(layers))
        self.norm_f = RMSNorm(d_model)

    def forward(self, ids, labels):
        x = self.embedding(ids)
        for norm, mixer in zip(self.norms, self.mixers):
            x = x + mixer(norm(x))
        logits = F.linear(self.norm_f(x), self.embedding.weight)  # tied
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def check():
    torch.manual_seed(0)
    shape = dict(b=2, l=24, g=2, r=3, p=4, n=5)
    b, l, g, r, p, n = shape.values()
    x, dt = torch.randn(b, l, g, r, p, dtype=torch.double), torch.rand(b, l, g, r, dtype=torch.double)
    A, D = -torch.rand(g, r, dtype=torch.double), torch.randn(g, r, dtype=torch.double)
    B, C = torch.randn(b, l, g, n, dtype=torch.double), torch.randn(b, l, g, n, dtype=torch.double)
    for chunk in (1, 4, 8, 24):
        error = (ssd(x, dt, A, B, C, D, chunk) - ssd_sequential(x, dt, A, B, C, D)).abs().max().item()
        print(f"chunk {chunk}: largest difference from the recurrence {error:.1e}")
        assert error < 1e-12


def gemm_rate(size=2048, runs=5):
    a, b = torch.rand(size, size), torch.rand(size, size)
    a @ b
    best = math.inf
    for _ in range(runs):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best * 1e-9


def status_mib(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))


def peak_of(step):
    """MiB that a step needs on top of what stays when it is done: freed memory goes back first, then the peak starts anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    resting = status_mib("VmRSS")
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    step()
    return status_mib("VmHWM") - resting


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(batch=8, length=256, vocab=256, layers=4, d_model=256, d_state=64, headdim=64, d_conv=4).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--forms", default="joined,separate")
    parser.add_argument("--chunks", default="32,64,128,256")
    parser.add_argument("--modes", default="eager,compile")
    parser.add_argument("--steps", type=int, default=8, help="of the final timing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sgemm", type=float, default=0, help="the machine's GEMM rate in GFLOP/s")
    parser.add_argument("--check", action="store_true", help="compare with the sequential recurrence and stop")
    args = parser.parse_args()
    if args.check:
        return check()
    torch.set_num_threads(args.threads)
    sizes = dict(d_model=args.d_model, d_state=args.d_state, headdim=args.headdim, d_conv=args.d_conv)
    tokens = args.batch * args.length

    def trainer(form, chunk, mode):
        torch.manual_seed(1)
        model = LanguageModel(args.vocab, args.layers, form, chunk=chunk, **sizes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
        ids = torch.randint(args.vocab, (args.batch, args.length + 1))
        call = torch.compile(model) if mode == "compile" else model
        for parameter in model.parameters():  # gradients and averages belong to the set-up
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

        def step():
            optimizer.zero_grad(set_to_none=False)
            loss = call(ids[:, :-1], ids[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss.item()

        return step, sum(p.numel() for p in model.parameters())

    def seconds(step, steps):
        times = []
        for _ in range(steps):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
        return sorted(times)[len(times) // 2]

    combinations = list(itertools.product(args.forms.split(","), map(int, args.chunks.split(",")), args.modes.split(",")))
    results = []
    for form, chunk, mode in combinations:
        torch._dynamo.reset()
        step, count = trainer(form, chunk, mode)
        first = step()
        step()
        results.append((seconds(step, 3), form, chunk, mode))
        print(f"{form:9} chunk {chunk:4} {mode:8} {tokens / results[-1][0]:9.0f} tokens/s   (first loss {first:.4f})", file=sys.stderr, flush=True)
    _, form, chunk, mode = min(results)

    torch._dynamo.reset()
    step, count = trainer(form, chunk, mode)
    step()
    step()
    time_of_step = seconds(step, args.steps)
    peak = peak_of(step)
    gemm = gemm_rate()
    print(json.dumps(dict(torch=torch.__version__, form=form, chunk=chunk, mode=mode, parameters=count, tokens_per_second=round(tokens / time_of_step, 1),
                          milliseconds=round(time_of_step * 1e3, 2), gemm_gflops=round(gemm, 1),
                          gemm_of_machine=round(gemm / args.sgemm, 3) if args.sgemm else None,
                          void=bool(args.sgemm and gemm < 0.8 * args.sgemm), peak_mib_over_setup=round(peak, 1))))


if __name__ == "__main__":
    main()
