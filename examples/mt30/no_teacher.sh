#!/bin/sh
# The bundled student's size without a teacher: plain TD-MPC2 on the 6,660 episodes of the teacher from which
# `tdmpc-opt distill TEACHER --size 1 --updates 30000` starts, for as many updates, without labels and without episodes of
# the student. About an hour of one core with units for bf16. A second call continues an interrupted one. Needs the
# extras train and envs.
# Usage: examples/mt30/no_teacher.sh TEACHER FOLDER
set -eu
teacher=$1 folder=$2
export OMP_NUM_THREADS=1

collect() { tdmpc-opt collect --policy "$teacher" --episodes 74 --output "$folder/data" --workers 1 "$@"; }
collect --noise 0 --seed 0
collect --noise 0.2 --seed 1000
collect --noise 0.5 --seed 2000
tdmpc-opt train --data "$folder/data" --output "$folder/plain" --size 1 --updates 30000 --lr-zero-at 30000 \
  --batch-size 64 --lr 1e-3 --encoder-lr-scale 1 --td-lambda 1 --weights.entropy 3e-3 --matmul medium
score() {
  tdmpc-opt evaluate "$folder/plain/model.safetensors" --seed 10000 --workers 1 --output "$folder/no-teacher-$1.json" \
    --mode "$@"
}
score policy
score planner --preset realtime
