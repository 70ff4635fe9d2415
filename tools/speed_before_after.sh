#!/bin/sh
# Compares the speed of this checkout with that of an earlier commit, in turns on this machine:
# training and distillation steps, plans by preset, and episodes of evaluation.
#
#   tools/speed_before_after.sh [COMMIT] [ROUNDS]      default: 94c1e6f 3
#
# Run it on a machine that is otherwise at rest; three rounds take about five minutes on two
# cores. It needs the libraries of this checkout (make setup). The table gives the median over
# rounds and its ratio to the earlier commit (above 1 is faster); the status is 1 if a ratio is
# below 0.95.
set -eu

commit=${1:-94c1e6f}
rounds=${2:-3}
root=$(git rev-parse --show-toplevel)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'git -C "$root" worktree remove --force "$work/old" || true; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
git -C "$root" worktree add --quiet --detach "$work/old" "$commit"
export OMP_NUM_THREADS=1

run() { # SIDE ARGUMENTS...: run the command of one side
  case $1 in old) source=$work/old/src ;; new) source=$root/src ;; esac
  shift
  PYTHONPATH=$source "$python" -m tdmpc_opt "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
}

# The command that trains on a dataset with a teacher was `distill`, and is an option of `train`.
old_distill=distill
new_distill=distill
run new train --help
if grep -q -- "--teacher " "$work/log"; then new_distill=train; fi

run new collect --policy demo-teacher --tasks walker-stand,cartpole-balance --episodes 2 \
  --workers 1 --output "$work/data"
training="--data $work/data --size 1 --batch-size 64 --updates 30 --log-every 10 --device cpu"

round=1
while [ "$round" -le "$rounds" ]; do
  # Each side goes first in every other round.
  if [ $((round % 2)) = 1 ]; then sides="old new"; else sides="new old"; fi
  for side in $sides; do
    out=$work/$side-$round
    echo "round $round of $rounds: $side"
    # shellcheck disable=SC2086  # the options are words
    run "$side" train $training --output "$out-train"
    # shellcheck disable=SC2086
    eval "distill=\$${side}_distill"
    run "$side" "$distill" --teacher demo-teacher $training --output "$out-distill"
    run "$side" evaluate mt30-1m --mode policy --tasks walker-walk --episodes 10 \
      --workers 1 --device cpu --output "$out-evaluate.json"
    run "$side" bench mt30-1m --preset full balanced realtime policy --engine eager \
      --task walker-walk --batch 1 --rounds 2 --seconds 1 --output "$out-bench.json"
  done
  round=$((round + 1))
done

"$python" - "$work" "$rounds" <<'PYTHON'
import csv
import json
import statistics
import sys
from pathlib import Path

work, rounds = Path(sys.argv[1]), int(sys.argv[2])


def rates(side, number):
    """Return what one round measured, per second: updates, episodes, plans."""
    found = {}
    for kind in ("train", "distill"):
        with (work / f"{side}-{number}-{kind}" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))[1:]  # the first includes the warm-up
        name = f"{kind}: updates"
        found[name] = statistics.median(float(row["updates_per_second"]) for row in rows)
    tasks = json.loads((work / f"{side}-{number}-evaluate.json").read_text())["tasks"].values()
    seconds = sum(task["seconds"] for task in tasks)
    found["evaluate: episodes"] = sum(len(task["returns"]) for task in tasks) / seconds
    bench = json.loads((work / f"{side}-{number}-bench.json").read_text())
    for row in bench["candidates"]:
        found[f"act, {row['preset']}: actions"] = 1000 / row["batches"]["1"]["p50_ms"]
    return found


measured = {
    side: [rates(side, number) for number in range(1, rounds + 1)] for side in ("old", "new")
}
print(f"{'per second':24}{'old':>10}{'new':>10}{'ratio':>8}")
slower = False
for name in measured["old"][0]:
    old, new = (statistics.median(each[name] for each in measured[s]) for s in ("old", "new"))
    slower |= new / old < 0.95
    print(f"{name:24}{old:10.2f}{new:10.2f}{new / old:8.2f}")
sys.exit(slower)
PYTHON
