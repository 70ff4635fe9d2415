#!/bin/sh
# One student of four of Gymnasium's robots, three of which end their episodes when they fall, and the table of its
# scores: experts, student, exported int8 policy and random actions. A second call continues an interrupted one.
# Needs the extras experts, train, export and report. By default about 8 hours of one core.
# Usage: examples/gymnasium_robots.sh FOLDER [STEPS [UPDATES]]
set -eu
work=$1 steps=${2:-1000000} updates=${3:-30000}
tasks=HalfCheetah-v5,Hopper-v5,Walker2d-v5,InvertedDoublePendulum-v5

tdmpc-opt experts --tasks "$tasks" --steps "$steps" --envs 16 --output "$work/experts"
tdmpc-opt distill "$work/experts" --tasks "$tasks" --updates "$updates" --output "$work/student"
# The starts of the student's scores.
tdmpc-opt evaluate random --tasks "$tasks" --seed 10000 --episodes 10 --output "$work/random.json"

results=$work/student/results
tdmpc-opt compare "$results/teacher.json" "$results/student.json" --random "$work/random.json"
tdmpc-opt report "$results/teacher.json" "$results/student.json" "$results/student-int8.json" "$work/random.json" \
  --output "$work/report.html"
python - "$work" <<'END'
import json
import sys
from pathlib import Path

work = Path(sys.argv[1])
names = ("teacher", "student", "student-int8")
files = [work / "student" / "results" / f"{name}.json" for name in names]
found = [json.loads(path.read_text())["tasks"] for path in (*files, work / "random.json")]
means = {
    task: [sum(each[task]["returns"]) / len(each[task]["returns"]) for each in found]
    for task in found[0]
}
print("| task | expert | student | student, int8 policy | random |\n|---|---|---|---|---|")
for task, row in means.items():
    print(f"| {task} | {' | '.join(f'{mean:.1f}' for mean in row)} |")
experts = sum((work / "experts" / f"{task}.safetensors").stat().st_size for task in means)
student = [(work / "student" / name).stat().st_size for name in ("model.safetensors", "policy-int8.onnx")]
print(f"| bytes | {' | '.join(f'{size:,}' for size in (experts, *student))} | |")
END
