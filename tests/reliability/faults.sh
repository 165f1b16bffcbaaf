#!/usr/bin/env bash
# Lets one system call of a short run fail, one after the other through all of them, and resumes the run each time.
#
#   cargo build --release && tests/reliability/faults.sh kill|full [EVERY] [FIRST]
#
# kill: SIGKILL at the call. full: the call says that the disk is full (ENOSPC). Calls are all that change files: write,
# rename, fsync, fdatasync, mkdir, unlinkat and ftruncate; every EVERY-th of each kind (default 1). FIRST is the number of
# the fault to begin with (default 1); the script says it when it is stopped. What the run and its continuation come to must
# be what a run left alone comes to, byte for byte but for times; a full disk must end the run with an error (exit status 1
# or 2), never a panic, and nothing may be left behind. Needs strace. Ends with 1 if something differs.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${TEMPERING:-target/release/tempering}
case ${1:-} in
kill) fault=signal=KILL ;;
full) fault=error=ENOSPC ;;
*) sed -n '2,4p' "$0" && exit 2 ;;
esac
every=${2:-1} first=${3:-1}
folder=$(mktemp -d)
bad=0 points=0 tried=0 unharmed=0 ended=
trap 'rm -rf "$folder"; [ -n "$ended" ] || echo "stopped at fault $points, $bad wrong before; go on with: $0 $1 $every $points"' EXIT
trap 'exit 130' INT TERM
# One thread, so that the calls of every run come in the same order.
export RAYON_NUM_THREADS=1
settings=(--set output_dir="$folder" --set train.eval_steps=2 --set train.save_steps=1 --set train.save_total_limit=1
  --set eval.num_problems=8 --set train.prompts_per_step=2 --set train.num_generations=4
  --set stages.0.exit.max_steps=2 --set stages.1.exit.max_steps=2)
calls=(write rename fsync fdatasync mkdir unlinkat ftruncate)

# What a run came to, without figures of time and memory.
result() {
  sed -E 's/"(timing_s|perf)\/[^"]*":[^,}]*,?//g' "$folder/$1/metrics.jsonl"
  (cd "$folder/$1" && sha256sum final/* completions/* token_types.json | sort)
}

"$program" train "${settings[@]}" --set name=whole >"$folder/whole.log" 2>&1
result whole >"$folder/whole.result"
strace -f -c -o "$folder/counts" -e trace="$(IFS=,; echo "${calls[*]}")" \
  "$program" train "${settings[@]}" --set name=counted >"$folder/counted.log" 2>&1
result counted | cmp -s - "$folder/whole.result" || { echo "two runs differ"; exit 1; }

wrong() {
  echo "$call $at: $*"
  tail -3 "$folder/run.log"
  bad=$((bad + 1))
}
for call in "${calls[@]}"; do
  count=$(awk -v call="$call" '$NF == call {print $4}' "$folder/counts")
  for ((at = 1; at <= ${count:-0}; at += every)); do
    points=$((points + 1)) status=0
    [ "$points" -ge "$first" ] || continue
    tried=$((tried + 1))
    rm -rf "$folder/run"
    {
      strace -f -o /dev/null -e trace="$call" -e inject="$call:$fault:when=$at" \
        "$program" train "${settings[@]}" --set name=run >"$folder/run.log" 2>&1 || status=$?
    } 2>/dev/null # The shell's own word on killed programs.
    case $1:$status in
    *:0) unharmed=$((unharmed + 1)) ;; # A line of progress that could not be written, for instance.
    kill:137 | full:1 | full:2) ;;
    *) wrong "status $status" ;;
    esac
    # A run that ended before its settings were written says so, and starts again.
    start=("${settings[@]}" --set name=run)
    if [ -f "$folder/run/config.toml" ]; then start=(--resume "$folder/run"); fi
    if [ "$status" -ne 0 ] && ! "$program" train "${start[@]}" >"$folder/run.log" 2>&1; then
      wrong "the run does not go on"
    elif ! result run | cmp -s - "$folder/whole.result"; then
      wrong "another result"
    fi
    leftover=$(find "$folder" -name '*.partial' -o -name '*.removed')
    [ -z "$leftover" ] || wrong "left behind: $leftover"
  done
  echo "$call: ${count:-0} calls"
done
ended=1
echo "$1: $tried faults, $unharmed of them without harm, $bad wrong"
[ "$bad" -eq 0 ]
