#!/bin/sh
# Regularises the rewards of the bundled student by observations of episodes that it drives, and scores plans of the
# published budget from two starts a task. About 12 minutes of one core with units for bf16, and 40 for the score.
# Needs the extras train, envs and export.
# Usage: examples/mt30/regularize.sh FOLDER
set -eu
folder=$1
export OMP_NUM_THREADS=1

drive() {
  tdmpc-opt collect --policy mt30-1m --mode policy --noise "$1" --episodes "$2" --seed "$3" --output "$4"
}
drive 0 12 500 "$folder/exact"
drive 0.15 12 700 "$folder/little-noise"
drive 0.3 12 500 "$folder/noise"
drive 0.15 8 0 "$folder/more"
tdmpc-opt regularize mt30-1m --data "$folder/exact" "$folder/little-noise" "$folder/noise" "$folder/more" \
  --matmul medium --output "$folder/mt30-1m-regularized.safetensors"
tdmpc-opt evaluate "$folder/mt30-1m-regularized.safetensors" --preset published --seed 10000 --episodes 2 \
  --output "$folder/mt30-1m-regularized-published.json"
