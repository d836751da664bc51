#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# The whole verification on a machine with an NVIDIA GPU: builds, tests, golden cases in three types, compute-sanitizer on
# small shapes, benchmarks, and the official packages beside them. Needs the working tree, a CUDA toolkit, CMake and Ninja;
# headers come from the system or from .deps (scripts/fetch_deps.sh). Writes bench/results/<date>-<gpu>-verification.md,
# -benchmarks.md and -peers.md.
#
#   scripts/gpu_verify.sh [--no-build] [--programs FOLDER] [--results FOLDER] [--peers FOLDER] [STEP...]
#
# STEP is tests, conformance, sanitizer, benchmarks or peers; without one all are done. --no-build takes the programs from
# FOLDER (build/gpu_verify/programs), wherever they were built: test_gpu_*, conformance_cuda, bench_gpu_*, as they are or with
# .gz or .xz behind their names. --peers is the folder of the official packages' sources (.peers/src; bench/peers/gpu/README.md);
# without it they are left out. LIMIT=150 are the seconds that one program of ours may take. What is not timed runs several at once.
# Ends with the number of failures; nothing is run when the build fails.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=yes programs=build/gpu_verify/programs results=bench/results peers=.peers/src limit=${LIMIT:-150} steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --no-build) build=no ;;
    --programs) programs=$2; shift ;;
    --results) results=$2; shift ;;
    --peers) peers=$2; shift ;;
    tests | conformance | sanitizer | benchmarks | peers) steps+=("$1") ;;
    *) sed -n 's/^# \{0,1\}//; 4,16p' "$0" >&2; exit 2 ;;
  esac
  shift
done
[ ${#steps[@]} = 0 ] && steps=(tests conformance sanitizer benchmarks peers)
PATH=$PATH:/usr/local/cuda/bin

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$gpu" ] || { echo "There is no NVIDIA GPU here, or no driver." >&2; exit 2; }
short=$(sed 's/NVIDIA //; s/ .*//' <<<"$gpu" | tr '[:upper:]' '[:lower:]')
logs=build/gpu_verify/logs
rm -rf "$logs"
mkdir -p "$results" "$logs"
report=$results/$(date -u +%Y-%m-%d)-$short-verification.md
figures=$results/$(date -u +%Y-%m-%d)-$short-benchmarks.md
beside=$results/$(date -u +%Y-%m-%d)-$short-peers.md
cores=$(nproc)
failures=0

log_of() { echo "$logs/$(tr -c 'A-Za-z0-9_\n' '-' <<<"$1")"; }

# judge NAME PATTERN COMMAND...: leaves a row of the report, with the last line of the output that fits the pattern, and what
# was printed if it failed.
judge() {
  local name=$1 pattern=$2 log start=$SECONDS status verdict line
  shift 2
  log=$(log_of "$name")
  timeout "$limit" "$@" >"$log.log" 2>&1
  status=$?
  # A test that skips itself on a machine with a GPU has checked nothing.
  if [ $status = 0 ] && grep -q '^\[doctest\] assertions: *0 ' "$log.log"; then status=99; fi
  case $status in
    0) verdict=passed ;;
    124) verdict="**no end within $limit s**" ;;
    99) verdict="**checked nothing**" ;;
    *) verdict="**FAILED ($status)**" ;;
  esac
  line=$(grep -E "$pattern" "$log.log" | tail -n 1 | tr -s ' ' | tr -d '|')
  [ $status = 0 ] || grep -v -E '^(pass|skip)' "$log.log" | tail -n 60 >"$log.failed"
  printf '| %s | %s | %s | %d |\n' "$name" "$verdict" "$line" $((SECONDS - start)) >"$log.row"
}

# spawn WIDTH NAME PATTERN COMMAND...: judges in the background, WIDTH at once. collect: waits, and reports in their order.
spawned=()
spawn() {
  local width=$1
  shift
  while [ "$(jobs -rp | wc -l)" -ge "$width" ]; do wait -n; done
  judge "$@" &
  spawned+=("$1")
}
collect() {
  local name log
  wait
  for name in "${spawned[@]}"; do
    log=$(log_of "$name")
    tee -a "$report" <"$log.row"
    [ -e "$log.failed" ] && { failures=$((failures + 1)); cat "$log.failed"; }
  done
  spawned=()
}
run() { spawn 1 "$@"; collect; }

build_all() (
  . scripts/setup.sh
  jobs() { echo "$cores"; }  # the memory of a virtual machine may grow with its use
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$capability" = 90 ] && capability=90a
  # -O2: what is checked and timed are the kernels, and -O3 of the host's code costs minutes.
  configure gpu_verify/tree -DDIFFMAMBA_GPU_TEST_FLAGS=-O2 -DDIFFMAMBA_ENABLE_CUDA=ON -DDIFFMAMBA_BUILD_BENCH=ON -DDIFFMAMBA_BUILD_EXAMPLES=OFF \
    -DCMAKE_CUDA_ARCHITECTURES="$capability" -DCMAKE_PREFIX_PATH="$root/.deps/usr" &&
    build gpu_verify/tree gpu_tests gpu_benchmarks
)

