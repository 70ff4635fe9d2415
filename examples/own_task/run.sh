#!/bin/bash
# From crane.xml to a policy as ONNX and C files, with the time of each command, and the returns of random actions,
# expert, student and exported policy. FOLDER/own-task.json states both.
# Needs the extras train, envs, export, report and c.
# Usage: examples/own_task/run.sh FOLDER
set -eu
work=$1 task=crane:Crane-v0 steps=9600 updates=1500 size=0.3
mkdir -p "$(dirname "$work")"
mkdir "$work" # a new one: the commands continue what they find, which would take less time
PYTHONPATH=$(dirname "$0")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
TIMEFORMAT="%R %U %S"

timed() {
  printf '%s ' "$2" >>"$work/seconds"
  { time "$@" 2>&3; } 3>&2 2>>"$work/seconds"
}

# Does the environment meet the requirements?
timed tdmpc-opt tasks --tasks "$task"
# An expert from plans in the simulator for 9,600 states, of 16 episodes in step.
timed tdmpc-opt experts --tasks "$task" --method plan --envs 16 --steps "$steps" --output "$work/experts"
# A student of 0.3M parameters: episodes, training, on-policy rounds, int8 policy and planner as ONNX files, scores, report.
timed tdmpc-opt distill "$work/experts" --tasks "$task" --size "$size" --updates "$updates" --output "$work/student"
# The policy as C99 without a heap.
timed tdmpc-opt export "$work/student" --tasks "$task" --policy-only --target c --output "$work/c"

# The student on the scale from random actions (0) to the expert (100).
results=$work/student/results
tdmpc-opt evaluate random --tasks "$task" --output "$work/random.json"
tdmpc-opt compare "$results/teacher.json" "$results/student.json" --random "$work/random.json"
python - "$work" "$task" "$steps" "$updates" "$size" <<'END'
import os
import sys
from pathlib import Path

from tdmpc_opt.evaluation.results import ResultFile, read_evaluation
from tdmpc_opt.evaluation.score import MEAN_RETURN, stored_score

work = Path(sys.argv[1])
config = dict(zip(("task", "steps", "updates", "size"), sys.argv[2:], strict=True))
commands = {}
for line in (work / "seconds").read_text().splitlines():
    name, wall, *processor = line.split()
    commands[name] = {"seconds": float(wall), "processor_seconds": sum(map(float, processor))}
total = {key: sum(row[key] for row in commands.values()) for key in commands["tasks"]}

results, returns = work / "student" / "results", {}
for name, path in {
    "random": work / "random.json",
    "expert": results / "teacher.json",
    "student": results / "student.json",
    "student, int8 policy": results / "student-int8.json",
}.items():
    score = MEAN_RETURN.shown(stored_score(read_evaluation(path)["score"]))
    returns[name] = {"mean": score.mean, "ci95": score.ci95}
    print(f"{name}: return {score}")
for name, row in {**commands, "all": total}.items():
    print(f"{name}: {row['seconds']:.0f} s, {row['processor_seconds']:.0f} s of processors")
ResultFile(work / "own-task.json", "own-task", config).write(
    commands=commands, total=total, load=os.getloadavg(), returns=returns
)
END
