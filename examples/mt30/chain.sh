#!/bin/sh
# From the committed experts to one teacher of 5M parameters, and from this teacher alone to a student of 1M: the main
# command twice. Each takes about two hours on one core with units for bf16. A second call continues an interrupted one.
# Needs the extras train, envs, export and report.
# Usage: examples/mt30/chain.sh FOLDER
set -eu
work=$1
export OMP_NUM_THREADS=1

tdmpc-opt distill experts --size 5 --matmul medium --output "$work/teacher"
tdmpc-opt distill "$work/teacher" --size 1 --matmul medium --output "$work/student"
tdmpc-opt evaluate "$work/student" --preset realtime --output "$work/student-planner.json" --seed 10000
tdmpc-opt compare "$work/student/results/student.json" "$work/student-planner.json"
