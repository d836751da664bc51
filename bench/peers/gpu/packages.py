# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
"""The official packages from checkouts of their sources, and how they are timed.

    python bench/peers/gpu/packages.py [--sources FOLDER] conv|scan      compiles one extension for this GPU

FOLDER (.peers/src, which git ignores) holds checkouts of state-spaces/mamba, Dao-AILab/causal-conv1d and
NadavSc/Diff-Mamba under the names mamba, causal-conv1d and Diff-Mamba.
"""
import glob
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import types

import torch

BF16 = torch.bfloat16
EXTENSIONS = {"conv": ("causal_conv1d_cuda", "causal-conv1d", "csrc", ["csrc/*.cpp", "csrc/*.cu"]),
              "scan": ("selective_scan_cuda", "mamba", "csrc/selective_scan",
                       ["csrc/selective_scan/*.cpp", "csrc/selective_scan/*.cu"])}


def extension_folder(name):
    return os.path.abspath(os.path.join(".peers", "extensions", name))


def build(kind, sources):
    """Compiles a CUDA extension with the flags of its own setup.py, for this GPU only."""
    from torch.utils import cpp_extension

    name, folder, include, files = EXTENSIONS[kind]
    folder = os.path.join(os.path.abspath(sources), folder)
    os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    os.makedirs(extension_folder(name), exist_ok=True)
    flags = ["-O3", "-std=c++17", "--use_fast_math", "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__",
             "-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__", "--expt-relaxed-constexpr",
             "--expt-extended-lambda"]
    cpp_extension.load(name, sorted(path for pattern in files for path in glob.glob(os.path.join(folder, pattern))),
                       extra_cflags=["-O3", "-std=c++17"], extra_cuda_cflags=flags,
                       extra_include_paths=[os.path.join(folder, include)], build_directory=extension_folder(name))


def bare_package(name, folder):
    """A package whose own __init__, which imports more than is here, is left out."""
    package = types.ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package


def load(sources):
    """Which of the packages can be used: {"conv", "scan", "triton", "differential"}. The reason why not goes to stderr."""
    found = set()
    mamba = os.path.join(sources, "mamba", "mamba_ssm")
    sys.path.insert(0, os.path.join(sources, "causal-conv1d"))
    for kind, (name, _, _, _) in EXTENSIONS.items():
        try:
            sys.path.insert(0, extension_folder(name))
            importlib.import_module(name)
            found.add(kind)
        except ImportError as error:  # then the Triton kernels alone
            print(f"{name}: {error}", file=sys.stderr)
            sys.modules[name] = types.ModuleType(name)
    bare_package("mamba_ssm", mamba)
    bare_package("mamba_ssm.models", os.path.join(mamba, "models"))
    differential = os.path.join(sources, "Diff-Mamba", "language_modeling", "src")
    for name, folder in (("src", ""), ("src.models", "models"), ("src.models.functional", "models/functional"),
                         ("src.models.sequence", "models/sequence"),
                         ("src.models.sequence.modules", "models/sequence/modules")):
        bare_package(name, os.path.join(differential, folder))
    if not hasattr(torch, "get_autocast_gpu_dtype"):
        torch.get_autocast_gpu_dtype = lambda: torch.get_autocast_dtype("cuda")
    for kind, module in (("triton", "mamba_ssm.ops.triton.ssd_combined"),
                         ("differential", "src.models.sequence.modules.diffmamba2block")):
        try:
            importlib.import_module(module)
            found.add(kind)
        except Exception as error:
            print(f"{module}: {error}", file=sys.stderr)
    return found


def short_autotuning():
    """Triton's autotuner tries the same configurations and keeps the best as ever, in fewer repetitions of each."""
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    def bench(call, quantiles):
        return do_bench(call, warmup=5, rep=20, quantiles=quantiles)

    Autotuner.do_bench = property(lambda self: bench, lambda self, value: None)


def median_ms(run, budget=0.2, most=300):
    times, begin, end = [], torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    while len(times) < 8 or (sum(times) < 1e3 * budget and len(times) < most):
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def record(work):
    """A CUDA graph of work(), which has run before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return graph


def eager_and_graphed(work, calls=1, budget=0.2):
    """Milliseconds of one of the `calls` calls that work() makes: as users call it, and as a graph, the GPU's time alone."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    eager = median_ms(work, budget) / calls
    try:
        graph = record(work)
        return eager, median_ms(graph.replay, budget) / calls
    except Exception as error:
        print(f"no graph: {error}", file=sys.stderr)
        torch.cuda.synchronize()
        return eager, None


class Table:
    """Our figures, from the programs' --json, beside theirs. `ours` is the folder of our bench_gpu_* programs."""

    def __init__(self, ours, as_json, only=""):
        self.ours, self.as_json, self.only, self.cache = ours, as_json, only, {}

    def title(self, found):
        if not self.as_json:
            print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peers: {' '.join(sorted(found))}\n"
                  f"{'case':64} {'ours ms':>9} {'peer ms':>9} {'eager ms':>9} {'x peer':>7} {'x eager':>7}", flush=True)

    def wants(self, bench, case):
        return self.only in bench + " " + case

    def our_times(self, bench, arguments):
        """{case: ms} of one of our programs; forward + backward is the sum where a program times them apart."""
        key = (bench, *arguments)
        if key not in self.cache:
            result, program = {}, os.path.join(self.ours, "bench_gpu_" + bench)
            if os.path.exists(program):
                output = subprocess.run([program, "--json", *arguments], capture_output=True, text=True,
                                        timeout=300).stdout
                for line in output.splitlines():
                    if line.startswith("{"):
                        entry = json.loads(line)
                        result[entry["case"]] = entry["ms"]
            for name in list(result):
                if "backward" in name and "forward" not in name:
                    apart = name.replace("backward", "forward")
                    if apart in result:
                        result[name.replace("backward", "forward + backward")] = result[apart] + result[name]
            self.cache[key] = result
        return self.cache[key]

    def line(self, bench, case, eager, graphed, arguments=(), note=""):
        our = self.our_times(bench, arguments).get(case)
        if self.as_json:
            print(json.dumps({"bench": bench, "case": case, "ours_ms": our, "peer_ms": graphed, "peer_eager_ms": eager,
                              "note": note}), flush=True)
            return
        cells = [f"{value:9.4f}" if value else " " * 9 for value in (our, graphed, eager)]
        ratios = [f"{value / our:7.2f}" if value and our else " " * 7 for value in (graphed, eager)]
        print(f"{bench + ' ' + case + note:64} {' '.join(cells)} {' '.join(ratios)}", flush=True)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", default=".peers/src")
    parser.add_argument("kind", choices=sorted(EXTENSIONS))
    arguments = parser.parse_args()
    build(arguments.kind, arguments.sources)
