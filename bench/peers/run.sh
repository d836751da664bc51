#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# The training step of a 4-layer Diff-Mamba-2 here and in PyTorch on the CPU, one after the other in one run, and their ratio.
#
#   bench/peers/run.sh [--warm] [OPTION of training_step.py...]
#
# torch is installed into .peers/venv, which git ignores. --warm only installs and builds, and lets torch.compile fill its
# cache, so that the run that counts is short.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh"
cd "$root"

warm=no
if [ "${1:-}" = --warm ]; then
  warm=yes
  shift
fi
python=.peers/venv/bin/python
export TORCHINDUCTOR_CACHE_DIR=$root/.peers/inductor
if [ ! -x $python ] || ! $python -c 'import torch' 2>/dev/null; then
  say "installing torch into .peers/venv"
  python3 -m venv .peers/venv
  .peers/venv/bin/pip -q install torch numpy
fi
threads=${OMP_NUM_THREADS:-2}
export OMP_NUM_THREADS=$threads

if [ $warm = yes ]; then
  setup build bench
  configure native -DDIFFMAMBA_BUILD_BENCH=ON -DDIFFMAMBA_BUILD_TESTS=OFF >/dev/null
  build native bench_ceilings bench_training_step
  $python bench/peers/training_step.py --check
  $python bench/peers/training_step.py --threads "$threads" --steps 1 "$@" >/dev/null
  exit
fi

sgemm=$(build/native/bench/bench_ceilings --sgemm)
echo "machine: sgemm $sgemm GFLOP/s, $threads threads, $(date -u +%Y-%m-%d)"
ours=$(build/native/bench/bench_training_step --json)
echo "ours:    $ours"
theirs=$($python bench/peers/training_step.py --threads "$threads" --sgemm "$sgemm" "$@")
echo "theirs:  $theirs"
again=$(build/native/bench/bench_ceilings --sgemm)
$python - "$ours" "$theirs" "$sgemm" "$again" <<'COMPARE'
import json, sys

ours, theirs, sgemm, again = map(json.loads, sys.argv[1:])
assert ours["parameters"] == theirs["parameters"], f"not the same model: {ours['parameters']} and {theirs['parameters']} parameters"
print(f"ratio:   {ours['tokens_per_second'] / theirs['tokens_per_second']:.2f} times PyTorch {theirs['torch']} "
      f"({theirs['form']}, chunk {theirs['chunk']}, {theirs['mode']})")
print(f"memory:  {ours['peak_mib_over_setup']:.0f} MiB over set-up, PyTorch {theirs['peak_mib_over_setup']:.0f} MiB")
rates = sgemm, ours["gemm_gflops"], again
if max(rates) > 1.15 * min(rates):
    sys.exit(f"VOID: the machine was disturbed, its GEMM rate was {rates} GFLOP/s before, between and after")
if theirs["void"]:
    sys.exit(f"VOID: torch's GEMM runs at {theirs['gemm_of_machine']:.0%} of the machine's")
COMPARE
