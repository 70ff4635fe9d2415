#!/bin/sh
# Rounds in which a teacher of 5M parameters drives with noise on the tasks with the largest losses against the experts,
# which label its states. About 30 minutes of one core with units for bf16. A second call continues an interrupted one.
# Needs the extras train, envs and export.
# Usage: examples/mt30/teacher_rounds.sh START FOLDER DATASET...
set -eu
start=$1 folder=$2
shift 2
export OMP_NUM_THREADS=1

tdmpc-opt dagger --start "$start" --teacher experts --data "$@" --size 5 --matmul medium \
  --tasks finger-turn-easy,finger-turn-hard,fish-swim,reacher-three-hard,cheetah-run,cheetah-jump,finger-spin \
  --rounds 4 --updates 1800 --episodes 80 --noise 0.25 --on-policy-share 0.45 --batch-size 64 --behaviour-batch 128 \
  --weights.behaviour 20 --weights.entropy 3e-3 --lr 8e-4 --lr-zero-at 7200 --encoder-lr-scale 1 --td-lambda 1 \
  --seed 30000 --output "$folder"
tdmpc-opt quantize "$folder/model.safetensors" --format fp16 --output "$folder/mt30-teacher.safetensors"
tdmpc-opt evaluate "$folder/mt30-teacher.safetensors" --seed 10000 --output "$folder/mt30-teacher-policy.json"
