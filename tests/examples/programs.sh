#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
#
# programs.sh TRAIN_LM GENERATE: what a person does with the two programs, and does wrong. Every mistake must give one
# sentence on the standard error, an exit status other than zero, and leave what was saved as it was.
set -u
train=$1 generate=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
export OMP_NUM_THREADS=2
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}
# refused SENTENCE COMMAND...: the command ends with an error whose only line (CLI11 adds where help is) has SENTENCE.
refused() {
  local sentence=$1
  shift
  "$@" >out.txt 2>err.txt && fail "accepted: $*"
  grep -qF -- "$sentence" err.txt || fail "$*: expected \"$sentence\", got: $(cat err.txt)"
  [ "$(grep -vcE '^Run with --help|^[0-9]+/[0-9]+ |^step [0-9]+:' err.txt)" -eq 1 ] || fail "$*: more than a sentence: $(cat err.txt)"
}
checksum() { cat "$1"/step-*/* "$1"/best/* | cksum; }

for i in $(seq 400); do echo "line $i: the quick brown fox jumps over the lazy dog, $((i * i % 97)) times"; done >text.txt
tiny=(--text text.txt --layers 2 --d-model 16 --batch 2 --length 32 --warmup 2 --evaluate-every 10 --save-every 5
      --mixer-option headdim=8 --mixer-option d_state=8 --evaluation-tokens 200)

# A run, its files, and text from it.
"$train" "${tiny[@]}" --steps 20 --out whole --mixer alternating:diff_mamba2,mamba2 --text-mode characters >out.txt 2>err.txt ||
  fail "train_lm: $(cat err.txt)"
grep -q "parameters" out.txt || fail "train_lm does not say how many parameters there are"
grep -qE "test: .* bits per character, perplexity" out.txt || fail "train_lm does not evaluate"
[ "$(wc -l <whole/log.csv)" -eq 21 ] || fail "whole/log.csv has not 20 rows"
ls whole/tensorboard/events.out.tfevents.* >/dev/null || fail "no TensorBoard events"
command -v gnuplot >/dev/null && { [ -s whole/loss.svg ] && [ -s whole/loss.png ] || fail "no picture"; }
"$generate" --model whole --prompt "line 7" --max-tokens 50 --seed 3 >a.txt 2>/dev/null || fail "generate"
"$generate" --model whole --prompt "line 7" --max-tokens 50 --seed 3 --threads 1 >b.txt 2>/dev/null || fail "generate"
cmp -s a.txt b.txt || fail "the same seed writes different texts"
[ "$(wc -m <a.txt)" -eq 57 ] || fail "generate wrote $(wc -m <a.txt) characters, expected 57"

# The same run from a file of options, killed without mercy, resumed: the same bits.
cat >run.json <<'END'
{"text": "text.txt", "text-mode": "characters", "mixer": "alternating:diff_mamba2,mamba2", "layers": 2, "d-model": 16,
 "batch": 2, "length": 32, "warmup": 2, "evaluate-every": 10, "save-every": 5, "evaluation-tokens": 200, "steps": 20,
 "mixer-option": ["headdim=8", "d_state=8"]}
END
"$train" --config run.json --out killed >/dev/null 2>&1 &
pid=$!
until ls -d killed/step-*[0-9] >/dev/null 2>&1; do kill -0 $pid 2>/dev/null || break; done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
"$train" --out killed --resume >out.txt 2>err.txt || fail "resume: $(cat err.txt)"
cmp -s killed/step-00000020/model.safetensors whole/step-00000020/model.safetensors || fail "resumed weights differ"
cmp -s killed/step-00000020/optimizer.safetensors whole/step-00000020/optimizer.safetensors || fail "resumed averages differ"

# Ctrl-C ends the step, saves, and leaves with 0.
"$train" "${tiny[@]}" --steps 1000000 --out stopped >out.txt 2>err.txt &
pid=$!
until [ -s stopped/log.csv ] && [ "$(wc -l <stopped/log.csv)" -gt 3 ]; do kill -0 $pid 2>/dev/null || break; done
kill -TERM $pid # a shell's background programs ignore SIGINT
wait $pid || fail "a stopped run ends with $?"
grep -q "stopped at step" out.txt || fail "a stopped run does not say so"
ls -d stopped/step-*[0-9] >/dev/null 2>&1 || fail "a stopped run has no checkpoint"

# Mistakes.
before=$(checksum whole)
refused "--stepz" "$train" --stepz 3
refused "none.txt: no such file" "$train" --text none.txt --out x
: >empty.txt
refused "empty.txt: the file is empty" "$train" --text empty.txt --out x
head -c 2000 /dev/urandom >binary.txt
printf '\0' >>binary.txt
refused "this is a binary file, not a text" "$train" --text binary.txt --out x
printf 'caf\351' >latin.txt
refused "latin.txt: byte 3 begins no UTF-8 character" "$train" --text latin.txt --text-mode characters --out x
echo short >short.txt
refused "is too short" "$train" --text short.txt --out x "${tiny[@]:2}"
refused "batches: the batch size is 0" "$train" "${tiny[@]}" --batch 0 --out x
refused "dt_limit is reversed: 2 is above 1" "$train" "${tiny[@]}" --mixer-option dt_limit=2:1 --out x
refused "layer 0 is called \"mamba7\"" "$train" "${tiny[@]}" --mixer mamba7 --out x
refused "has an option d_stat" "$train" "${tiny[@]}" --mixer-option d_stat=3 --out x
[ -e /dev/nvidia0 ] || refused "cuda: " "$train" --device cuda  # no GPU, or built without CUDA
refused "bfloat16 is for --device cuda" "$train" --dtype bfloat16
refused "there is no option \"stepz\"" "$train" --config <(echo '{"stepz": 3}')
refused "not valid JSON" "$train" --config <(echo '{"steps": ')
refused "there is a run already" "$train" "${tiny[@]}" --out whole
refused "there is no checkpoint to resume from" "$train" "${tiny[@]}" --out x --resume
refused "the checkpoint is of another model" "$train" --out whole --resume --d-model 24 --mixer-option headdim=8 --steps 30
refused "is not among the" "$generate" --model whole --prompt "@"
refused "--prompt is empty" "$generate" --model whole --prompt ""
refused "there is no model in this folder" "$generate" --model x
refused "temperature is -1" "$generate" --model whole --prompt line --temperature -1
[ "$(checksum whole)" = "$before" ] || fail "a mistake changed what was saved"
[ -d x ] && fail "a mistake left a run behind: $(find x)"

# A disk that is full: files of at most 8 KiB, so that the log can be written and a checkpoint cannot.
refused "cannot be written" bash -c 'ulimit -f 8; exec "$@"' _ "$train" --out whole --resume --steps 30 --no-tensorboard
[ "$(checksum whole)" = "$before" ] || fail "a full disk changed what was saved"
"$train" --out whole --resume --steps 30 >out.txt 2>err.txt || fail "resume after a full disk: $(cat err.txt)"

# Damaged checkpoints.
cp -r whole damaged
size=$(wc -c <damaged/best/model.safetensors)
truncate -s $((size - 100)) damaged/best/model.safetensors
refused "best/model.safetensors: tensor" "$generate" --model damaged --prompt line
truncate -s 100 damaged/step-00000030/optimizer.safetensors
refused "optimizer.safetensors: the header of" "$train" --out damaged --resume --steps 40

[ $failures -eq 0 ] && echo "programs.sh: all well"
exit $((failures > 0))
