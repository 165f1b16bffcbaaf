#!/usr/bin/env bash
# Trains in small steps for a while and watches memory, open files and threads.
#
#   cargo build --release && tests/reliability/soak.sh MINUTES
#
# Evaluates and saves often, so that all that a long run does is done many times. Ends with 1 if the last third of the time
# took over 5% more memory than the second, or more files or threads.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${TEMPERING:-target/release/tempering}
minutes=${1:?how many minutes}
folder=$(mktemp -d)
process=
trap '[ -z "$process" ] || kill -KILL "$process" 2>/dev/null || true; rm -rf "$folder"' EXIT
"$program" train --set output_dir="$folder" --set name=soak --set train.eval_steps=25 --set train.save_steps=10 \
  --set eval.num_problems=40 --set train.prompts_per_step=4 --set train.num_generations=4 \
  --set stages.0.exit.max_steps=100000000 >"$folder/log" 2>&1 &
process=$!
end=$((SECONDS + 60 * minutes))
while [ $SECONDS -lt $end ]; do
  sleep 5
  kill -0 $process || { tail -5 "$folder/log" && exit 1; }
  memory=$(awk '$1 == "VmRSS:" {print $2}' /proc/$process/status)
  threads=$(awk '$1 == "Threads:" {print $2}' /proc/$process/status)
  files=$(find /proc/$process/fd -mindepth 1 | wc -l)
  echo "$memory $files $threads" >>"$folder/samples"
done
steps=$(grep -c '"step"' "$folder/soak/metrics.jsonl" || true)
kill -INT $process
wait $process || true
process=
awk -v steps="$steps" -v minutes="$minutes" '
  { memory[NR] = $1; files[NR] = $2; threads[NR] = $3 }
  END {
    third = int(NR / 3)
    for (i = third + 1; i <= NR; i++) {
      part = i <= 2 * third ? 2 : 3
      if (memory[i] > most[part]) most[part] = memory[i]
      if (files[i] > open[part]) open[part] = files[i]
      if (threads[i] > running[part]) running[part] = threads[i]
    }
    printf "%d min, %d steps: memory at most %.1f MiB in the second third, %.1f in the last; files %d, %d; threads %d, %d\n",
      minutes, steps, most[2] / 1024, most[3] / 1024, open[2], open[3], running[2], running[3]
    exit !(most[3] <= 1.05 * most[2] && open[3] <= open[2] && running[3] <= running[2])
  }' "$folder/samples"