compile() { run build '^\[[0-9]+/[0-9]+\]' bash -c "cores=$cores; $(declare -f build_all); build_all"; }

# Unpacked copies of all programs.
unpack() {
  bin=$(mktemp -d)
  trap 'rm -rf "$bin"' EXIT
  local file name
  for file in "$programs"/*; do
    name=$(basename "$file")
    case $name in
      *.gz) gzip -dc "$file" >"$bin/${name%.gz}" ;;
      *.xz) xz -dc "$file" >"$bin/${name%.xz}" 2>/dev/null ||
            python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$file" >"$bin/${name%.xz}" ;;
      *) cp "$file" "$bin/$name" ;;
    esac
  done
  chmod +x "$bin"/*
}

# One test takes nearly all of the GPU's memory and therefore runs alone.
tests() {
  local program
  export OMP_NUM_THREADS=$(((cores + 3) / 4))
  for program in "$bin"/test_gpu_*; do
    [ "$(basename "$program")" = test_gpu_large ] || spawn 6 "$(basename "$program")" 'test cases:' "$program"
  done
  collect
  [ -e "$bin/test_gpu_large" ] && run test_gpu_large 'test cases:' "$bin/test_gpu_large"
}
conformance() {
  local dtype
  export OMP_NUM_THREADS=$(((cores + 3) / 4))
  for dtype in float64 float32 bfloat16; do
    spawn 3 "golden cases, $dtype" '^[0-9]+ passed' "$bin/conformance_cuda" --device cuda --dtype $dtype tests/goldens
  done
  collect
}
# The golden operators are small and take every kernel through its odd sizes.
sanitizer() {
  local tool
  export OMP_NUM_THREADS=2
  for tool in memcheck racecheck initcheck synccheck; do
    # initcheck does not see what the copy engine stores (a kernel that does nothing else has all of its memory reported),
    # which is how SSD's backward pass writes dx where the sizes are Hopper's.
    local what="bfloat16 operators" without=()
    [ $tool = initcheck ] && what+=" but SSD at Hopper's sizes" && without=(--without 'ops/ssd_chunk_scan__tile_p64*')
    spawn 8 "compute-sanitizer $tool, $what" 'SUMMARY' compute-sanitizer --tool $tool --error-exitcode 9 \
      "$bin/conformance_cuda" --device cuda --dtype bfloat16 --filter 'ops/*' "${without[@]}" tests/goldens
  done
  for tool in memcheck racecheck; do
    spawn 8 "compute-sanitizer $tool, float operators" 'SUMMARY' compute-sanitizer --tool $tool --error-exitcode 9 \
      "$bin/conformance_cuda" --device cuda --dtype float32 --filter 'ops/*' tests/goldens
  done
  spawn 8 "compute-sanitizer memcheck, bfloat16 modules" 'SUMMARY' compute-sanitizer --error-exitcode 9 \
    "$bin/conformance_cuda" --device cuda --dtype bfloat16 --filter 'modules/*' tests/goldens
  collect
}
heading() {
  echo "# $1 on $gpu"
  echo
  echo "\`scripts/gpu_verify.sh $2\`, $(date -u +'%Y-%m-%d %H:%M') UTC, driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)."
}
benchmarks() {
  local program name
  export OMP_NUM_THREADS=$cores
  {
    heading Benchmarks benchmarks
    echo "\"x peer\" is by the peers' times as they were recorded before; beside ours in one run: $(basename "$beside")."
  } >"$figures"
  for program in "$bin"/bench_gpu_*; do
    name=$(basename "$program")
    run "$name" '^$' "$program"
    printf '\n## %s\n```\n%s\n```\n' "$name" "$(cat "$(log_of "$name").log")" >>"$figures"
  done
}
peers() {
  local name="the official packages beside ours"
  [ -d "$peers" ] || { echo "| $name | left out: no sources in $peers | | 0 |" | tee -a "$report"; return; }
  limit=1200 run "$name" '^$' python3 bench/peers/gpu/peers.py --ours "$bin" --sources "$peers"
  { heading "Ours and the official packages" peers; printf '\n```\n%s\n```\n' "$(cat "$(log_of "$name").log")"; } >"$beside"
}

# How long each step took, below the table.
clock=""
timed() {
  local start=$SECONDS
  "$@"
  clock+="$1 $((SECONDS - start)) s, "
}

{
  heading Verification "${steps[*]}"
  echo
  echo "| what | verdict | | seconds |"
  echo "|---|---|---|---|"
} >"$report"
if [ $build = yes ]; then
  limit=3600 timed compile
  [ $failures = 0 ] || { echo "The build failed; see $report" >&2; exit 1; }
  rm -rf "$programs"
  mkdir -p "$programs"
  find build/gpu_verify/tree -type f -perm -u+x \
    \( -name 'test_gpu_*' -o -name conformance_cuda -o -name 'bench_gpu_*' \) -exec cp {} "$programs" \;
fi
unpack
for step in "${steps[@]}"; do timed "$step"; done
{
  echo
  echo "In all $SECONDS s on $cores cores: ${clock%, }."
} | tee -a "$report"
echo "$failures failed; see $report"
exit $((failures > 0))
