# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
"""The official packages beside our benchmarks on one GPU, one after the other in one run.

    python bench/peers/gpu/peers.py --ours FOLDER [--sources FOLDER] [--build] [--only WORD]

FOLDER of --ours holds our bench_gpu_* programs. --sources (.peers/src, which git ignores) holds checkouts of
state-spaces/mamba and Dao-AILab/causal-conv1d under the names mamba and causal-conv1d; --build compiles their CUDA
extensions for this GPU into .peers/extensions. Without them the
Triton kernels alone are timed. Every peer is timed eagerly, as its users call it, and as a replayed CUDA graph, which is
the GPU's time alone; ours are graph replays. Prints a table, and with --json one object per line.
"""
import argparse
import glob
import importlib
import json
import os
import statistics
import subprocess
import sys
import types

import torch

BF16 = torch.bfloat16


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--sources", default=".peers/src")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


# --- The packages -----------------------------------------------------------------------------------------------------


def extension(name, folder, files, include):
    """Compiles and imports a CUDA extension, for this GPU only."""
    from torch.utils import cpp_extension

    major, minor = torch.cuda.get_device_capability()
    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    where = os.path.abspath(".peers/extensions/" + name)
    os.makedirs(where, exist_ok=True)
    flags = ["-O3", "-std=c++17", "--use_fast_math", "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__",
             "-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__", "--expt-relaxed-constexpr",
             "--expt-extended-lambda"]
    sources = sorted(path for pattern in files for path in glob.glob(os.path.join(folder, pattern)))
    sys.modules[name] = cpp_extension.load(name, sources, extra_cflags=["-O3", "-std=c++17"], extra_cuda_cflags=flags,
                                           extra_include_paths=[os.path.join(folder, include)], build_directory=where)


def load_packages(sources, build):
    """Which of the packages can be used: {"conv", "scan", "triton"}."""
    found = set()
    mamba, conv = os.path.join(sources, "mamba"), os.path.join(sources, "causal-conv1d")
    for folder in (mamba, conv):
        sys.path.insert(0, folder)
    for name, folder, kind in (("causal_conv1d_cuda", conv, "conv"), ("selective_scan_cuda", mamba, "scan")):
        try:
            if build:
                extension(name, folder, ["csrc/*.cpp", "csrc/*.cu", "csrc/selective_scan/*.cpp",
                                         "csrc/selective_scan/*.cu"], "csrc" if kind == "conv" else "csrc/selective_scan")
            importlib.import_module(name)
            found.add(kind)
        except Exception as error:  # then the Triton kernels alone
            print(f"{name}: {error}", file=sys.stderr)
            sys.modules[name] = types.ModuleType(name)
    try:
        # The package's own __init__ imports models that need more than is here.
        package = types.ModuleType("mamba_ssm")
        package.__path__ = [os.path.join(mamba, "mamba_ssm")]
        sys.modules["mamba_ssm"] = package
        importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
        found.add("triton")
    except Exception as error:
        print(f"mamba_ssm: {error}", file=sys.stderr)
    return found


# --- Times ------------------------------------------------------------------------------------------------------------


def median_ms(run, budget=0.2):
    times, begin, end = [], torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    while len(times) < 10 or (sum(times) < 1e3 * budget and len(times) < 300):
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def times_of(make, sets=3):
    """make(seed) gives a callable over its own tensors; several sets together do not fit the cache."""
    calls = [make(seed) for seed in range(sets)]

    def all_of_them():
        for call in calls:
            call()

    for _ in range(3):
        all_of_them()
    torch.cuda.synchronize()
    eager = median_ms(all_of_them) / sets
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            all_of_them()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        graph.replay()
        return eager, median_ms(graph.replay) / sets
    except Exception as error:
        print(f"no graph: {error}", file=sys.stderr)
        torch.cuda.synchronize()
        return eager, None


def tensor(*shape, dtype=BF16, scale=1.0, shift=0.0, grad=True):
    return (torch.randn(*shape, device="cuda", dtype=torch.float32) * scale + shift).to(dtype).requires_grad_(grad)


def both(forward, inputs, out_like):
    """Forward and backward for a random gradient of the output."""
    dout = torch.randn_like(out_like)

    def run():
        torch.autograd.grad(forward(), inputs, dout)

    return run


# --- Cases, under the names of our own --------------------------------------------------------------------------------


def cases(found):
    def case(name, bench, forward_and_inputs, backward):
        def make(seed):
            torch.manual_seed(seed)
            forward, inputs = forward_and_inputs()
            if backward:
                return both(forward, inputs, forward().detach())

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


def ours(folder, bench):
    """{case: ms} of one of our programs. forward + backward is the sum where a program times them apart."""
    program = os.path.join(folder, "bench_gpu_" + bench.split()[0])
    result = {}
    if os.path.exists(program):
        output = subprocess.run([program, "--json"], capture_output=True, text=True, timeout=300).stdout
        for line in output.splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                result[record["case"]] = record["ms"]
    for name in list(result):
        if "backward" in name and "forward" not in name:
            apart = name.replace("backward", "forward")
            if apart in result:
                result[name.replace("backward", "forward + backward")] = result[apart] + result[name]
    return result


def main():
    arguments = parse()
    found = load_packages(arguments.sources, arguments.build)
    if not arguments.json:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peers: {' '.join(sorted(found))}")
        print(f"{'case':64} {'ours ms':>9} {'peer ms':>9} {'eager ms':>9} {'x peer':>7}", flush=True)
    mine = {}
    for name, bench, make in cases(found):
        if arguments.only and arguments.only not in bench + " " + name:
            continue
        if bench not in mine:
            mine[bench] = ours(arguments.ours, bench)
        try:
            eager, graphed = times_of(make)
        except Exception as error:
            print(f"{bench}, {name}: {error}", file=sys.stderr)
            continue
        finally:
            torch.cuda.empty_cache()
        our = mine[bench].get(name.split(" (")[0])
        if arguments.json:
            record = {"bench": bench, "case": name, "ours_ms": our, "peer_ms": graphed, "peer_eager_ms": eager}
            print(json.dumps(record), flush=True)
        else:
            cells = [f"{value:9.4f}" if value else " " * 9 for value in (our, graphed, eager)]
            ratio = f"{(graphed or eager) / our:7.2f}" if our else ""
            print(f"{(bench.split()[0] + ' ' + name):64} {' '.join(cells)} {ratio}", flush=True)


if __name__ == "__main__":
    main()
