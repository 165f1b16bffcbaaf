#!/usr/bin/env bash
# Kills a short run again and again at random moments, resumes it, and compares it with one that was left alone.
#
#   cargo build --release && tests/reliability/kill.sh [RUNS] [SEED] [KIND]
#
# KIND is rl (default), sft, lora, file (RL on a file), command (RL with a reward program) or eval. Each of RUNS (default
# 10) runs is killed up to five times: by SIGKILL, SIGINT or SIGTERM, or by two SIGINT at once. Metrics but for times, and
# the bytes of the final weights, must be those of the undisturbed run; of an evaluation all completions and figures. Ends
# with 1 if they differ.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${TEMPERING:-target/release/tempering}
runs=${1:-10}
RANDOM=${2:-1}
kind=${3:-rl}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
command=train
settings=(--set output_dir="$folder" --set train.eval_steps=4 --set train.save_steps=2 --set eval.num_problems=40
  --set train.prompts_per_step=4 --set stages.0.exit.max_steps=8 --set stages.1.exit.max_steps=6)
case $kind in
rl) ;;
sft)
  command=sft
  settings=(--set output_dir="$folder" --set model.path=assets/base --set train.max_steps=40 --set train.tokens_per_step=2048
    --set train.eval_steps=10 --set train.save_steps=4 --set eval.num_problems=40)
  ;;
lora) settings+=(--set lora.r=8) ;;
file)
  "$program" tasks --count 200 --output "$folder/tasks.jsonl"
  settings+=(--set data.train="$folder/tasks.jsonl")
  ;;
command)
  cat >"$folder/reward.sh" <<'REWARD'
while IFS= read -r line; do
  id=${line#*\"id\":}
  echo "{\"id\": ${id%%[,\}]*}, \"score\": $((${#line} % 3))}"
done
REWARD
  settings+=(--set "reward.command=['sh', '$folder/reward.sh']" --set 'stages.0.rewards=[{type="command"}]')
  ;;
eval) settings=(--num-problems 300 -n 2) ;;
*) sed -n '2,6p' "$0" && exit 2 ;;
esac

# The command that begins a run of this name, or goes on with it.
arguments() {
  if [ "$kind" = eval ]; then
    words=(eval assets/base tasks "${settings[@]}" --output "$folder/$1")
  elif [ -f "$folder/$1/config.toml" ]; then
    words=("$command" --resume "$folder/$1")
  else
    words=("$command" "${settings[@]}" --set name="$1")
  fi
}

# What a run came to, without figures of time and memory.
result() {
  cd "$folder/$1"
  if [ "$kind" = eval ]; then
    sha256sum completions.jsonl summary.json
  else
    sed -E 's/"(timing_s|perf)\/[^"]*":[^,}]*,?//g' metrics.jsonl
    find . \( -path './final/*' -o -path './adapter/*' \) -name '*.safetensors' | sort | xargs sha256sum
  fi
}

arguments whole
"$program" "${words[@]}" >"$folder/whole.log" 2>&1
(result whole) >"$folder/whole.result"
bad=0 kills=0 others=0
for run in $(seq "$runs"); do
  name=run-$run
  for _ in 1 2 3 4 5; do
    arguments "$name"
    "$program" "${words[@]}" >>"$folder/$name.log" 2>&1 &
    process=$!
    sleep "$((RANDOM % 4)).$((RANDOM % 1000))"
    signals=(KILL KILL KILL INT TERM "INT INT")
    for signal in ${signals[RANDOM % 6]}; do
      kill -"$signal" $process 2>/dev/null || continue
      if [ "$signal" = KILL ]; then kills=$((kills + 1)); else others=$((others + 1)); fi
    done
    { wait $process; } 2>/dev/null && break || true # Without the shell's own word on killed programs.
  done
  arguments "$name"
  if ! "$program" "${words[@]}" >>"$folder/$name.log" 2>&1 || ! (result "$name") | cmp -s - "$folder/whole.result"; then
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
echo "$kind: $runs runs, $kills SIGKILL, $others other signals, $bad wrong"
[ "$bad" -eq 0 ]
