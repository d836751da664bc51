# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
"""The official packages beside our benchmarks on one GPU, one after the other in one run.

    python bench/peers/gpu/peers.py --ours FOLDER [--sources FOLDER] [--only WORD] [--json] [WHAT...]

FOLDER of --ours holds our bench_gpu_* programs; packages.py says what --sources holds. WHAT is training_step,
decoding, blocks or operators; without one all are done. Every peer is timed eagerly, as its users call it, and as a replayed
CUDA graph, which is the GPU's time alone; ours are graph replays. Prints a table, and with --json one object per line.
"""
import argparse
import sys

import models
import torch
from packages import BF16, Table, eager_and_graphed, load, short_autotuning


def tensor(*shape, dtype=BF16, scale=1.0, shift=0.0, grad=True):
    return (torch.randn(*shape, device="cuda", dtype=torch.float32) * scale + shift).to(dtype).requires_grad_(grad)


def both(forward, inputs, out_like):
    """Forward and backward for a random gradient of the output."""
    outputs = out_like if isinstance(out_like, tuple) else (out_like,)
    douts = tuple(torch.randn_like(out) for out in outputs)

    def run():
        torch.autograd.grad(forward(), inputs, douts)

    return run


# --- Cases, under the names of our own --------------------------------------------------------------------------------


def cases(found):
    def case(name, bench, forward_and_inputs, backward):
        def make(seed):
            torch.manual_seed(seed)
            forward, inputs = forward_and_inputs()
            if backward:
                return both(forward, inputs, forward())

            def run():
                with torch.no_grad():
                    forward()

            return run

        return name, bench, make

    if "triton" in found:
        from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn as gated
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        for batch, length, heads, state in ((8, 2048, 32, 128), (8, 2048, 32, 64), (1, 65536, 32, 128),
                                            (50, 512, 16, 64), (4, 4096, 80, 128), (1, 2048, 80, 128)):
            for chunk in (128, 256):
                def ssd(batch=batch, length=length, heads=heads, state=state, chunk=chunk):
                    x = tensor(batch, length, heads, 64)
                    dt = tensor(batch, length, heads)
                    A = (-torch.linspace(1, 16, heads, device="cuda")).requires_grad_()
                    B, C = tensor(batch, length, 1, state), tensor(batch, length, 1, state)
                    D = torch.ones(heads, device="cuda").requires_grad_()
                    bias = torch.full((heads,), -4.0, device="cuda").requires_grad_()
                    return (lambda: mamba_chunk_scan_combined(x, dt, A, B, C, chunk, D=D, dt_bias=bias,
                                                              dt_softplus=True)), (x, dt, A, B, C, D, bias)

                for backward in (False, True):
                    kind = "forward + backward" if backward else "forward"
                    yield case(f"{batch} x {length}, {heads} heads, N {state} bfloat16 {kind} (chunks of {chunk})", "ssd", ssd, backward)
        for width in (1024, 2048):
            def gated_norm(width=width):
                x, z = tensor(16384, width), tensor(16384, width)
                weight = torch.ones(width, device="cuda").requires_grad_()
                return (lambda: gated(x, weight, None, z=z, norm_before_gate=False)), (x, z, weight)

            yield case(f"gated_rms_norm forward 16384 x {width}", "norms", gated_norm, False)
            yield case(f"gated_rms_norm forward + backward 16384 x {width}", "norms", gated_norm, True)
        from mamba_ssm.ops.triton.layer_norm import rms_norm_fn

        for width in (1024, 2048):
            def norm(width=width):
                x, weight = tensor(16384, width), torch.ones(width, device="cuda").requires_grad_()
                return (lambda: rms_norm_fn(x, weight, None, eps=1e-5)), (x, weight)

            def add_norm(width=width):
                x, weight = tensor(16384, width), torch.ones(width, device="cuda").requires_grad_()
                residual = tensor(16384, width, dtype=torch.float32)
                return (lambda: rms_norm_fn(x, weight, None, residual=residual, eps=1e-5, prenorm=True,
                                            residual_in_fp32=True)), (x, weight, residual)

            for kind, make in (("rms_norm", norm), ("add + rms_norm", add_norm)):
                yield case(f"{kind} forward 16384 x {width}", "norms", make, False)
                yield case(f"{kind} forward + backward 16384 x {width}", "norms", make, True)
    if "scan" in found:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        for batch, channels, length in ((8, 2048, 512), (8, 2048, 2048), (8, 2048, 8192), (1, 2048, 65536),
                                        (1, 5120, 2048), (1, 5120, 65536)):
            for dtype, word in ((BF16, "bf16"), (torch.float32, "float")):
                def scan(batch=batch, channels=channels, length=length, dtype=dtype):
                    u, z = (tensor(batch, channels, length, dtype=dtype) for _ in range(2))
                    delta = tensor(batch, channels, length, dtype=dtype, scale=0.5, shift=-2)
                    A = (-torch.rand(channels, 16, device="cuda") - 0.1).requires_grad_()
                    B, C = (tensor(batch, 16, length, dtype=dtype) for _ in range(2))
                    D, bias = (torch.randn(channels, device="cuda").requires_grad_() for _ in range(2))
                    return (lambda: selective_scan_fn(u, delta, A, B, C, D, z, bias, True)), (u, delta, A, B, C, D, z,
                                                                                           bias)

                for backward in (False, True):
                    kind = "forward + backward" if backward else "forward"
                    yield case(f"{batch} x {channels} x {length} {word} {kind}",
                               "selective_scan (batch x channels x length)", scan, backward)
    if "conv" in found:
        from causal_conv1d import causal_conv1d_fn

        for channels in (2304, 4352):
            def conv(channels=channels):
                x = tensor(8, 2048, channels)
                weight = torch.randn(channels, 4, device="cuda").requires_grad_()
                bias = torch.randn(channels, device="cuda").requires_grad_()
                return (lambda: causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)), \
                    (x, weight, bias)

            yield case(f"forward 8 x 2048 x {channels} bfloat16", "causal_conv1d", conv, False)
            yield case(f"forward + backward 8 x 2048 x {channels} bfloat16", "causal_conv1d", conv, True)


def operators(table, found):
    sets = 3  # together they do not fit the cache
    best = {}
    for name, bench, make in cases(found):
        bench, case = bench.split()[0], name.split(" (")[0]
        if not table.wants(bench, name):
            continue
        try:
            calls = [make(seed) for seed in range(sets)]

            def all_of_them():
                for call in calls:
                    call()

            eager, graphed = eager_and_graphed(all_of_them, sets)
        except Exception as error:
            print(f"{bench}, {name}: {error}", file=sys.stderr)
            continue
        finally:
            calls = None
            torch.cuda.empty_cache()
        if " (" in name:  # one of several chunks: the peer's best counts
            before = best.get((bench, case))
            best[bench, case] = (eager, graphed)
            if before is None:
                continue
            eager, graphed = min(before, (eager, graphed), key=lambda times: times[1] or times[0])
        table.line(bench, case, eager, graphed)


def main():
    what = {"training_step": models.training_step, "decoding": models.decoding, "blocks": models.blocks,
            "operators": operators}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--sources", default=".peers/src")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("what", nargs="*", metavar="WHAT")
    arguments = parser.parse_args()
    for name in arguments.what:
        if name not in what:
            parser.error(f"{name} is none of {', '.join(what)}")
    found = load(arguments.sources)
    short_autotuning()
    table = Table(arguments.ours, arguments.json, arguments.only)
    table.title(found)
    for name in arguments.what or what:
        what[name](table, found)


if __name__ == "__main__":
    main()
