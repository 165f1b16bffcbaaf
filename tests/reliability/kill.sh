#!/usr/bin/env bash
# Kills a short run again and again at random moments, resumes it, and compares it with one that was left alone.
#
#   cargo build --release && tests/reliability/kill.sh [RUNS] [SEED]
#
# Each of RUNS (default 10) runs is killed up to five times: by SIGKILL, SIGINT or SIGTERM, or by two SIGINT at once.
# Metrics but for times, and the bytes of the final model, must be those of the undisturbed run. Ends with 1 if they differ.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${TEMPERING:-target/release/tempering}
runs=${1:-10}
RANDOM=${2:-1}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
settings=(--set output_dir="$folder" --set train.eval_steps=4 --set train.save_steps=2 --set eval.num_problems=40
  --set train.prompts_per_step=4 --set stages.0.exit.max_steps=8 --set stages.1.exit.max_steps=6)

# What a run came to, without figures of time and memory.
result() {
  sed -E 's/"(timing_s|perf)\/[^"]*":[^,}]*,?//g' "$folder/$1/metrics.jsonl"
  sha256sum "$folder/$1/final/model.safetensors" | cut -d' ' -f1
}

"$program" train "${settings[@]}" --set name=whole >"$folder/whole.log" 2>&1
result whole >"$folder/whole.result"
bad=0 kills=0
for run in $(seq "$runs"); do
  name=run-$run
  for _ in 1 2 3 4 5; do
    if [ -f "$folder/$name/config.toml" ]; then start=(--resume "$folder/$name"); else start=("${settings[@]}" --set name="$name"); fi
    "$program" train "${start[@]}" >>"$folder/$name.log" 2>&1 &
    process=$!
    sleep "$((RANDOM % 4)).$((RANDOM % 1000))"
    signals=(KILL KILL INT TERM "INT INT")
    for signal in ${signals[RANDOM % 5]}; do kill -"$signal" $process 2>/dev/null && kills=$((kills + 1)) || true; done
    { wait $process; } 2>/dev/null && break || true # Without the shell's own word on killed programs.
  done
  if [ -f "$folder/$name/config.toml" ]; then start=(--resume "$folder/$name"); else start=("${settings[@]}" --set name="$name"); fi
  if ! "$program" train "${start[@]}" >>"$folder/$name.log" 2>&1 || ! result "$name" | cmp -s - "$folder/whole.result"; then
    echo "$name differs, or did not end:"
    tail -5 "$folder/$name.log"
    bad=$((bad + 1))
  fi
  leftover=$(find "$folder/$name" -name '*.partial' -o -name '*.removed')
  if [ -n "$leftover" ]; then
    echo "left behind: $leftover"
    bad=$((bad + 1))
  fi
done
echo "$runs runs, $kills signals, $bad wrong"
[ "$bad" -eq 0 ]
