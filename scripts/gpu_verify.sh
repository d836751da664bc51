#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# The whole verification on a machine with an NVIDIA GPU: builds, tests, golden cases in three types, compute-sanitizer on
# small shapes, benchmarks. Needs the working tree, a CUDA toolkit, CMake and Ninja; headers come from the system or from
# .deps (scripts/fetch_deps.sh). Writes bench/results/<date>-<gpu>-verification.md and -benchmarks.md.
#
#   scripts/gpu_verify.sh [--no-build] [--programs FOLDER] [--results FOLDER] [STEP...]
#
# STEP is tests, conformance, sanitizer or benchmarks; without one all are done. --no-build takes the programs from FOLDER
# (build/gpu_verify/programs), wherever they were built: test_gpu_*, conformance_cuda, bench_gpu_*, as they are or with .gz
# or .xz behind their names. LIMIT=120 are the seconds that one program may take. Ends with the number of failures.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=yes programs=build/gpu_verify/programs results=bench/results limit=${LIMIT:-120} steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --no-build) build=no ;;
    --programs) programs=$2; shift ;;
    --results) results=$2; shift ;;
    tests | conformance | sanitizer | benchmarks) steps+=("$1") ;;
    *) sed -n 's/^# \{0,1\}//; 4,14p' "$0" >&2; exit 2 ;;
  esac
  shift
done
[ ${#steps[@]} = 0 ] && steps=(tests conformance sanitizer benchmarks)
PATH=$PATH:/usr/local/cuda/bin
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$gpu" ] || { echo "There is no NVIDIA GPU here, or no driver." >&2; exit 2; }
short=$(sed 's/NVIDIA //; s/ .*//' <<<"$gpu" | tr '[:upper:]' '[:lower:]')
mkdir -p "$results" build/gpu_verify
report=$results/$(date -u +%Y-%m-%d)-$short-verification.md
figures=$results/$(date -u +%Y-%m-%d)-$short-benchmarks.md
failures=0

build_all() {
  . scripts/setup.sh
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$capability" = 90 ] && capability=90a
  configure gpu_verify/tree -DDIFFMAMBA_ENABLE_CUDA=ON -DDIFFMAMBA_BUILD_BENCH=ON -DDIFFMAMBA_BUILD_EXAMPLES=OFF \
    -DCMAKE_CUDA_ARCHITECTURES="$capability" -DCMAKE_PREFIX_PATH="$root/.deps/usr" || return 1
  build gpu_verify/tree gpu_tests gpu_benchmarks || return 1
  rm -rf "$programs" && mkdir -p "$programs"
  find build/gpu_verify/tree -type f -perm -u+x \
    \( -name 'test_gpu_*' -o -name conformance_cuda -o -name 'bench_gpu_*' \) -exec cp {} "$programs" \;
}

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

# run NAME PATTERN COMMAND...: a row of the report, with the last line of the output that fits the pattern; what failed is
# printed in full.
run() {
  local name=$1 pattern=$2 log start=$SECONDS status verdict line
  shift 2
  log=build/gpu_verify/$(tr -c 'A-Za-z0-9_\n' '-' <<<"$name").log
  timeout "$limit" "$@" >"$log" 2>&1
  status=$?
  line=$(grep -E "$pattern" "$log" | tail -n 1 | tr -s ' ' | tr -d '|')
  verdict=passed
  # A test that skips itself on a machine with a GPU has checked nothing.
  if [ $status = 0 ] && grep -q '^\[doctest\] assertions: *0 ' "$log"; then status=99; fi
  [ $status = 124 ] && verdict="**no end within $limit s**"
  [ $status = 99 ] && verdict="**checked nothing**"
  [ $status != 0 ] && [ $status != 124 ] && [ $status != 99 ] && verdict="**FAILED ($status)**"
  [ $status != 0 ] && { failures=$((failures + 1)); grep -v -E '^(pass|skip)' "$log" | tail -n 60; }
  printf '| %s | %s | %s | %d |\n' "$name" "$verdict" "$line" $((SECONDS - start)) | tee -a "$report"
}

tests() {
  local program
  for program in "$bin"/test_gpu_*; do run "$(basename "$program")" 'test cases:' "$program"; done
}
conformance() {
  local dtype
  for dtype in float64 float32 bfloat16; do
    run "golden cases, $dtype" '^[0-9]+ passed' "$bin/conformance_cuda" --device cuda --dtype $dtype tests/goldens
  done
}
# The golden operators are small and take every kernel through its odd sizes.
sanitizer() {
  local tool
  for tool in memcheck racecheck initcheck synccheck; do
    run "compute-sanitizer $tool, bfloat16 operators" 'SUMMARY' compute-sanitizer --tool $tool --error-exitcode 9 \
      "$bin/conformance_cuda" --device cuda --dtype bfloat16 --filter 'ops/*' tests/goldens
  done
  run "compute-sanitizer memcheck, float operators" 'SUMMARY' compute-sanitizer --error-exitcode 9 \
    "$bin/conformance_cuda" --device cuda --dtype float32 --filter 'ops/*' tests/goldens
}
benchmarks() {
  local program
  {
    echo "# Benchmarks on $gpu"
    echo
    echo "\`scripts/gpu_verify.sh benchmarks\`, $(date -u +'%Y-%m-%d %H:%M') UTC, driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)."
  } >"$figures"
  for program in "$bin"/bench_gpu_*; do
    run "$(basename "$program")" '^$' "$program"
    printf '\n## %s\n```\n%s\n```\n' "$(basename "$program")" "$(cat build/gpu_verify/"$(basename "$program")".log)" >>"$figures"
  done
}

if [ $build = yes ]; then build_all || exit 1; fi
unpack
{
  echo "# Verification on $gpu"
  echo
  echo "\`scripts/gpu_verify.sh ${steps[*]}\`, $(date -u +'%Y-%m-%d %H:%M') UTC."
  echo
  echo "| what | verdict | | seconds |"
  echo "|---|---|---|---|"
} >"$report"
for step in "${steps[@]}"; do $step; done
echo "$failures failed; see $report"
exit $((failures > 0))
