#!/bin/sh
# Regularises the rewards of the bundled student: a first fit to what its teacher and it visit, episodes that plans drive
# with these rewards, and a longer fit to all of them. Scores plans of the published budget from two starts a task. About
# 45 minutes of one core with units for bf16, and 40 for the score. Needs the extras train, envs and export.
# Usage: examples/mt30/regularize.sh FOLDER
set -eu
folder=$1
export OMP_NUM_THREADS=1

drive() {
  tdmpc-opt collect --policy "$1" --mode policy --episodes "$2" --noise "$3" --seed "$4" --output "$5"
}
fit() {
  output=$1
  shift
  tdmpc-opt regularize mt30-1m --data "$folder/exact" "$folder/little-noise" "$folder/noise" "$folder/student" "$@" \
    --matmul medium --output "$output"
}
drive weights/mt30-teacher.safetensors 40 0 3000 "$folder/exact"
drive weights/mt30-teacher.safetensors 40 0.2 3000 "$folder/little-noise"
drive weights/mt30-teacher.safetensors 40 0.5 3000 "$folder/noise"
drive mt30-1m 60 0.25 4000 "$folder/student"
fit "$folder/first.safetensors"
tdmpc-opt collect --policy "$folder/first.safetensors" --mode planner --preset realtime --episodes 15 --seed 5000 \
  --output "$folder/planned"
# Five times: about a third of the data.
planned=$folder/planned
fit "$folder/mt30-1m-regularized.safetensors" "$planned" "$planned" "$planned" "$planned" "$planned" --updates 24000
tdmpc-opt evaluate "$folder/mt30-1m-regularized.safetensors" --preset published --seed 10000 --episodes 2 \
  --output "$folder/mt30-1m-regularized-published.json"
