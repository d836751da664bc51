#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, trains a Diff-Mamba-2 language model on the bundled Shakespeare for about two minutes, draws the
# loss and lets the model write. Everything lands in runs/demo. Arguments go to the training program:
#   scripts/demo.sh --mixer mamba2 --steps 3000
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

setup build demo
say "building"
configure demo -DDIFFMAMBA_BUILD_TESTS=OFF -DDIFFMAMBA_BUILD_BENCH=OFF >/dev/null
build demo train_lm generate
programs=build/demo/examples
run=runs/demo
model=(--text data/tinyshakespeare.txt --mixer diff_mamba2 --layers 4 --d-model 128 --mixer-option d_state=32 --mixer-option headdim=32
       --mixer-option lambda_initialization=unit_variance --batch 8 --length 128 --lr 4e-3 --min-lr 2e-4 --weight-decay 0.1)

# As many steps as this machine does in two minutes: timed on a few.
rm -rf "$run" "$run.timing"
few=60
seconds=$("$programs/train_lm" "${model[@]}" --steps $few --evaluate-every 0 --evaluation-tokens 1024 --save-every 0 --no-tensorboard \
  --out "$run.timing" | sed -n 's/.*; \([0-9.]*\) seconds of training.*/\1/p')
rm -rf "$run.timing"
steps=$(awk -v few=$few -v seconds="$seconds" 'BEGIN {
  if (seconds <= 0) exit 1
  steps = int(120 * few / seconds)
  print (steps < 200 ? 200 : (steps > 8000 ? 8000 : steps)) }')

say "training, $steps steps"
"$programs/train_lm" "${model[@]}" --steps "$steps" --warmup $((steps / 20)) --evaluate-every $((steps / 10)) --out "$run" "$@"

say "the model writes"
"$programs/generate" --model "$run" --prompt $'ROMEO:\n' --max-tokens 600 --temperature 0.8 --top-p 0.95 --seed 1
printf '\n\nloss: %s/loss.svg, %s/loss.png, %s/log.csv\nmore text: %s/generate --model %s --prompt "JULIET:"\n' \
  "$run" "$run" "$run" "$programs" "$run"
